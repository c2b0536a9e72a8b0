//! A real etcd of a test: on loopback, with a folder and ports of its own.

#![allow(clippy::print_stderr, reason = "what is left out is said")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use super::{DEADLINE, World, signal, spawn, write};

/// Set where a machine without etcd is a failure, and no reason to skip.
const REQUIRED: &str = "BATON_TEST_REQUIRE_ETCD";
/// How often other ports are tried: somebody else may take one that was free.
const TRIES: u32 = 3;

/// A running etcd, of one member.
pub struct Etcd {
    /// What starts it.
    words: Vec<String>,
    child: Child,
    url: String,
}

impl Etcd {
    /// Starts one; says why the test is skipped where there is none.
    pub fn start(world: &World) -> Option<Self> {
        Self::start_at(world, &[], "127.0.0.1")
    }

    /// Starts one that speaks TLS; returns also the file of its authority.
    pub fn start_tls(world: &World) -> Option<(Self, PathBuf)> {
        let names = vec!["127.0.0.1".to_owned()];
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(names).unwrap();
        let [certificate, key] = ["etcd.pem", "etcd.key"].map(|name| world.path(name));
        write(&certificate, &cert.pem());
        write(&key, &signing_key.serialize_pem());
        let tls = [("--cert-file", &certificate), ("--key-file", &key)];
        let options = tls.map(|(name, path)| format!("{name}={}", path.display()));
        Some((Self::start_as(world, &[], "https://127.0.0.1", &options)?, certificate))
    }

    /// Starts one at an address, behind the words of another command, `ip netns exec NAME` say.
    pub fn start_at(world: &World, words: &[&str], address: &str) -> Option<Self> {
        Self::start_as(world, words, &format!("http://{address}"), &[])
    }

    fn start_as(world: &World, words: &[&str], host: &str, options: &[String]) -> Option<Self> {
        let Ok(version) = Command::new("etcd").arg("--version").output() else {
            assert!(
                std::env::var_os(REQUIRED).is_none(),
                "{REQUIRED} is set, and there is no etcd"
            );
            eprintln!("skipped: there is no etcd on this machine (Debian: etcd-server)");
            return None;
        };
        assert!(version.status.success(), "{version:?}");
        let folder = world.path("etcd");
        let started = (0..TRIES).find_map(|number| {
            let folder = folder.join(number.to_string());
            let (mut words, url) = command(words, &folder, host);
            words.extend_from_slice(options);
            Some(Self { child: await_start(&words)?, words, url })
        });
        Some(started.unwrap())
    }

    /// Where its clients find it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Removes all keys, as an operator may.
    pub fn remove_all_keys(&self) {
        let address = self.url.trim_start_matches("http://");
        // From NUL to NUL: all keys.
        let body = r#"{"key": "AA==", "range_end": "AA=="}"#;
        let head = format!(
            "POST /v3/kv/deleterange HTTP/1.0\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all((head + body).as_bytes()).unwrap();
        let answer = std::io::read_to_string(stream).unwrap();
        assert!(answer.contains("\"deleted\":"), "{answer}");
    }

    /// Stops it: its connections stay, and nothing answers.
    pub fn pause(&self) {
        signal(&self.child, Signal::STOP);
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        signal(&self.child, Signal::CONT);
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it anew with what it had on disk.
    pub fn restart(&mut self) {
        self.child = await_start(&self.words).unwrap();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        drop(self.child.wait());
    }
}

fn command(words: &[&str], folder: &Path, host: &str) -> (Vec<String>, String) {
    let ports = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [client, peer] = ports.each_ref().map(|port| port.local_addr().unwrap().port());
    let (url, peer) = (format!("{host}:{client}"), format!("http://127.0.0.1:{peer}"));
    let options = [
        ("--data-dir", folder.display().to_string()),
        ("--listen-client-urls", url.clone()),
        ("--advertise-client-urls", url.clone()),
        ("--listen-peer-urls", peer.clone()),
        ("--initial-advertise-peer-urls", peer.clone()),
        ("--initial-cluster", format!("default={peer}")),
        // A cluster of one elects itself at once.
        ("--heartbeat-interval", "20".to_owned()),
        ("--election-timeout", "200".to_owned()),
        ("--logger", "zap".to_owned()),
        ("--log-outputs", "stderr".to_owned()),
    ];
    let mut all: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    all.push("etcd".to_owned());
    all.extend(options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
    (all, url)
}

/// Starts it, and waits until it serves; `None` when it ended before.
fn await_start(words: &[String]) -> Option<Child> {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = spawn(&mut command);
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    loop {
        let start = said.len();
        if log.read_line(&mut said).unwrap() == 0 {
            child.wait().unwrap();
            eprintln!("etcd ended: {said}");
            return None;
        }
        if said[start..].contains("serving client traffic") {
            break;
        }
    }
    // From now on the log is read and kept out of the way.
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    Some(child)
}
