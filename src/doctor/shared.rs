//! Whether the agent, its scripts and this command mean the same mutexes: in a unit with `PrivateTmp`, or in a
//! container, the same path is another folder.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::finding::{Finding, Verdict};
use super::scene::{Scene, Told};
use crate::process::Process;

/// How many supervisors are looked at.
const MAX_SUPERVISORS: usize = 20;
/// Folders that a unit with `PrivateTmp` has for itself.
const PRIVATE: [&str; 2] = ["/tmp", "/var/tmp"];

/// Another process's view of the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
enum View {
    /// It is the same one.
    Same,
    /// It is another one, or none.
    Other,
    /// This user may not see it.
    Unseen,
}

/// All mean the same folder.
pub(super) fn shared(scene: &Scene) -> Finding {
    let folder = &scene.mutexes();
    let owner = scene.owner().map(|owner| owner.name);
    let owner = owner.as_deref();
    let agents = match scene.info().as_deref() {
        Some(Told::Answered { info, .. }) => Some(info.mutex_directory.clone()),
        _ => None,
    };
    let process = match scene.running() {
        Ok(process) => process,
        Err(finding) if finding.verdict == Verdict::Ok => return judge(folder, None, owner, &[]),
        Err(finding) => return finding,
    };
    let mut views = vec![(format!("the agent (pid {})", process.pid), view(&process, folder))];
    for supervisor in supervisors(&scene.folders.state) {
        views.push((format!("the supervisor pid {}", supervisor.pid), view(&supervisor, folder)));
    }
    judge(folder, agents.as_deref(), owner, &views)
}

/// The supervisors of what runs, as their workspaces name them.
fn supervisors(state: &Path) -> Vec<Process> {
    let folders = std::fs::read_dir(state.join("scripts")).into_iter().flatten().flatten();
    let living = folders.filter_map(|folder| {
        let pid = std::fs::read_to_string(folder.path().join("supervisor")).ok()?;
        let process = Process::read(pid.trim().parse().ok()?)?;
        // The number may be another process's by now.
        process.command_line().ends_with("supervise").then_some(process)
    });
    living.take(MAX_SUPERVISORS).collect()
}

fn view(process: &Process, folder: &Path) -> View {
    let Ok(own) = folder.metadata() else {
        return View::Same;
    };
    let root = format!("/proc/{}/root", process.pid);
    let below = folder.strip_prefix("/").unwrap_or(folder);
    match Path::new(&root).join(below).metadata() {
        Ok(found) if (found.dev(), found.ino()) == (own.dev(), own.ino()) => View::Same,
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => View::Unseen,
        Ok(_) | Err(_) => View::Other,
    }
}

/// `owner`: who runs the service, if not root.
fn judge(
    folder: &Path,
    agents: Option<&str>,
    owner: Option<&str>,
    views: &[(String, View)],
) -> Finding {
    let shown = folder.display();
    if let Some(agents) = agents
        && Path::new(agents) != folder
    {
        let found = format!("the agent's mutexes are in {agents}, this command's in {shown}");
        return Finding::error(found)
            .hint("they don't exclude each other: give both the same BATON_MUTEX_DIR");
    }
    let mut findings = Vec::new();
    for (who, view) in views {
        match view {
            View::Same => {}
            View::Other => findings.push(
                Finding::error(format!("for {who} {shown} is another folder"))
                    .hint("it has file systems of its own (PrivateTmp=, a container): name a folder that all see in BATON_MUTEX_DIR, or set PrivateTmp=no"),
            ),
            View::Unseen => findings.push(Finding::needs_root(&format!("what {who} sees"))),
        }
    }
    if PRIVATE.iter().any(|private| folder.starts_with(private)) && views.is_empty() {
        findings.push(
            Finding::warning(format!(
                "{shown} is below a folder that a unit with PrivateTmp= has for itself"
            ))
            .hint("name a folder outside of /tmp in BATON_MUTEX_DIR, below /run say"),
        );
    }
    if findings.is_empty() {
        let found = match views.len() {
            0 => format!("{shown}; no agent runs that could see another folder"),
            1 => format!("{shown} is the same for the agent"),
            _ => format!("{shown} is the same for the agent and what runs under it"),
        };
        return Finding::ok(match owner {
            Some(owner) => {
                format!("{found}; it is for user {owner}, what root runs is not excluded")
            }
            None => found,
        });
    }
    Finding::all(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_folder_under_the_same_path_is_an_error() {
        let run = Path::new("/run/lock/baton");
        let views =
            |view| vec![("the agent".to_owned(), View::Same), ("a supervisor".to_owned(), view)];
        for (folder, agents, views, verdict) in [
            (run, None, vec![], Verdict::Ok),
            (Path::new("/tmp/m"), None, vec![], Verdict::Warning),
            (Path::new("/tmp/m"), Some("/tmp/m"), views(View::Same), Verdict::Ok),
            (run, Some("/run/lock/baton"), views(View::Same), Verdict::Ok),
            (run, Some("/run/lock/other"), views(View::Same), Verdict::Error),
            (run, Some("/run/lock/baton"), views(View::Other), Verdict::Error),
            (run, Some("/run/lock/baton"), views(View::Unseen), Verdict::Unknown),
        ] {
            let finding = judge(folder, agents, None, &views);
            assert_eq!(finding.verdict, verdict, "{finding:?}");
        }
        let of_a_user = judge(run, None, Some("deploy"), &views(View::Same));
        assert_eq!(of_a_user.verdict, Verdict::Ok);
        assert!(of_a_user.found.contains("for user deploy"), "{of_a_user:?}");
    }
}
