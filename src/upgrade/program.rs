//! Whether a file is a baton program that runs here, and which version.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::UpgradeError;

/// How long a program may take to say its version.
const TRIAL_LIMIT: Duration = Duration::from_secs(10);
/// How much it may say.
const TRIAL_BYTES: u64 = 4096;
/// How long a program that another process still has open for writing is tried again: somebody just forked with
/// our descriptor.
const BUSY_LIMIT: Duration = Duration::from_secs(2);
/// The pause between those tries.
const BUSY_PAUSE: Duration = Duration::from_millis(10);
/// How much of an ELF file says for which machine it is.
const HEADER_BYTES: usize = 20;

/// A version: three numbers, and what comes before a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    numbers: [u64; 3],
    /// Empty: it is a release.
    pre: String,
}

/// A text that is no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no version")]
pub struct NoVersion(String);

impl Version {
    /// Whether it comes before another one, as semantic versioning has it.
    pub fn is_older_than(&self, other: &Self) -> bool {
        if self.numbers != other.numbers {
            return self.numbers < other.numbers;
        }
        match (self.pre.is_empty(), other.pre.is_empty()) {
            (false, true) => true,
            (true, _) => false,
            (false, false) => {
                let parts = |pre: &str| pre.split('.').map(part).collect::<Vec<_>>();
                parts(&self.pre) < parts(&other.pre)
            }
        }
    }
}

/// Numbers come before words, and are compared as numbers.
fn part(text: &str) -> (bool, u64, String) {
    text.parse().map_or_else(|_| (true, 0, text.to_owned()), |n| (false, n, String::new()))
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        if self.pre.is_empty() { Ok(()) } else { write!(f, "-{}", self.pre) }
    }
}

impl FromStr for Version {
    type Err = NoVersion;

    fn from_str(text: &str) -> Result<Self, NoVersion> {
        let none = || NoVersion(crate::text::shorten(text, 80));
        // What stands behind a plus doesn't count.
        let plain = text.split('+').next().unwrap_or_default();
        let (numbers, pre) = plain.split_once('-').map_or((plain, None), |(n, p)| (n, Some(p)));
        if pre.is_some_and(|pre| pre.is_empty() || pre.len() > 64) {
            return Err(none());
        }
        let mut parts = numbers.split('.');
        let mut number = || parts.next().and_then(|part| part.parse().ok()).ok_or_else(none);
        let numbers = [number()?, number()?, number()?];
        if parts.next().is_some() {
            return Err(none());
        }
        Ok(Self { numbers, pre: pre.unwrap_or_default().to_owned() })
    }
}

/// The version of this program.
pub fn own_version() -> Version {
    // Cargo takes nothing else.
    env!("CARGO_PKG_VERSION").parse().unwrap_or(Version { numbers: [0; 3], pre: String::new() })
}

/// Refuses what is no program for a machine like this one: this program's own header says which that is.
pub(super) fn check_header(path: &Path) -> Result<(), UpgradeError> {
    let unfit = |why: &str| UpgradeError::Unfit(why.to_owned());
    let header = read_header(path).map_err(|_| unfit("it is too short"))?;
    if !header.starts_with(b"\x7fELF") {
        return Err(unfit("it is no ELF file"));
    }
    let own = read_header(Path::new("/proc/self/exe"))
        .map_err(super::failed(Path::new("/proc/self/exe")))?;
    // Word size, byte order; then the machine.
    if header[4..6] != own[4..6] || header[18..20] != own[18..20] {
        return Err(unfit("it is for another processor"));
    }
    // Executables and shared objects: those that can be placed anywhere are the latter.
    let kind = if header[5] == 2 { header[17] } else { header[16] };
    if !matches!(kind, 2 | 3) {
        return Err(unfit("it is no executable"));
    }
    Ok(())
}

fn read_header(path: &Path) -> io::Result<[u8; HEADER_BYTES]> {
    let mut header = [0; HEADER_BYTES];
    File::open(path)?.read_exact(&mut header)?;
    Ok(header)
}

