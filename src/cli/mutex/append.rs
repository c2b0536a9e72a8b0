//! `baton mutex append`: lines into a file that many processes write.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::run::{describe, teller};
use crate::cli::failure::{Failure, code};
use crate::cli::time_limit;
use crate::mutex::append::{self, AppendError};
use crate::mutex::holder::{Patience, Wish};
use crate::mutex::{Claim, Mode, MutexName};

const EXAMPLES: &str = "\
Examples:
  date | baton mutex append log /var/log/deploy.log
  ./deploy.sh 2>&1 | baton mutex append log /var/log/deploy.log --max-bytes 10000000";

/// Append standard input, line by line, to a file that many processes write
///
/// Lines go into the file as they come and as a whole, never mixed with those of others who do the
/// same. The mutex is held for each write only.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct AppendArgs {
    /// The mutex that protects the file
    name: MutexName,
    /// The file; it is made if need be
    file: PathBuf,
    /// Move the file to FILE.1 before it grows over so many bytes
    #[arg(long, value_name = "N")]
    max_bytes: Option<u64>,
    /// Give up when the mutex is not obtained after so long
    #[arg(long, value_name = "TIME", value_parser = time_limit)]
    timeout: Option<Duration>,
    /// Don't tell about waits
    #[arg(long, short)]
    quiet: bool,
}

pub(super) fn append(args: AppendArgs, root: &Path) -> Result<ExitCode, Failure> {
    let claims = vec![Claim { name: args.name, mode: Mode::Exclusive }];
    let patience = args.timeout.map_or(Patience::Unlimited, Patience::Limited);
    let wish = Wish { patience, is_told: !args.quiet, ..Wish::of(claims) };
    let (mut input, tell) = (std::io::stdin().lock(), teller(&wish));
    append::append(root, &wish, &mut input, &args.file, args.max_bytes, tell)?;
    Ok(ExitCode::SUCCESS)
}

impl From<AppendError> for Failure {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Holder(error) => error.into(),
            AppendError::Busy(blocked) => {
                let text = anyhow::anyhow!("not obtained: {}", describe(&blocked));
                Self::new(code::BUSY, text)
            }
            AppendError::Input(_) | AppendError::LongLine | AppendError::File { .. } => {
                Self::new(code::INTERNAL, error)
            }
        }
    }
}
