//! systemd's own commands.

use std::io;
use std::path::Path;
use std::process::Command;

use super::ServiceError;

/// Where systemd says that it runs the machine.
const RUNS: &str = "/run/systemd/system";

/// Whether systemd runs this machine.
pub fn is_there() -> bool {
    Path::new(RUNS).is_dir()
}

/// Runs a command to its end; what it says on its standard error goes to ours.
///
/// # Errors
/// When it can't be run, or fails.
pub fn run(words: &[String]) -> Result<(), ServiceError> {
    let said = || words.join(" ");
    let [program, arguments @ ..] = words else { return Ok(()) };
    let status = Command::new(program).args(arguments).status();
    let status = status.map_err(|source| ServiceError::Command { command: said(), source })?;
    if status.success() {
        return Ok(());
    }
    Err(ServiceError::Failed { command: said(), code: status.code().unwrap_or(-1) })
}

/// What a unit is, as systemd knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitState {
    /// `loaded`, `not-found` …
    pub load: String,
    /// `active`, `inactive`, `failed`, `activating` …
    pub active: String,
    /// The same in more detail.
    pub sub: String,
    /// `enabled`, `disabled` …
    pub file: String,
    /// The agent's process; 0: none.
    pub pid: u32,
    /// Since when it is so, as systemd writes it.
    pub since: String,
    /// How often it was started again by itself.
    pub restarts: u32,
    /// What the agent says of itself; empty when none runs: systemd keeps what the last one said.
    pub status_text: String,
    /// How it ended, if it did.
    pub result: String,
}

/// Asks for it.
///
/// # Errors
/// When there is no systemctl.
pub fn show(unit: &str) -> Result<UnitState, ServiceError> {
    let properties = "LoadState,ActiveState,SubState,UnitFileState,MainPID,StateChangeTimestamp,\
                      NRestarts,StatusText,Result";
    let output = Command::new("systemctl").args(["show", unit, "--property", properties]).output();
    let command = || format!("systemctl show {unit}");
    let output = output.map_err(|source| ServiceError::Command { command: command(), source })?;
    if !output.status.success() {
        return Err(ServiceError::Command {
            command: command(),
            source: io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        });
    }
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

fn parse(text: &str) -> UnitState {
    let mut state = UnitState::default();
    for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
        let value = value.to_owned();
        match key {
            "LoadState" => state.load = value,
            "ActiveState" => state.active = value,
            "SubState" => state.sub = value,
            "UnitFileState" => state.file = value,
            "MainPID" => state.pid = value.parse().unwrap_or(0),
            "StateChangeTimestamp" => state.since = value,
            "NRestarts" => state.restarts = value.parse().unwrap_or(0),
            "StatusText" => state.status_text = value,
            "Result" => state.result = value,
            _ => {}
        }
    }
    if state.pid == 0 {
        state.status_text.clear();
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemd_says_is_read_also_in_part() {
        let state =
            parse("LoadState=loaded\nActiveState=active\nMainPID=7\nStatusText=a=b\nNew=1\n");
        assert_eq!((state.active.as_str(), state.pid), ("active", 7));
        assert_eq!((state.status_text.as_str(), state.restarts), ("a=b", 0));
        assert_eq!(parse("ActiveState=inactive\nMainPID=0\nStatusText=idle\n").status_text, "");
    }
}