/// Lets a program say its version.
pub(super) async fn try_out(path: &Path) -> Result<Version, UpgradeError> {
    let trial = |why: String| UpgradeError::Trial(why);
    let said = tokio::time::timeout(TRIAL_LIMIT, say_version(path)).await;
    let said = said.map_err(|_| trial(format!("said nothing within {TRIAL_LIMIT:?}")))?;
    let said = said.map_err(|error| trial(error.to_string()))?;
    let word = said.trim().strip_prefix("baton ");
    let word = word.ok_or_else(|| {
        trial(format!("said {:?}, which is no version of baton", crate::text::shorten(&said, 80)))
    })?;
    word.parse().map_err(|error: NoVersion| trial(error.to_string()))
}

async fn say_version(path: &Path) -> io::Result<String> {
    let mut child = spawn(path).await?;
    let mut said = Vec::new();
    if let Some(out) = child.stdout.take() {
        out.take(TRIAL_BYTES).read_to_end(&mut said).await?;
    }
    let status = child.wait().await?;
    if !status.success() {
        return Err(io::Error::other(format!("ended with {status}")));
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}

async fn spawn(path: &Path) -> io::Result<tokio::process::Child> {
    let begun = std::time::Instant::now();
    loop {
        let mut command = Command::new(path);
        command.arg("--version").env_clear().current_dir("/").kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        #[expect(clippy::disallowed_methods, reason = "a trial, which ends by itself or is killed")]
        let spawned = command.spawn();
        match spawned {
            Err(e)
                if e.kind() == io::ErrorKind::ExecutableFileBusy
                    && begun.elapsed() < BUSY_LIMIT =>
            {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn versions_stand_in_the_order_of_semantic_versioning() {
        let order = [
            "0.1.0-alpha",
            "0.1.0-alpha.1",
            "0.1.0-alpha.2",
            "0.1.0-alpha.10",
            "0.1.0-beta",
            "0.1.0",
            "0.1.1",
            "0.2.0",
            "0.10.0",
            "1.0.0",
        ];
        for (at, older) in order.iter().enumerate() {
            for (other_at, other) in order.iter().enumerate() {
                let is_older = version(older).is_older_than(&version(other));
                assert_eq!(is_older, at < other_at, "{older} {other}");
            }
            assert_eq!(version(older).to_string(), *older);
        }
        assert!(!version("1.0.0+1").is_older_than(&version("1.0.0+2")));
        for bad in ["", "1", "1.2", "1.2.3.4", "1.2.x", "1.2.3-", "v1.2.3", "-1.2.3"] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
        assert_eq!(own_version().to_string(), env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn this_program_fits_this_machine_and_others_do_not() {
        check_header(Path::new("/proc/self/exe")).unwrap();
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("program");
        let own = std::fs::read("/proc/self/exe").unwrap();
        let header = own[..64].to_vec();
        for (at, what) in [(0, "ELF"), (4, "processor"), (18, "processor"), (16, "executable")] {
            let mut wrong = header.clone();
            wrong[at] ^= 0x40;
            crate::durable::replace_file(&path, &wrong, 0o700).unwrap();
            let error = check_header(&path).unwrap_err().to_string();
            assert!(error.contains(what), "{at} {error}");
        }
        crate::durable::replace_file(&path, b"#!/bin/sh\n", 0o700).unwrap();
        assert!(check_header(&path).unwrap_err().to_string().contains("short"));
    }

    #[tokio::test]
    async fn only_baton_says_a_version_of_baton() {
        for (program, why) in [("/bin/true", "no version of baton"), ("/bin/false", "ended with")] {
            let path = Path::new(program);
            let error = try_out(path).await.unwrap_err().to_string();
            assert!(error.contains(why) || error.contains("no version"), "{program}: {error}");
        }
        assert!(try_out(Path::new("/nowhere")).await.is_err());
    }
}
