//! `baton service status` and `list`.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::cli::failure::{Failure, complain};
use crate::cli::screen::{write_json, write_out};
use crate::cli::show::Table;
use crate::client::embedded::count_living;
use crate::client::{Client, connect};
use crate::config::Instance;
use crate::config::directories::System;
use crate::config::instance::DEFAULT_NAME;
use crate::service::ServiceError;
use crate::service::installed::{Installed, Listens, Machine};
use crate::service::systemctl::{self, UnitState};
use crate::service::unit::{mutex_folder, unit_name};
use crate::wire::v1;

/// The exit statuses of systemctl: it runs not, and there is none.
const NOT_ACTIVE: u8 = 3;
const NO_UNIT: u8 = 4;

/// Show how the service stands, as systemd and the agent itself say
///
/// Exit status: 0 it is active, 3 it is not, 4 there is none.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// Show the agents of this machine
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Print them as JSON, one a line
    #[arg(long)]
    json: bool,
}

pub(super) fn status(args: &StatusArgs, instance: Option<&Instance>) -> Result<ExitCode, Failure> {
    if !systemctl::is_there() {
        return Err(ServiceError::NoSystemd.into());
    }
    let unit = unit_name(instance);
    let state = systemctl::show(&unit)?;
    let installed =
        Machine::default().installed().into_iter().find(|a| a.instance.as_ref() == instance);
    let user = installed.as_ref().and_then(|agent| agent.user.clone());
    let folders = System::of(instance);
    let socket = folders.runtime.join("agent.sock");
    let info = crate::cli::asynchronous(async { Ok(info(socket).await) })?;
    let living = count_living(&folders.state);
    if args.json {
        let mut value = state_json(&unit, &state);
        value["instance"] = json!(instance.map_or(DEFAULT_NAME, Instance::as_str));
        value["user"] = json!(user.as_deref().unwrap_or("root"));
        value["mutex_directory"] = json!(mutex_folder(user.as_deref()));
        value["config_directory"] = json!(folders.config);
        value["state_directory"] = json!(folders.state);
        value["runtime_directory"] = json!(folders.runtime);
        value["supervised_scripts"] = json!(living);
        value["agent"] = info.as_ref().map_or(Value::Null, info_json);
        write_json(&value)?;
    } else {
        let text = describe(&unit, &state, info.as_ref(), living);
        let (user, mutexes) = (user.as_deref().unwrap_or("root"), mutex_folder(user.as_deref()));
        let more = format!(
            "user:    {user}\nmutexes: {}\nconfig:  {}\nstate:   {}\nruntime: {}\n",
            mutexes.display(),
            folders.config.display(),
            folders.state.display(),
            folders.runtime.display(),
        );
        write_out(format!("{text}{more}").as_bytes())?;
    }
    Ok(match (state.load.as_str(), state.active.as_str()) {
        ("not-found", _) => ExitCode::from(NO_UNIT),
        (_, "active" | "reloading") => ExitCode::SUCCESS,
        _ => ExitCode::from(NOT_ACTIVE),
    })
}

/// What the agent itself says; `None` when it can't be asked, by this user say.
async fn info(socket: std::path::PathBuf) -> Option<v1::InfoResponse> {
    let channel = connect::unix(&socket).await.ok()?;
    Client::new(channel).info().await.ok()
}

fn describe(
    unit: &str,
    state: &UnitState,
    info: Option<&v1::InfoResponse>,
    living: usize,
) -> String {
    let UnitState { load, active, sub, file, pid, since, restarts, status_text, result } = state;
    let mut lines = Vec::new();
    if load == "not-found" {
        lines.push(format!("{unit}: not installed"));
    } else {
        let enabled = if file.is_empty() { "not enabled" } else { file };
        let since = if since.is_empty() { String::new() } else { format!(" since {since}") };
        lines.push(format!("{unit}: {active} ({sub}){since}, {enabled}"));
    }
    if *pid != 0 {
        lines.push(format!("pid:     {pid}, restarted by systemd {restarts} times"));
    }
    if !matches!(result.as_str(), "" | "success") {
        lines.push(format!("ended:   {result}; journalctl -u {unit} -n 50 has more"));
    }
    if !status_text.is_empty() {
        lines.push(format!("says:    {status_text}"));
    }
    match info {
        Some(info) => {
            let status = info.status.clone().unwrap_or_default();
            lines.push(format!("version: {}", info.version));
            lines.push(format!(
                "scripts: {} running, {} waiting, {} queued",
                status.running, status.waiting, status.queued
            ));
        }
        None if living > 0 => lines.push(format!("scripts: {living} go on without the agent")),
        None => {}
    }
    lines.push(String::new());
    lines.join("\n")
}

fn state_json(unit: &str, state: &UnitState) -> Value {
    json!({
        "unit": unit,
        "load": state.load,
        "active": state.active,
        "sub": state.sub,
        "enabled": state.file,
        "pid": Some(state.pid).filter(|pid| *pid != 0),
        "since": state.since,
        "restarts": state.restarts,
        "status_text": state.status_text,
        "result": state.result,
    })
}

fn info_json(info: &v1::InfoResponse) -> Value {
    let status = info.status.clone().unwrap_or_default();
    json!({
        "version": info.version,
        "name": info.name,
        "running": status.running,
        "waiting": status.waiting,
        "queued": status.queued,
    })
}

pub(super) fn list(args: &ListArgs) -> Result<ExitCode, Failure> {
    let mut table = Table::new(&["INSTANCE", "UNIT", "STATE", "STARTS", "LISTENS", "USER", "SAYS"]);
    let all = Machine::default().installed();
    for agent in &all {
        let Installed { instance, enabled, user, listens } = agent;
        let name = instance.as_ref().map_or(DEFAULT_NAME, Instance::as_str);
        let unit = agent.unit();
        // Without systemd there are configurations all the same.
        let state = systemctl::show(&unit).unwrap_or_default();
        let user = user.as_deref().unwrap_or("root");
        if args.json {
            let mut value = state_json(&unit, &state);
            value["instance"] = json!(name);
            value["starts_with_machine"] = json!(enabled);
            value["listen"] = json!(agent.address());
            if let Listens::Unknown(why) = listens {
                value["problem"] = json!(why);
            }
            value["user"] = json!(user);
            write_json(&value)?;
            continue;
        }
        table.row(vec![
            name.to_owned(),
            unit,
            state.active,
            if *enabled { "with the machine" } else { "by hand" }.to_owned(),
            match listens {
                Listens::At(address) => address.to_string(),
                Listens::Nowhere => "no port".to_owned(),
                Listens::Unknown(_) => "unknown".to_owned(),
            },
            user.to_owned(),
            state.status_text,
        ]);
    }
    if all.is_empty() && !args.json {
        write_out(b"no agent is installed; `baton service install` installs one\n")?;
    } else if !args.json {
        write_out(table.render().as_bytes())?;
        for agent in &all {
            if let Listens::Unknown(why) = &agent.listens {
                complain(&format!(
                    "baton: the configuration of {} can't be read: {why}",
                    agent.unit()
                ));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
