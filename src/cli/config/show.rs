//! `baton config show`: each key, its value, and where that comes from. Of the agent that runs, if one does:
//! only that one knows its environment and flags, and what it has not taken yet.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use tonic::Code;

use super::{origin_json, warn_of};
use crate::cli::failure::{Failure, code, complain};
use crate::cli::reach::Reach;
use crate::cli::screen::{write_json, write_out};
use crate::cli::show::{Table, toml_as_json};
use crate::client::ClientError;
use crate::config::{Applies, Directories, Key, Origin, Overrides, Sources};
use crate::wire::{WireError, v1};

/// Show each key, its value, and where that comes from
///
/// If an agent runs it is asked: what it has now, and what it would have after `baton agent reload` or a
/// restart. Otherwise it is what an agent that is started from here would have.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  baton config show
  baton config show grace retention
  baton config show --no-agent
  baton config show --target web-1
  baton config show --json | jq 'select(.pending)'")]
pub(super) struct ShowArgs {
    /// Only these keys, or those of these tables
    #[arg(value_name = "KEY")]
    keys: Vec<String>,
    #[command(flatten)]
    reach: Reach,
    /// What an agent that is started from here would have, also when one runs
    #[arg(long, conflicts_with = "target")]
    no_agent: bool,
    /// Print them as JSON, one key a line
    #[arg(long)]
    json: bool,
}

/// What is shown.
struct Shown {
    /// Of whom it is.
    whose: String,
    rows: Vec<Row>,
    /// Why the agent can't read its configuration again.
    problem: Option<String>,
}

/// A key.
struct Row {
    key: String,
    value: String,
    origin: Origin,
    /// What it will have, and from where.
    pending: Option<(String, Origin)>,
}

pub(super) async fn show(args: ShowArgs, folders: Directories) -> Result<ExitCode, Failure> {
    let ShowArgs { keys, reach, no_agent, json } = args;
    for key in &keys {
        check_name(key)?;
    }
    let mut shown = if no_agent { here(&folders)? } else { asked(&reach, &folders).await? };
    let is_wanted = |row: &Row| {
        let is_in = |name: &String| {
            row.key
                .strip_prefix(name.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        keys.is_empty() || keys.iter().any(is_in)
    };
    shown.rows.retain(is_wanted);
    if json {
        for row in &shown.rows {
            write_json(&row.json())?;
        }
    } else {
        write_out(shown.text().as_bytes())?;
    }
    match shown.problem {
        None => Ok(ExitCode::SUCCESS),
        Some(problem) => {
            let text = format!("the agent can't read its configuration again: {problem}");
            Err(Failure::new(code::REFUSED, anyhow::Error::msg(text)))
        }
    }
}

fn check_name(name: &str) -> Result<(), Failure> {
    let tables = Key::all().iter().filter_map(|key| Some(key.name.split_once('.')?.0));
    let mut known = Key::all().iter().map(|key| key.name).chain(tables);
    if known.clone().any(|known| known == name) {
        return Ok(());
    }
    let hint = crate::text::did_you_mean(name, known.by_ref());
    let hint = hint.unwrap_or_else(|| "`baton config example` has all of them".to_owned());
    Err(Failure::usage(format!("key {name:?} is not known")).hint(hint))
}

/// What an agent has; when none runs here, what one would have.
async fn asked(reach: &Reach, folders: &Directories) -> Result<Shown, Failure> {
    let Some(client) = reach.client_if_any(folders).await? else {
        return here(folders);
    };
    match client.config().await {
        Ok(response) => Ok(Shown::of_agent(response)?),
        Err(ClientError::Refused { code: Code::Unimplemented, .. }) if reach.is_here() => {
            complain(
                "baton: the agent that runs is older and can't tell; one started now would have",
            );
            here(folders)
        }
        Err(error) => Err(error.into()),
    }
}

/// What an agent would have that is started from here.
fn here(folders: &Directories) -> Result<Shown, Failure> {
    let sources = Sources::of(&folders.config, Overrides::default());
    let layers = sources.read()?;
    warn_of(&layers.mistyped);
    let whose =
        format!("what an agent would have that is started now: {}", sources.path().display());
    let row = |key: &Key| Row {
        key: key.name.to_owned(),
        value: key.value(&layers.config),
        origin: layers.origin(key).clone(),
        pending: None,
    };
    Ok(Shown { whose, rows: Key::all().iter().map(row).collect(), problem: None })
}

impl Shown {
    fn of_agent(response: v1::ConfigResponse) -> Result<Self, ClientError> {
        let v1::ConfigResponse { file, keys, problem } = response;
        let rows = keys.into_iter().map(Row::try_from).collect::<Result<_, WireError>>()?;
        let whose = format!("what the running agent has: {file}");
        Ok(Self { whose, rows, problem: Some(problem).filter(|problem| !problem.is_empty()) })
    }

    /// As people see it.
    fn text(&self) -> String {
        let is_pending = self.rows.iter().any(|row| row.pending.is_some());
        let header = ["KEY", "VALUE", "FROM", "NOT YET"];
        let mut table = Table::new(&header[..if is_pending { 4 } else { 3 }]);
        for row in &self.rows {
            let mut cells = vec![row.key.clone(), row.value.clone(), row.origin.to_string()];
            if is_pending {
                cells.push(row.pending_text());
            }
            table.row(cells);
        }
        format!("# {}\n{}", self.whose, table.render())
    }
}

impl TryFrom<v1::ConfigKey> for Row {
    type Error = WireError;

    fn try_from(message: v1::ConfigKey) -> Result<Self, WireError> {
        let v1::ConfigKey { key, value, origin, pending } = message;
        let origin = Origin::try_from(origin.ok_or(WireError::Field("origin"))?)?;
        let pending = pending.map(|v1::ConfigPending { value, origin }| {
            let origin = origin.ok_or(WireError::Field("pending.origin"))?;
            Ok::<_, WireError>((value, Origin::try_from(origin)?))
        });
        Ok(Self { key, value, origin, pending: pending.transpose()? })
    }
}

impl Row {
    /// What makes another value take effect; a key that is not known here belongs to a newer agent.
    fn applies(&self) -> Option<&'static str> {
        Key::named(&self.key).map(|key| applies(key.applies))
    }

    fn pending_text(&self) -> String {
        let Some((value, origin)) = &self.pending else {
            return String::new();
        };
        let when = self.applies().unwrap_or("restart");
        format!("{value} after a {when} ({origin})")
    }

    fn json(&self) -> Value {
        let pending = self.pending.as_ref().map(
            |(value, origin)| json!({"value": toml_as_json(value), "from": origin_json(origin)}),
        );
        json!({
            "key": self.key,
            "value": toml_as_json(&self.value),
            "from": origin_json(&self.origin),
            "environment": Key::named(&self.key).map(Key::variable),
            "applies": self.applies(),
            "pending": pending,
        })
    }
}

/// What makes another value take effect, in a word.
fn applies(applies: Applies) -> &'static str {
    match applies {
        Applies::AtReload => "reload",
        Applies::AtStart => "restart",
    }
}
