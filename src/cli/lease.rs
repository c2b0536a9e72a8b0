//! `baton lease`: holding a machine over several scripts.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::{Failure, code, complain};
use super::reach::Reach;
use super::screen::{write_json, write_out};
use super::show::{self, Table};
use super::{key_value, time_limit};
use crate::client::{Client, Heard, Lease, LeaseWish};
use crate::config::Directories;
use crate::mutex::{ExclusiveKey, MutexName};
use crate::script::{Phase, ScriptId};
use crate::snapshot::{Snapshot, Wait, clock};
use crate::spec::OnLeaseEnd;

const EXAMPLES: &str = "\
Examples:
  id=$(baton lease open --reason 'release 7')     returns when the machine is this caller's
  baton run --lease $id stop.sh && baton run --lease $id migrate.sh
  baton lease close $id
  baton lease list                                who holds, and for how long still";

const OPEN_EXAMPLES: &str = "\
Examples:
  id=$(baton lease open --ttl 10m --label project=web --reason 'release 7')
  baton lease open --hold --target web-1          renews it until Ctrl-C, then closes it
  baton lease open --id web-7 --no-wait           asks for it; `baton queue` shows where it stands

Without --hold it must be renewed within --ttl, by `baton lease renew`: else it ends, and says so.
Exit status: 0, 1 it ended before it was open or while it was held, 130 Ctrl-C.";

/// Hold a machine over several scripts, so that nobody else's come between
///
/// A lease waits in line as a script does. Scripts that name it (`baton run --lease`) run one after
/// the other without queueing again. It ends when it is closed, or when nothing was heard of its
/// client for its time-to-live.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct LeaseArgs {
    #[command(subcommand)]
    command: LeaseCommand,
}

#[derive(Debug, Subcommand)]
enum LeaseCommand {
    Open(OpenArgs),
    Renew(RenewArgs),
    Close(CloseArgs),
    List(ListArgs),
}

/// Open a lease, and print its id when the machine is held
#[derive(Debug, Args)]
#[command(after_help = OPEN_EXAMPLES)]
struct OpenArgs {
    #[command(flatten)]
    reach: Reach,
    /// The lease's id: sent again, the same request is the same lease. Default: a new one
    #[arg(long, value_name = "ID")]
    id: Option<ScriptId>,
    /// The mutex to hold
    #[arg(long, value_name = "NAME", default_value = "machine")]
    mutex: MutexName,
    /// Hold this exclusive key too
    #[arg(long, value_name = "KEY")]
    exclusive_key: Option<ExclusiveKey>,
    /// How long the client may be silent: 1s to 1h
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time_limit)]
    ttl: Duration,
    /// Why; whoever waits is told
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Say what it is about; shown wherever it is named
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
    label: Vec<(String, String)>,
    /// Give up when it still waits after so long
    #[arg(long, value_name = "TIME", value_parser = time_limit)]
    queue_timeout: Option<Duration>,
    /// Return when it is accepted, though it may wait
    #[arg(long, conflicts_with = "hold")]
    no_wait: bool,
    /// Stay, and renew it until Ctrl-C or SIGTERM; then close it
    #[arg(long)]
    hold: bool,
    /// Print the lease as JSON
    #[arg(long)]
    json: bool,
}

/// Say that a lease's client is still there
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  baton lease renew web-7")]
struct RenewArgs {
    #[command(flatten)]
    reach: Reach,
    /// The lease's id
    id: ScriptId,
    /// Print the lease as JSON
    #[arg(long)]
    json: bool,
}

/// End a lease
///
/// Its queued scripts don't start any more; the machine is free when those that run have ended.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  baton lease close web-7
  baton lease close web-7 --cancel --wait --reason 'step 2 failed'")]
struct CloseArgs {
    #[command(flatten)]
    reach: Reach,
    /// The lease's id
    id: ScriptId,
    /// Cancel what runs under it. Default: that goes on to its end
    #[arg(long)]
    cancel: bool,
    /// Why, for the record
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Return when it has ended
    #[arg(long)]
    wait: bool,
    /// Print the lease as JSON
    #[arg(long)]
    json: bool,
}

/// Show the leases that have not ended
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  baton lease list\n  baton lease list --target web-1 --json")]
struct ListArgs {
    #[command(flatten)]
    reach: Reach,
    /// Print the leases as JSON, one a line
    #[arg(long)]
    json: bool,
}

/// What ended the wait, or the hold.
enum Noticed {
    Open(Box<Snapshot>),
    Ended(String),
    Interrupt,
}

