//! `baton mutex run --fleet`: a command under a mutex that a fleet of machines shares.

use std::cell::RefCell;
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Args;
use signal_hook::low_level::emulate_default_handler;

use super::run::ended;
use super::wish::WishArgs;
use crate::cli::failure::{Failure, code, complain};
use crate::cli::{asynchronous, show, time_limit};
use crate::config::Directories;
use crate::config::client::ClientConfig;
use crate::config::directories::DirectoryOverrides;
use crate::fleet::run::{self, Ran};
use crate::fleet::signals::Inbox;
use crate::fleet::{
    self, Ahead, Fleet, FleetError, FleetLock, LockName, Loss, Options, Party, Told, Who,
};
use crate::mutex::holder::{self, Patience};
use crate::text::chain;

/// Where etcd is, unless the command line says it: URLs, with commas or spaces between.
const ETCD_VARIABLE: &str = "BATON_ETCD";
/// The certificates of its authority.
const CA_VARIABLE: &str = "BATON_ETCD_CA";

/// A mutex of a fleet.
#[derive(Debug, Args)]
pub(in crate::cli) struct FleetArgs {
    /// A mutex that all machines share by etcd, instead of this machine's own; any text
    #[arg(
        long,
        value_name = "NAME",
        help_heading = "Fleet",
        conflicts_with_all = ["shared", "at_most"]
    )]
    pub(super) fleet: Option<LockName>,
    /// A member of the etcd cluster; several: tried in turn [env: BATON_ETCD] [client.toml:
    /// coordination.etcd]
    #[arg(long, value_name = "URL", help_heading = "Fleet", requires = "fleet")]
    etcd: Vec<String>,
    /// The certificates of etcd's authority, in PEM, for https [env: BATON_ETCD_CA] [client.toml:
    /// coordination.etcd_ca]
    #[arg(long, value_name = "FILE", help_heading = "Fleet", requires = "fleet")]
    etcd_ca: Option<PathBuf>,
    /// How long others wait when this machine is cut off or the command is killed
    #[arg(
        long,
        value_name = "TIME",
        help_heading = "Fleet",
        default_value = "15s",
        value_parser = time_to_live
    )]
    ttl: Duration,
}

/// Parses a lease's time-to-live.
fn time_to_live(text: &str) -> Result<Duration, String> {
    let time = time_limit(text)?;
    let (least, most) = (fleet::MIN_TTL, fleet::MAX_TTL);
    if !(least..=most).contains(&time) || time.subsec_nanos() != 0 {
        let [least, most] = [least, most].map(humantime::format_duration);
        return Err(format!("is not {least} to {most} in whole seconds"));
    }
    Ok(time)
}

impl FleetArgs {
    /// What the parser makes of no options.
    pub(super) fn plain() -> Self {
        Self { fleet: None, etcd: Vec::new(), etcd_ca: None, ttl: Duration::from_secs(15) }
    }

    /// Flag, environment, file, in this order.
    fn resolve(&self, set: DirectoryOverrides) -> Result<(Vec<String>, Options), Failure> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let split = |text: String| {
            let urls = text.split([',', ' ']).filter(|url| !url.is_empty());
            urls.map(str::to_owned).collect::<Vec<_>>()
        };
        let mut etcd = self.etcd.clone();
        if etcd.is_empty() {
            etcd = variable(ETCD_VARIABLE).map(split).unwrap_or_default();
        }
        let mut ca = self.etcd_ca.clone().or_else(|| variable(CA_VARIABLE).map(PathBuf::from));
        if etcd.is_empty() {
            let file = ClientConfig::load(&Directories::resolve(set)?.config)?.coordination;
            etcd = file.etcd;
            ca = ca.or(file.etcd_ca);
        }
        if etcd.is_empty() {
            return Err(Failure::usage("no etcd is known").hint(
                "say --etcd http://HOST:2379, or set BATON_ETCD, or coordination.etcd in client.toml",
            ));
        }
        Ok((etcd, Options { ttl: self.ttl, ca }))
    }
}

// Its frame is of many pages, and each is touched: a mutex of this machine has no use for them.
#[inline(never)]
pub(super) fn run(
    name: &LockName,
    args: &FleetArgs,
    wish: &WishArgs,
    words: &[OsString],
    set: DirectoryOverrides,
) -> Result<ExitCode, Failure> {
    // Where names stand for this machine's mutexes, `--` is a word; here it is first, or was taken.
    let command = words.strip_prefix(&[OsString::from("--")]).unwrap_or(words);
    let Some((program, arguments)) = command.split_first() else {
        return Err(Failure::usage("there is no command"));
    };
    let (endpoints, options) = args.resolve(set)?;
    let what = holder::command_line(Command::new(program).args(arguments));
    let who = Who::this_process(what, wish.reason.clone());
    let wait = Wait { name, wish, latest: RefCell::new(None) };
    asynchronous(async {
        let fleet = Fleet::connect(&endpoints, options).await?;
        let mut signals = Inbox::open()?;
        let waited = wait.acquire(&fleet, who, &mut signals).await;
        let result = match waited {
            Ok(Waited::Held(lock)) => protect(lock, command, &mut signals, wish).await,
            Ok(Waited::Signal(signal)) => {
                fleet.close().await;
                // It does not return; if it did, the exit status says the same.
                emulate_default_handler(signal).unwrap_or_default();
                return Ok(ExitCode::from(u8::try_from(128 + signal).unwrap_or(code::CANCELLED)));
            }
            Err(failure) => Err(failure),
        };
        fleet.close().await;
        result
    })
}

/// A wait for a mutex.
struct Wait<'a> {
    name: &'a LockName,
    wish: &'a WishArgs,
    /// What was told last.
    latest: RefCell<Option<String>>,
}

