//! What `run` and `acquire` have in common: how a mutex is wanted, and how patiently.

use std::num::NonZeroU32;
use std::time::Duration;

use clap::Args;

use crate::cli::failure::code;
use crate::cli::{interval, time_limit};
use crate::mutex::holder::{Patience, Wish};
use crate::mutex::{Claim, Mode, MutexName};
use crate::script::check_text;

/// The longest reason, in bytes.
const MAX_REASON_BYTES: usize = 256;

/// How a mutex is wanted.
#[derive(Debug, Args)]
pub(in crate::cli) struct WishArgs {
    /// Hold it together with others that are shared
    #[arg(long, short)]
    shared: bool,
    /// Like --shared, and while it is held so, at most N hold it, this one included
    #[arg(long, value_name = "N", value_parser = at_most)]
    at_most: Option<NonZeroU32>,
    /// Give up after so long
    #[arg(long, value_name = "TIME", value_parser = time_limit, conflicts_with = "no_wait")]
    timeout: Option<Duration>,
    /// Give up at once
    #[arg(long, short)]
    no_wait: bool,
    /// Why, for those who wait behind
    #[arg(long, value_name = "TEXT", default_value = "", value_parser = reason)]
    pub(super) reason: String,
    /// The exit status when a mutex was not obtained in time
    #[arg(long, short = 'E', value_name = "N", default_value_t = code::BUSY)]
    pub(super) conflict_exit_code: u8,
    /// How often to tell about a wait in which nothing changes
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = interval)]
    remind: Duration,
    /// Don't tell about waits
    #[arg(long, short)]
    quiet: bool,
}

impl WishArgs {
    /// What the parser makes of no options.
    pub(super) fn plain() -> Self {
        Self {
            shared: false,
            at_most: None,
            timeout: None,
            no_wait: false,
            reason: String::new(),
            conflict_exit_code: code::BUSY,
            remind: Duration::from_mins(1),
            quiet: false,
        }
    }

    /// The wish for these mutexes.
    pub(super) fn wish(&self, names: impl IntoIterator<Item = MutexName>) -> Wish {
        let mode = match self.at_most {
            Some(n) => Mode::AtMost(n),
            None if self.shared => Mode::Shared,
            None => Mode::Exclusive,
        };
        let patience = self.patience();
        let claims = names.into_iter().map(|name| Claim { name, mode }).collect();
        let (reason, remind, is_told) = (self.reason.clone(), self.remind, !self.quiet);
        Wish { patience, reason, remind, is_told, ..Wish::of(claims) }
    }

    /// How long to wait.
    pub(super) fn patience(&self) -> Patience {
        match self.timeout {
            Some(limit) => Patience::Limited(limit),
            None if self.no_wait => Patience::None,
            None => Patience::Unlimited,
        }
    }

    /// How often to tell about a wait in which nothing changes.
    pub(super) fn remind(&self) -> Duration {
        self.remind
    }

    /// Whether waits are not told.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet
    }
}

/// Parses the N of "at most N".
fn at_most(text: &str) -> Result<NonZeroU32, String> {
    let number: Option<NonZeroU32> = text.parse().ok();
    let number = number.filter(|n| n.get() <= Mode::MAX_AT_MOST);
    number.ok_or_else(|| format!("is not 1 to {}", Mode::MAX_AT_MOST))
}

/// Parses a reason: one line.
pub(super) fn reason(text: &str) -> Result<String, String> {
    check_text(text, MAX_REASON_BYTES).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}
