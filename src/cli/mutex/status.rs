//! `baton mutex status`: who holds, who waits, who has the plain lock without baton.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::watch;
use crate::cli::failure::{Failure, code};
use crate::cli::screen::{write_json, write_out};
use crate::cli::show::{self, Table};
use crate::mutex::breaking::{self, Break};
use crate::mutex::locks::LockOwner;
use crate::mutex::status::{self, Standing, Status};
use crate::mutex::{Mode, MutexError, MutexName, Party};
use crate::process::Process;
use crate::snapshot;

const EXAMPLES: &str = "\
Examples:
  baton mutex status              all mutexes that somebody holds or wants
  baton mutex status log          one of them
  baton mutex status --json       one line of JSON for each
  baton mutex status --watch      shown again whenever something changes, until Ctrl-C
  baton mutex status --watch --json log | while read -r line; do …

--watch looks at once when a line changes, and once a second for what gives no event: who has only
the plain lock. On a terminal it shows the table in place; elsewhere it prints on changes only, with
--json one line for each mutex that changed, also when it became free. What lasted for less than a
moment may be left out.";

/// Show who holds a mutex, who waits, and who has its plain lock without baton
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct StatusArgs {
    /// The mutex. Default: all that are not free
    name: Option<MutexName>,
    /// Print JSON, one line for each mutex
    #[arg(long)]
    json: bool,
    /// Go on showing it, on each change
    #[arg(long, short)]
    watch: bool,
}