enum Waited {
    Held(FleetLock),
    /// This one was to end the wait.
    Signal(i32),
}

impl Wait<'_> {
    async fn acquire(
        &self,
        fleet: &Fleet,
        who: Who,
        signals: &mut Inbox,
    ) -> Result<Waited, Failure> {
        let patience = self.wish.patience();
        let limit = match patience {
            Patience::Limited(limit) => limit,
            Patience::Unlimited | Patience::None => Duration::MAX,
        };
        let locking = fleet.lock(self.name, who, |told| self.hear(told, patience));
        let mut locking = std::pin::pin!(tokio::time::timeout(limit, locking));
        let period = self.wish.remind();
        let mut reminder = tokio::time::interval(period);
        reminder.reset();
        loop {
            let heard = tokio::select! {
                locked = &mut locking => return self.locked(locked),
                heard = signals.next() => Some(heard?),
                _ = reminder.tick() => None,
            };
            match heard {
                Some(heard) if heard.is_end() => return Ok(Waited::Signal(heard.signal)),
                Some(_) => {}
                None => self.tell(),
            }
        }
    }

    fn hear(&self, told: Told<'_>, patience: Patience) -> ControlFlow<()> {
        let text = match told {
            Told::Waits(ahead) => describe(self.name, ahead),
            Told::Interrupted(error) => format!("{}; trying again", chain(error)),
            Told::Anew => {
                format!("the place for `{}` was lost with its lease; waiting anew", self.name)
            }
        };
        self.latest.replace(Some(text));
        if patience == Patience::None && !matches!(told, Told::Anew) {
            return ControlFlow::Break(());
        }
        self.tell();
        ControlFlow::Continue(())
    }

    fn tell(&self) {
        if let Some(text) = self.latest.borrow().as_ref().filter(|_| !self.wish.is_quiet()) {
            complain(&format!("baton: {text}"));
        }
    }

    fn locked(
        &self,
        locked: Result<Result<FleetLock, FleetError>, tokio::time::error::Elapsed>,
    ) -> Result<Waited, Failure> {
        let error = match locked {
            Ok(Ok(lock)) => return Ok(Waited::Held(lock)),
            Ok(Err(FleetError::Busy(_))) | Err(_) => None,
            Ok(Err(error)) => Some(error),
        };
        if let Some(error) = error {
            return Err(error.into());
        }
        let latest = self.latest.borrow();
        let latest = latest.as_deref().unwrap_or("etcd did not answer in time");
        let error = anyhow::anyhow!("not obtained: {latest}");
        Err(Failure::new(self.wish.conflict_exit_code, error))
    }
}

/// Who is in the way, in words.
fn describe(name: &LockName, ahead: &Ahead) -> String {
    let Ahead { holder, before, position } = ahead;
    let since = |party: &Party| {
        let since = party.who.as_ref().and_then(|who| who.holds_since);
        since.map_or_else(String::new, |since| format!(" for {}", show::since(since)))
    };
    let mut text = format!(
        "waiting, position {position}: `{name}` is held by {}{}",
        holder.describe(),
        since(holder)
    );
    if before.place != holder.place {
        text = format!("{text}; just before: {}", before.describe());
    }
    text
}

/// Runs the command under the lock, and gives that back.
async fn protect(
    lock: FleetLock,
    command: &[OsString],
    signals: &mut Inbox,
    wish: &WishArgs,
) -> Result<ExitCode, Failure> {
    let (name, ttl) = (lock.name().clone(), lock.terms().ttl);
    let ran = run::run(&lock, command, signals, |loss| {
        let why = match loss {
            Loss::Unconfirmed(time) => format!("etcd has not confirmed it for {time:.1?}"),
            Loss::Gone => "etcd has its key or lease no more".to_owned(),
        };
        complain(&format!("baton: `{name}` is lost: {why}; its command is being ended"));
    });
    let ran = ran.await;
    if let Err(error) = lock.release().await {
        let ttl = humantime::format_duration(ttl);
        complain(&format!("baton: `{name}` is free only after {ttl}: {}", chain(&error)));
    }
    let busy = wish.conflict_exit_code;
    let (what, left) = match ran? {
        Ran::Ended(status) => return ended(holder::Ran::Ended(status), &command[0], busy),
        Ran::NotStarted(error) => return ended(holder::Ran::NotStarted(error), &command[0], busy),
        Ran::Lost(left) => ("was lost", left),
        Ran::Unwatched(left) => ("was given up: what watches over its command was killed", left),
    };
    let still = if left.is_empty() {
        "the command was ended".to_owned()
    } else {
        format!("these could not be ended: {}", left.join(", "))
    };
    Err(Failure::new(code::LOST, anyhow::anyhow!("`{name}` {what}; {still}")))
}

impl From<FleetError> for Failure {
    fn from(error: FleetError) -> Self {
        let (status, hint) = match &error {
            FleetError::Endpoint { problem, .. } if problem.contains("authority") => {
                (code::USAGE, Some("say --etcd-ca FILE, or set BATON_ETCD_CA"))
            }
            FleetError::Endpoint { .. } => (code::USAGE, Some("for example http://etcd-1:2379")),
            FleetError::Authority { .. } => (code::USAGE, None),
            FleetError::Unreachable(_) => (code::UNREACHABLE, None),
            FleetError::Refused { status, .. } if status.message().contains("user name") => {
                (code::NOT_ALLOWED, Some("etcd's users and passwords are not supported"))
            }
            FleetError::Refused { .. } => (code::INTERNAL, None),
            FleetError::Busy(_) => (code::BUSY, None),
        };
        let failure = Self::new(status, error);
        hint.into_iter().fold(failure, Self::hint)
    }
}
