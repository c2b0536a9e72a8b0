//! Takes the plain lock file of a mutex with the crate named-lock alone, as a program that knows
//! nothing of baton does: `named_lock PATH` waits for it (and says "busy" to standard error before),
//! says "held" and keeps it until standard input ends; `named_lock --try PATH` exits with 1 when
//! somebody else has it.

use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use named_lock::{Error, NamedLock};

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut words: Vec<_> = std::env::args_os().skip(1).collect();
    let path = words.pop().ok_or("no path")?;
    let is_try = words.pop().is_some();
    let lock = NamedLock::with_path(path)?;
    match lock.try_lock() {
        Err(Error::WouldBlock) if is_try => return Ok(ExitCode::FAILURE),
        Err(Error::WouldBlock) => writeln!(io::stderr(), "busy")?,
        other => drop(other?),
    }
    if is_try {
        return Ok(ExitCode::SUCCESS);
    }
    let guard = lock.lock()?;
    writeln!(io::stdout(), "held")?;
    io::stdin().read_to_end(&mut Vec::new())?;
    drop(guard);
    Ok(ExitCode::SUCCESS)
}
