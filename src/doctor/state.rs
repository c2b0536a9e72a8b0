//! What the agent remembers: the database, and the workspaces of scripts.

use std::io::ErrorKind;
use std::time::Duration;

use super::finding::Finding;
use super::scene::{Agent, Scene};
use crate::script::ScriptId;
use crate::store::{self, Inspection, StoreError};
use crate::text::chain;

/// How long the database is read.
const READ_LIMIT: Duration = Duration::from_secs(3);
/// What is done with a damaged database.
const DAMAGED: &str = "stop the agent, keep a copy of agent.db*, and try `sqlite3 agent.db .recover`; with a fresh one the agent knows nothing of its scripts";

/// It can be read, is whole, and of a version that is known.
pub(super) fn database(scene: &Scene) -> Finding {
    match inspect(scene) {
        Ok(None) => Finding::ok("none yet"),
        Ok(Some(inspection)) => judge_database(&inspection),
        Err(error) => refused(&error),
    }
}

fn inspect(scene: &Scene) -> Result<Option<Inspection>, StoreError> {
    let path = scene.folders.state.join("agent.db");
    match path.symlink_metadata() {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        // SQLite says it of one that may not be reached.
        _ => {}
    }
    let is_in_use = scene.agent() != Agent::Absent;
    store::inspect(&path, is_in_use, READ_LIMIT).map(Some)
}

fn refused(error: &StoreError) -> Finding {
    use rusqlite::ErrorCode;
    let is = |codes: [ErrorCode; 2]| {
        matches!(error, StoreError::Open { source, .. }
            if source.sqlite_error_code().is_some_and(|code| codes.contains(&code)))
    };
    if is([ErrorCode::CannotOpen, ErrorCode::PermissionDenied]) {
        return Finding::needs_root("the agent's database");
    }
    if is([ErrorCode::DatabaseBusy, ErrorCode::DatabaseLocked]) {
        return Finding::unknown("the database is locked just now");
    }
    Finding::error(chain(error)).hint(DAMAGED)
}

fn judge_database(inspection: &Inspection) -> Finding {
    let Inspection { version, known, problems, is_whole, ids } = inspection;
    if version > known {
        return Finding::error(format!("it has version {version}, this baton knows up to {known}"))
            .hint("a newer baton wrote it: install that one again");
    }
    if !problems.is_empty() {
        return Finding::error(format!("it is damaged: {}", problems.join("; "))).hint(DAMAGED);
    }
    if version < known {
        let found = format!("version {version}; the agent brings it to {known} when it starts");
        return Finding::ok(found);
    }
    if !is_whole {
        return Finding::unknown(format!(
            "version {version}; it is too large to read it all at once"
        ))
        .hint("with the agent stopped: sqlite3 agent.db 'PRAGMA integrity_check'");
    }
    Finding::ok(format!("whole, version {version}, {} scripts", ids.len()))
}

/// No workspace without a script.
pub(super) fn workspaces(scene: &Scene) -> Finding {
    // First the folders: a script is in the database before it has one.
    let entries = match std::fs::read_dir(scene.folders.state.join("scripts")) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Finding::ok("none yet"),
        Err(_) => return Finding::needs_root("workspaces"),
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let names: Vec<String> = names.filter(|name| name.parse::<ScriptId>().is_ok()).collect();
    match inspect(scene) {
        Ok(Some(inspection)) if inspection.version == inspection.known => {
            let known = |name: &&String| !inspection.ids.contains(name);
            judge_workspaces(names.len(), names.iter().filter(known).count(), &scene.agent())
        }
        Ok(_) | Err(_) => Finding::unknown(format!(
            "{} folders; whose they are is not known without the database",
            names.len()
        )),
    }
}

fn judge_workspaces(count: usize, left: usize, agent: &Agent) -> Finding {
    match (left, agent) {
        (0, _) => Finding::ok(format!("{count}, each of a known script")),
        (_, Agent::Absent) => Finding::ok(format!(
            "{left} of {count} are of no known script; the agent removes them when it starts"
        )),
        _ => Finding::warning(format!("{left} of {count} are of no known script"))
            .hint("the agent removes them when it starts: restart it when that suits"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn damage_and_a_newer_version_are_errors_and_an_older_one_is_none() {
        let well =
            Inspection { version: 3, known: 3, problems: vec![], is_whole: true, ids: vec![] };
        for (inspection, verdict) in [
            (well.clone(), Verdict::Ok),
            (Inspection { version: 2, ..well.clone() }, Verdict::Ok),
            (Inspection { version: 4, ..well.clone() }, Verdict::Error),
            (Inspection { problems: vec!["page 7".to_owned()], ..well.clone() }, Verdict::Error),
            (Inspection { is_whole: false, ..well.clone() }, Verdict::Unknown),
        ] {
            assert_eq!(judge_database(&inspection).verdict, verdict, "{inspection:?}");
        }
    }

    #[test]
    fn workspaces_that_a_running_agent_left_are_a_warning() {
        let runs = Agent::Runs(crate::process::Process::read(std::process::id()).unwrap());
        for (left, agent, verdict) in [
            (0, &runs, Verdict::Ok),
            (1, &runs, Verdict::Warning),
            (1, &Agent::Absent, Verdict::Ok),
        ] {
            assert_eq!(judge_workspaces(3, left, agent).verdict, verdict, "{left} {agent:?}");
        }
    }
}