/// Ctrl-C and SIGTERM.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    fn new() -> Result<Self, Failure> {
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self { interrupt, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

pub(super) async fn lease(args: LeaseArgs, folders: Directories) -> Result<ExitCode, Failure> {
    match args.command {
        LeaseCommand::Open(args) => open(args, &folders).await,
        LeaseCommand::Renew(args) => {
            let lease = args.reach.client(&folders).await?.renew_lease(&args.id).await?;
            tell(&lease, args.json)
        }
        LeaseCommand::Close(args) => close(args, &folders).await,
        LeaseCommand::List(args) => list(args, &folders).await,
    }
}

async fn open(args: OpenArgs, folders: &Directories) -> Result<ExitCode, Failure> {
    // Before anybody knows of the lease: a signal that comes early is not lost.
    let mut interrupts = Interrupts::new()?;
    let client = args.reach.client(folders).await?;
    let wish = LeaseWish {
        lease_id: args.id.unwrap_or_else(ScriptId::random),
        mutex: args.mutex,
        exclusive_key: args.exclusive_key,
        ttl: args.ttl,
        reason: args.reason,
        labels: args.label.into_iter().collect(),
        queue_time_limit: args.queue_timeout,
    };
    let mut lease = client.open_lease(wish).await?;
    if args.no_wait {
        return print(&client.get(lease.id()).await?, args.json);
    }
    match until_open(&lease, &mut interrupts).await? {
        Noticed::Open(snapshot) => print(&snapshot, args.json)?,
        Noticed::Ended(why) => return Err(ended(lease.id(), &why)),
        Noticed::Interrupt => return leave(client, lease).await,
    };
    if !args.hold {
        return Ok(ExitCode::SUCCESS);
    }
    let noticed = tokio::select! {
        why = lease.ended() => Noticed::Ended(why),
        () = interrupts.next() => Noticed::Interrupt,
    };
    match noticed {
        Noticed::Ended(why) => Err(ended(lease.id(), &why)),
        Noticed::Interrupt | Noticed::Open(_) => {
            leave(client, lease).await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Waits for its turn, and says for whom.
async fn until_open(lease: &Lease, interrupts: &mut Interrupts) -> Result<Noticed, Failure> {
    let mut told = String::new();
    let open = lease.until_open(|snapshot| {
        let reasons: Vec<_> = snapshot.waits.iter().map(Wait::reason).collect();
        let reason = reasons.join("; ");
        if !reason.is_empty() && reason != told {
            complain(&format!("baton: waiting: {reason}"));
            told = reason;
        }
    });
    let snapshot = tokio::select! {
        snapshot = open => snapshot?,
        () = interrupts.next() => return Ok(Noticed::Interrupt),
    };
    Ok(match &snapshot.phase {
        Phase::Done(outcome) => Noticed::Ended(outcome.kind.to_string()),
        Phase::Stopping => Noticed::Ended("it was closed".to_owned()),
        Phase::Queued | Phase::Waiting | Phase::Running => Noticed::Open(Box::new(snapshot)),
    })
}

fn ended(id: &ScriptId, why: &str) -> Failure {
    let error = anyhow::anyhow!("lease {id}: {why}");
    Failure::new(code::REFUSED, error).hint(format!("`baton show {id}` says more"))
}

/// Closes it because the caller goes.
async fn leave(client: Client, lease: Lease) -> Result<ExitCode, Failure> {
    let id = lease.id().clone();
    lease.close(OnLeaseEnd::Wait, "its client was interrupted".to_owned()).await?;
    until_done(&client, &id).await?;
    Ok(ExitCode::from(code::CANCELLED))
}

async fn until_done(client: &Client, id: &ScriptId) -> Result<Option<Snapshot>, Failure> {
    let mut following = client.watch(id.clone(), 0, true);
    let mut last = None;
    while let Some(heard) = following.next().await? {
        if let Heard::Script(now) = heard {
            last = Some(*now);
        }
    }
    Ok(last)
}

async fn close(args: CloseArgs, folders: &Directories) -> Result<ExitCode, Failure> {
    let client = args.reach.client(folders).await?;
    let on_end = if args.cancel { OnLeaseEnd::Cancel } else { OnLeaseEnd::Wait };
    let mut lease = client.close_lease(&args.id, on_end, args.reason).await?;
    if args.wait && !lease.phase.is_done() {
        lease = until_done(&client, &args.id).await?.unwrap_or(lease);
    }
    tell(&lease, args.json)
}

async fn list(args: ListArgs, folders: &Directories) -> Result<ExitCode, Failure> {
    let leases = args.reach.client(folders).await?.leases().await?;
    if args.json {
        for lease in &leases {
            write_json(&show::script_json(lease))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if leases.is_empty() {
        write_out(b"there is no lease\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["ID", "STATE", "MUTEX", "FOR", "EXPIRES", "WHY", "WAITS FOR"]);
    for lease in &leases {
        let standing = lease.lease_standing.as_ref();
        let reason = standing.map(|standing| standing.terms.reason.clone()).unwrap_or_default();
        table.row(vec![
            lease.script_id.to_string(),
            show::state(lease),
            lease.mutex.to_string(),
            show::since(lease.started_at.unwrap_or(lease.queued_at)),
            standing.and_then(|s| s.expires_at).map_or_else(|| "-".to_owned(), clock),
            [show::labels(&lease.labels), reason].join(" ").trim().to_owned(),
            lease.waits.iter().map(Wait::reason).collect::<Vec<_>>().join("; "),
        ]);
    }
    write_out(table.render().as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the id of a lease, for programs.
fn print(lease: &Snapshot, json: bool) -> Result<ExitCode, Failure> {
    if json {
        write_json(&show::script_json(lease))?;
    } else {
        write_out(format!("{}\n", lease.script_id).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints how a lease stands.
fn tell(lease: &Snapshot, json: bool) -> Result<ExitCode, Failure> {
    if json {
        return print(lease, true);
    }
    let text = match &lease.phase {
        Phase::Done(outcome) => outcome.kind.to_string(),
        Phase::Queued | Phase::Waiting | Phase::Running | Phase::Stopping => show::state(lease),
    };
    write_out(format!("{}: {text}\n", lease.script_id).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
