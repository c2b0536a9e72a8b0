//! The address on which the agent listens for peers: bound by it, and by nobody else. Firewalls are not
//! looked at.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use jiff::Timestamp;

use super::finding::Finding;
use super::scene::{Agent, Scene, Told};
use crate::process;
use crate::wire::from_timestamp;

/// What the kernel's list says of a socket that listens.
const LISTENS: &str = "0A";

/// How far a file's time may be behind the clock.
const COARSE: Duration = Duration::from_secs(1);

/// Who listens where.
struct Facts {
    /// Where the agent listens, or would.
    address: Option<SocketAddr>,
    /// Its process.
    agent: Agent,
    /// Who has that port.
    holders: Vec<(u32, String)>,
    /// Whether a holder can't be seen by this user.
    has_unseen: bool,
}

/// The address is the agent's.
pub(super) fn listen(scene: &Scene) -> Finding {
    let agent = scene.agent();
    let Some(config) = scene.config_or_default() else {
        return Finding::unknown(
            "where it would listen is not known: the configuration can't be read",
        );
    };
    let address = match &agent {
        // A flag or port 0 says it otherwise than the configuration.
        Agent::Runs(_) => said(scene),
        Agent::Absent | Agent::Unseen(_) => config.listen,
    };
    let Some(wanted) = address else {
        return judge(&Facts { address, agent, holders: Vec::new(), has_unseen: false });
    };
    // The agent's own view, where it has a network of its own.
    let net = match &agent {
        Agent::Runs(process) => format!("/proc/{}/net", process.pid),
        Agent::Absent | Agent::Unseen(_) => "/proc/net".to_owned(),
    };
    let lists = ["tcp", "tcp6"].map(|name| {
        let own = std::fs::read_to_string(format!("{net}/{name}"));
        own.or_else(|_| std::fs::read_to_string(format!("/proc/net/{name}"))).unwrap_or_default()
    });
    let sockets: Vec<u64> = lists
        .iter()
        .flat_map(|list| listeners(list))
        .filter(|(address, _)| meets(*address, wanted))
        .map(|(_, inode)| inode)
        .collect();
    let (holders, seen) = holders(&sockets);
    judge(&Facts { address, agent, holders, has_unseen: seen < sockets.len() })
}

/// Where the running agent said that it listens. One that was killed leaves its word to the next.
fn said(scene: &Scene) -> Option<SocketAddr> {
    let path = scene.folders.address_file();
    let text = std::fs::read_to_string(&path).ok()?;
    let said_at = Timestamp::try_from(path.metadata().ok()?.modified().ok()?).ok()?;
    if let Some(Told::Answered { info, .. }) = scene.info().as_deref() {
        let started_at = info.started_at.and_then(from_timestamp)?;
        return (said_at + COARSE >= started_at).then(|| text.trim().parse().ok()).flatten();
    }
    text.trim().parse().ok()
}

/// The processes that have one of these sockets open, and how many of the sockets were seen.
fn holders(sockets: &[u64]) -> (Vec<(u32, String)>, usize) {
    if sockets.is_empty() {
        return (Vec::new(), 0);
    }
    let names: Vec<String> = sockets.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let mut seen = vec![false; names.len()];
    let mut holders = Vec::new();
    for process in process::all() {
        let open = std::fs::read_dir(format!("/proc/{}/fd", process.pid)).into_iter().flatten();
        let mut is_holder = false;
        for link in open.flatten().filter_map(|entry| entry.path().read_link().ok()) {
            if let Some(place) = names.iter().position(|name| link.as_os_str() == name.as_str()) {
                (seen[place], is_holder) = (true, true);
            }
        }
        if is_holder {
            holders.push((process.pid, process.command_line()));
        }
    }
    (holders, seen.iter().filter(|seen| **seen).count())
}

/// The sockets that listen, out of `/proc/net/tcp` or `tcp6`, with their inodes.
fn listeners(list: &str) -> Vec<(SocketAddr, u64)> {
    let lines = list.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, state, _, _, _, _, _, inode, ..] = fields.as_slice() else {
            return None;
        };
        (*state == LISTENS).then_some(())?;
        Some((address(local)?, inode.parse().ok()?))
    });
    lines.collect()
}

