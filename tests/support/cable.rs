//! Networks that a test makes: namespaces and a cable between them, by iproute2.

#![allow(clippy::print_stderr, reason = "what is left out is said")]

use std::process::Command;

/// Two networks with a cable between them; each has one end, at an address.
pub struct Cable {
    pub near: String,
    pub far: String,
}

impl Cable {
    /// Of the near end.
    pub const ADDRESS: &str = "10.213.77.1";

    /// `None`, and said, where this may not be done.
    pub fn lay() -> Option<Self> {
        let id = std::process::id();
        let cable = Self { near: format!("bt{id}a"), far: format!("bt{id}b") };
        let Self { near, far } = &cable;
        let steps = [
            format!("netns add {near}"),
            format!("netns add {far}"),
            format!("-n {near} link add bt0 type veth peer name bt0 netns {far}"),
            format!("-n {near} address add {}/24 dev bt0", Self::ADDRESS),
            format!("-n {far} address add 10.213.77.2/24 dev bt0"),
            format!("-n {near} link set lo up"),
            format!("-n {near} link set bt0 up"),
            format!("-n {far} link set bt0 up"),
        ];
        if steps.iter().all(|step| ip(step)) {
            return Some(cable);
        }
        eprintln!("skipped: no network may be made here");
        None
    }

    /// Cuts it: nothing arrives, and nobody is told.
    pub fn cut(&self) {
        assert!(ip(&format!("-n {} link set bt0 down", self.far)));
    }

    /// What runs a command in one of the networks.
    pub fn inside(network: &str) -> [&str; 4] {
        ["ip", "netns", "exec", network]
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for network in [&self.near, &self.far] {
            ip(&format!("netns delete {network}"));
        }
    }
}

fn ip(words: &str) -> bool {
    let output = Command::new("ip").args(words.split(' ')).output();
    output.is_ok_and(|output| output.status.success())
}