pub(super) fn status(args: &StatusArgs, root: &Path) -> Result<ExitCode, Failure> {
    if args.watch {
        return watch::watch(root, args.name.as_ref(), args.json);
    }
    let names = match &args.name {
        Some(name) => vec![name.clone()],
        None => status::names(root)?,
    };
    let mut all = Vec::new();
    for name in &names {
        all.push(status::status(root, name)?);
    }
    if args.name.is_none() {
        all.retain(|status| !status.is_free());
    }
    if args.json {
        for status in &all {
            write_json(&status_json(status, root))?;
        }
    } else {
        write_out(text(&all, args.name.as_ref(), root).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The table; of the one mutex that was `asked` for, also when it was broken last.
pub(super) fn text(all: &[Status], asked: Option<&MutexName>, root: &Path) -> String {
    let mut text = render(all, &root.display().to_string());
    if let Some(name) = asked {
        // One that is under way is not over.
        let is_over = |broken: &Break| all.iter().all(|s| !s.has_ticket(broken.ticket));
        let broken = breaking::last_break(root, name).filter(is_over);
        text.extend(broken.map(|broken| last_break(&broken)));
    }
    text
}

fn render(all: &[Status], root: &str) -> String {
    if all.iter().all(Status::is_free) {
        return format!("nobody holds or wants a mutex in {root}\n");
    }
    let mut table = Table::new(&["MUTEX", "STATE", "FOR", "MODE", "TICKET", "WHO"]);
    for status in all {
        let name = status.name.to_string();
        for foreign in &status.foreign {
            let mode = if foreign.exclusive { "exclusive" } else { "shared" };
            let row = ["holds", "-", mode, "-"].map(str::to_owned);
            table.row([name.clone()].into_iter().chain(row).chain([outsider(foreign)]).collect());
        }
        for standing in status.holders() {
            table.row(row(&name, "holds".to_owned(), standing));
        }
        for (place, standing) in (1..).zip(status.waiters()) {
            table.row(row(&name, format!("waits #{place}"), standing));
        }
    }
    table.render()
}

fn last_break(broken: &Break) -> String {
    let Break { ticket, reason, by_user, at, .. } = broken;
    let at = at.strftime("%Y-%m-%d %H:%M:%S UTC");
    format!("last broken: ticket {ticket}, {at}, by {by_user}: {reason}\n")
}

fn row(name: &str, state: String, standing: &Standing) -> Vec<String> {
    let Standing { ticket, mode, who } = standing;
    let since = who.holds_since.unwrap_or(who.waits_since);
    let party = Party { who: who.clone(), exclusive: mode.is_exclusive() };
    let (mut for_how_long, mode) = (show::since(since), mode_name(*mode));
    if let Some(limit) = who.overdue(Timestamp::now()) {
        let limit = humantime::format_duration(limit).to_string().replace(' ', "");
        write!(for_how_long, " (over {limit})").unwrap_or_default();
    }
    let mut who = snapshot::describe(&party);
    if Process::read(standing.who.pid).is_none_or(|process| process.is_zombie()) {
        who.push_str(" (that process is gone; what it started has it: `mutex break` ends that)");
    }
    vec![name.to_owned(), state, for_how_long, mode, ticket.to_string(), who]
}

/// A process that takes part without a line, in words.
pub(in crate::cli) fn outsider(foreign: &LockOwner) -> String {
    let command = if foreign.command.is_empty() { "ended" } else { &foreign.command };
    format!("pid {} ({command}), without baton", foreign.pid)
}

fn mode_name(mode: Mode) -> String {
    match mode {
        Mode::Exclusive => "exclusive".to_owned(),
        Mode::Shared => "shared".to_owned(),
        Mode::AtMost(n) => format!("shared ≤{n}"),
    }
}

/// A mutex as JSON.
pub(super) fn status_json(status: &Status, root: &Path) -> Value {
    let foreign = status.foreign.iter().map(|LockOwner { pid, command, exclusive }| {
        json!({"pid": pid, "command": command, "exclusive": exclusive})
    });
    let mut value = json!({
        "mutex": status.name,
        "holders": status.holders().iter().map(standing_json).collect::<Vec<_>>(),
        "waiters": status.waiters().iter().map(standing_json).collect::<Vec<_>>(),
        "foreign": foreign.collect::<Vec<_>>(),
    });
    if let Some(broken) = breaking::last_break(root, &status.name) {
        value["last_break"] = json!(broken);
    }
    value
}

fn standing_json(standing: &Standing) -> Value {
    let party = Party { who: standing.who.clone(), exclusive: standing.mode.is_exclusive() };
    let mut value = show::party_json(&party);
    value["ticket"] = json!(standing.ticket);
    if let Mode::AtMost(n) = standing.mode {
        value["at_most"] = json!(n);
    }
    if standing.who.overdue(Timestamp::now()).is_some() {
        value["overdue"] = json!(true);
    }
    value
}

const OF_ONE_USER: &str = "a mutex is for processes of one user; BATON_MUTEX_DIR names the folder";

/// What to do about a folder that the system does not let be used.
fn io_hint(kind: ErrorKind) -> Option<&'static str> {
    if kind == ErrorKind::PermissionDenied {
        Some(OF_ONE_USER)
    } else if kind == ErrorKind::ReadOnlyFilesystem {
        Some("its file system is read-only; BATON_MUTEX_DIR names another folder")
    } else if matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
        Some("make room on its file system; BATON_MUTEX_DIR names another folder")
    } else {
        None
    }
}

impl From<MutexError> for Failure {
    fn from(error: MutexError) -> Self {
        let hint = match &error {
            MutexError::Unsafe { mode, .. } if mode & 0o022 == 0 => Some(OF_ONE_USER.to_owned()),
            MutexError::Unsafe { path, .. } => {
                Some(format!("chmod go-w {}, or set BATON_MUTEX_DIR", path.display()))
            }
            MutexError::Strange { .. } => {
                Some("nothing of baton's made it: look at it, then remove it".to_owned())
            }
            MutexError::Folder { source, .. } | MutexError::File { source, .. } => {
                io_hint(source.kind()).map(str::to_owned)
            }
            MutexError::Newer { .. }
            | MutexError::Guard { .. }
            | MutexError::Lend(_)
            | MutexError::Survivors(_)
            | MutexError::Deadlock(_)
            | MutexError::Wake(_) => None,
        };
        hint.into_iter().fold(Self::new(code::INTERNAL, error), Self::hint)
    }
}
