//! The agent: whether it runs, answers, takes scripts, and can write what it must remember.

use jiff::Timestamp;

use super::finding::Finding;
use super::scene::{Agent, Scene, Told};
use crate::client::{ClientError, ConnectError};
use crate::text::chain;
use crate::wire::from_timestamp;
use crate::wire::v1::InfoResponse;

/// One runs on these folders.
pub(super) fn running(scene: &Scene) -> Finding {
    let agent = scene.agent();
    let since = match scene.info().as_deref() {
        Some(Told::Answered { info, .. }) => info.started_at.and_then(from_timestamp),
        _ => None,
    };
    judge_running(&agent, since, Timestamp::now())
}

fn judge_running(agent: &Agent, since: Option<Timestamp>, now: Timestamp) -> Finding {
    let process = match agent {
        Agent::Runs(process) => process,
        Agent::Absent => {
            return Finding::warning("no agent runs on this state folder")
                .hint("`baton agent run`, or `systemctl start baton` where it is a service; `baton run` brings its own");
        }
        Agent::Unseen(why) => {
            return Finding::unknown(format!("the agent can't be seen: {why}"))
                .hint("run it as root, or as the agent's user");
        }
    };
    let pid = process.pid;
    if process.is_stopped() {
        return Finding::error(format!("pid {pid} is stopped (SIGSTOP, or a debugger)"))
            .hint(format!("`kill -CONT {pid}` lets it go on"));
    }
    match since {
        Some(since) => Finding::ok(format!("pid {pid}, for {}", span(since, now))),
        None => Finding::ok(format!("pid {pid}")),
    }
}

fn span(since: Timestamp, now: Timestamp) -> String {
    let time = std::time::Duration::try_from(now - since).unwrap_or_default();
    humantime::format_duration(std::time::Duration::from_secs(time.as_secs())).to_string()
}

/// It answers on its socket.
pub(super) fn answers(scene: &Scene) -> Finding {
    let Some(told) = scene.info() else {
        return Finding::error("the agent's socket does not answer")
            .hint("it is no socket, or its file system hangs");
    };
    judge_answer(&told, &scene.agent())
}

fn judge_answer(told: &Told, agent: &Agent) -> Finding {
    match told {
        Told::Answered { info, .. } => Finding::ok(busy(info)),
        Told::Unasked(finding) => finding.clone(),
        Told::Late => Finding::error("the agent's socket takes calls and does not answer")
            .hint("look at agent.running and at the agent's log; a restart loses no script"),
        Told::Failed(ClientError::Connect(ConnectError::NoAgent(path))) => match agent {
            Agent::Absent => Finding::ok("no agent runs"),
            Agent::Runs(process) => {
                let found =
                    format!("pid {} runs, and nobody listens on {}", process.pid, path.display());
                Finding::error(found).hint("it starts or stops just now, or its runtime folder is another one: BATON_RUNTIME_DIR, --runtime-dir; was its socket removed, restart it")
            }
            Agent::Unseen(_) => Finding::unknown(format!("nobody listens on {}", path.display())),
        },
        Told::Failed(ClientError::Connect(error @ ConnectError::NotAllowed(_))) => {
            Finding::unknown(chain(error)).hint("run it as root, or as the agent's user")
        }
        Told::Failed(error) => Finding::error(chain(error)).hint("look at the agent's log"),
    }
}

/// What it is busy with, in a line.
pub(super) fn busy(info: &InfoResponse) -> String {
    let status = info.status.clone().unwrap_or_default();
    format!(
        "{} {}: {} running, {} waiting, {} queued",
        info.name, info.version, status.running, status.waiting, status.queued
    )
}

/// It takes scripts.
pub(super) fn draining(scene: &Scene) -> Finding {
    match scene.info().as_deref() {
        Some(Told::Answered { info, .. }) => judge_draining(info),
        _ => unsaid(scene),
    }
}

/// What is to be said when the agent says nothing.
fn unsaid(scene: &Scene) -> Finding {
    scene.running().map_or_else(|finding| finding, |_| Finding::unknown("it does not answer"))
}

/// Whether an agent takes scripts.
pub(super) fn judge_draining(info: &InfoResponse) -> Finding {
    let Some(drain) = info.status.as_ref().and_then(|status| status.draining.as_ref()) else {
        return Finding::ok("it takes scripts");
    };
    let found = crate::snapshot::describe_drain(&drain.clone().into());
    Finding::warning(found).hint("`baton agent resume` lets it take scripts again")
}

/// Its database takes changes.
pub(super) fn store(scene: &Scene) -> Finding {
    match scene.info().as_deref() {
        Some(Told::Answered { info, .. }) => judge_store(info),
        _ => unsaid(scene),
    }
}

/// Whether an agent can write what it must remember.
pub(super) fn judge_store(info: &InfoResponse) -> Finding {
    match info.status.as_ref().and_then(|status| status.store_problem.as_ref()) {
        None => Finding::ok("its database takes changes, as far as it was tried"),
        Some(problem) => Finding::error(format!("its database takes no change: {}", problem.reason))
            .hint("make room on the disk of the state folder, or make it writable; the agent goes on by itself"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;
    use crate::process::Process;
    use crate::wire::v1;

    fn own() -> Process {
        Process::read(std::process::id()).unwrap()
    }

    #[test]
    fn who_does_not_run_or_can_t_be_seen_is_told() {
        let now: Timestamp = "2026-11-26T01:00:00Z".parse().unwrap();
        let since = "2026-11-26T00:00:00Z".parse().unwrap();
        let found = judge_running(&Agent::Runs(own()), Some(since), now);
        assert_eq!(found, Finding::ok(format!("pid {}, for 1h", std::process::id())));
        let absent = judge_running(&Agent::Absent, None, now);
        assert_eq!((absent.verdict, absent.hints.len()), (Verdict::Warning, 1));
        let unseen = judge_running(&Agent::Unseen("no".to_owned()), None, now);
        assert_eq!(unseen.verdict, Verdict::Unknown);
    }

    #[test]
    fn silence_is_worse_than_absence() {
        let no_agent = || Told::Failed(ConnectError::NoAgent("/s".into()).into());
        let refused = Told::Failed(ConnectError::NotAllowed("/s".into()).into());
        for (told, agent, verdict) in [
            (no_agent(), Agent::Absent, Verdict::Ok),
            (no_agent(), Agent::Runs(own()), Verdict::Error),
            (no_agent(), Agent::Unseen(String::new()), Verdict::Unknown),
            (refused, Agent::Unseen(String::new()), Verdict::Unknown),
            (Told::Late, Agent::Runs(own()), Verdict::Error),
        ] {
            assert_eq!(judge_answer(&told, &agent).verdict, verdict, "{told:?}");
        }
    }

    #[test]
    fn a_drain_is_a_warning_and_a_disk_that_takes_nothing_an_error() {
        let problem = v1::StoreProblem { since: None, reason: "disk is full".to_owned() };
        let status = v1::AgentStatus {
            draining: Some(v1::Draining::default()),
            store_problem: Some(problem),
            ..v1::AgentStatus::default()
        };
        let mut info = InfoResponse { status: Some(status), ..InfoResponse::default() };
        assert_eq!(judge_draining(&info).verdict, Verdict::Warning);
        assert!(judge_store(&info).found.contains("disk is full"));
        assert_eq!(judge_store(&info).verdict, Verdict::Error);
        info.status = None;
        assert_eq!(judge_draining(&info).verdict, Verdict::Ok);
        assert_eq!(judge_store(&info).verdict, Verdict::Ok);
    }
}