/// An address as the kernel writes it: words of 4 bytes, each in the machine's order.
fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let word = |at: usize| {
        let word = u32::from_str_radix(host.get(at * 8..at * 8 + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let host: IpAddr = if host.len() == 8 {
        Ipv4Addr::from(word(0)?).into()
    } else {
        let mut bytes = [0; 16];
        for at in 0..4 {
            bytes[at * 4..at * 4 + 4].copy_from_slice(&word(at)?);
        }
        Ipv6Addr::from(bytes).into()
    };
    Some(SocketAddr::new(host, u16::from_str_radix(port, 16).ok()?))
}

/// Whether nobody could listen on `wanted` beside `other`.
fn meets(other: SocketAddr, wanted: SocketAddr) -> bool {
    let (a, b) = (other.ip().to_canonical(), wanted.ip().to_canonical());
    other.port() == wanted.port() && (a == b || a.is_unspecified() || b.is_unspecified())
}

fn judge(facts: &Facts) -> Finding {
    let Some(address) = facts.address else {
        return Finding::ok("it listens for no peers");
    };
    let pid = match &facts.agent {
        Agent::Runs(process) => Some(process.pid),
        Agent::Absent | Agent::Unseen(_) => None,
    };
    // systemd has it for a service that it starts on demand.
    let others: Vec<_> =
        facts.holders.iter().filter(|(holder, _)| Some(*holder) != pid && *holder != 1).collect();
    let named = |(pid, command): &(u32, String)| format!("pid {pid} ({command})");
    let is_own = facts.holders.iter().any(|(holder, _)| Some(*holder) == pid);
    if let Some(other) = others.first() {
        let found = format!("{address} is held by {}", named(other));
        return Finding::error(found)
            .hint("end it, or give the agent another port: `listen` in agent.toml");
    }
    match pid {
        Some(pid) if is_own => Finding::ok(format!("{address} is the agent's (pid {pid})")),
        _ if facts.has_unseen => {
            Finding::unknown(format!("{address} is held by a process of another user"))
                .hint("run it as root to see whose it is")
        }
        Some(pid) => Finding::error(format!("the agent (pid {pid}) does not listen on {address}"))
            .hint("look at its log, and restart it"),
        None if matches!(facts.agent, Agent::Unseen(_)) => Finding::needs_root("the agent"),
        None => Finding::ok(format!("{address} is free")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;
    use crate::process::Process;

    #[test]
    fn sockets_that_listen_are_read_from_the_kernel_s_lists() {
        let list = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            \x20  0: 0100007F:2AC6 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1\n\
            \x20  1: 0100007F:2AC6 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4243 1\n";
        assert_eq!(listeners(list), [("127.0.0.1:10950".parse().unwrap(), 4242)]);
        let six = "00000000000000000000000001000000:0016";
        assert_eq!(address(six), Some("[::1]:22".parse().unwrap()));
        let mapped = "0000000000000000FFFF00000100007F:0016";
        assert!(meets(address(mapped).unwrap(), "127.0.0.1:22".parse().unwrap()));
    }

    #[test]
    fn one_address_meets_another_of_the_same_port() {
        for (a, b, expected) in [
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "0.0.0.0:1", true),
            ("[::]:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("0.0.0.0:1", "0.0.0.0:2", false),
        ] {
            assert_eq!(meets(a.parse().unwrap(), b.parse().unwrap()), expected, "{a} {b}");
        }
    }

    #[test]
    fn a_port_is_the_agent_s_or_free_or_somebody_else_s() {
        let own = Process::read(std::process::id()).unwrap();
        let (pid, address) = (own.pid, Some("127.0.0.1:1".parse().unwrap()));
        let runs = || Agent::Runs(own.clone());
        let (mine, other) = ((pid, "baton".to_owned()), (pid + 1, "nc".to_owned()));
        let systemd = (1, "systemd".to_owned());
        for (address, agent, holders, has_unseen, verdict) in [
            (None, runs(), vec![], false, Verdict::Ok),
            (address, runs(), vec![mine.clone()], false, Verdict::Ok),
            (address, runs(), vec![systemd.clone(), mine.clone()], false, Verdict::Ok),
            (address, runs(), vec![mine, other.clone()], false, Verdict::Error),
            (address, runs(), vec![], false, Verdict::Error),
            (address, runs(), vec![], true, Verdict::Unknown),
            (address, Agent::Absent, vec![], false, Verdict::Ok),
            (address, Agent::Absent, vec![other], false, Verdict::Error),
            (address, Agent::Absent, vec![systemd], false, Verdict::Ok),
            (address, Agent::Absent, vec![], true, Verdict::Unknown),
            (address, Agent::Unseen(String::new()), vec![], false, Verdict::Unknown),
        ] {
            let facts = Facts { address, agent, holders, has_unseen };
            let finding = judge(&facts);
            assert_eq!(finding.verdict, verdict, "{finding:?}");
        }
    }
}
