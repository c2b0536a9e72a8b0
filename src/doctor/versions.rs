//! Versions: of this command, of the running agent, of the program on disk, of the system.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::asking::{AskError, ask};
use super::finding::Finding;
use super::scene::{Scene, Told};
use super::units;

/// The oldest kernel with all that baton calls.
const OLDEST_KERNEL: (u32, u32) = (5, 3);
/// What restarts an agent without a loss.
pub(super) const RESTART: &str = "restart the agent (`systemctl restart baton` where it is a service); what runs and waits goes on";

/// This command and the running agent are of one version.
pub(super) fn program(scene: &Scene) -> Finding {
    let path = std::env::current_exe().unwrap_or_default();
    let agents = match scene.info().as_deref() {
        Some(Told::Answered { info, .. }) => Some(info.version.clone()),
        _ => None,
    };
    judge_program(env!("CARGO_PKG_VERSION"), &path, agents.as_deref())
}

fn judge_program(own: &str, path: &Path, agents: Option<&str>) -> Finding {
    let found = format!("baton {own} ({})", path.display());
    match agents {
        Some(agents) if agents != own => {
            let found = format!("{found}; the running agent is {agents}");
            Finding::warning(found).hint(RESTART)
        }
        Some(_) => Finding::ok(format!("{found}, as the running agent")),
        None => Finding::ok(found),
    }
}

/// What the agent runs is what is on disk.
pub(super) fn replaced(scene: &Scene) -> Finding {
    let process = match scene.running() {
        Ok(process) => process,
        Err(finding) => return finding,
    };
    let exe = PathBuf::from(format!("/proc/{}/exe", process.pid));
    let (Ok(path), Ok(running)) = (exe.read_link(), exe.metadata()) else {
        return Finding::needs_root("the agent's program");
    };
    let name = path.to_string_lossy().into_owned();
    let name = name.strip_suffix(" (deleted)").map_or(name.clone(), str::to_owned);
    let on_disk = std::fs::metadata(&name).ok().map(|found| (found.dev(), found.ino()));
    judge_replaced(&name, (running.dev(), running.ino()), on_disk)
}

fn judge_replaced(path: &str, running: (u64, u64), on_disk: Option<(u64, u64)>) -> Finding {
    match on_disk {
        Some(on_disk) if on_disk == running => Finding::ok(format!("the agent runs {path}")),
        Some(_) => {
            Finding::warning(format!("{path} was replaced since the agent started")).hint(RESTART)
        }
        None => Finding::warning(format!("{path}, which the agent runs, is not there any more"))
            .hint("install baton again, then restart the agent: scripts start it anew"),
    }
}

/// Kernel, C library, systemd.
pub(super) fn system(_: &Scene) -> Finding {
    let uname = rustix::system::uname();
    let library = ask("getconf", &["GNU_LIBC_VERSION"]);
    let systemd = units::is_here().then(|| ask("systemctl", &["--version"]));
    judge_system(&uname.release().to_string_lossy(), &first(library), systemd.map(first).as_deref())
}

fn first(answer: Result<String, AskError>) -> String {
    let answer = answer.unwrap_or_else(|_| "not known".to_owned());
    answer.lines().next().unwrap_or_default().trim().to_owned()
}

fn judge_system(kernel: &str, library: &str, systemd: Option<&str>) -> Finding {
    let found = format!("Linux {kernel}; C library {library}; {}", systemd.unwrap_or("no systemd"));
    let mut numbers = kernel.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < OLDEST_KERNEL => {
            Finding::error(found).hint("baton needs Linux 5.3 or newer")
        }
        _ => Finding::ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn another_version_of_the_agent_is_told() {
        let path = Path::new("/b");
        for (agents, verdict) in
            [(None, Verdict::Ok), (Some("1.0.0"), Verdict::Ok), (Some("1.1.0"), Verdict::Warning)]
        {
            assert_eq!(judge_program("1.0.0", path, agents).verdict, verdict, "{agents:?}");
        }
    }

    #[test]
    fn a_program_that_was_replaced_or_removed_is_told() {
        for (on_disk, verdict) in [
            (Some((1, 2)), Verdict::Ok),
            (Some((1, 3)), Verdict::Warning),
            (None, Verdict::Warning),
        ] {
            assert_eq!(judge_replaced("/b", (1, 2), on_disk).verdict, verdict, "{on_disk:?}");
        }
    }

    #[test]
    fn an_old_kernel_is_an_error() {
        for (kernel, verdict) in [
            ("5.3.0", Verdict::Ok),
            ("5.10.0-26-amd64", Verdict::Ok),
            ("6.1", Verdict::Ok),
            ("5.2.99", Verdict::Error),
            ("4.19.0", Verdict::Error),
            ("strange", Verdict::Ok),
        ] {
            assert_eq!(judge_system(kernel, "glibc 2.36", None).verdict, verdict, "{kernel}");
        }
    }
}
