//! `baton service uninstall`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::{carry_out, check_machine, failed, show};
use crate::cli::failure::{Failure, complain};
use crate::cli::screen::write_out;
use crate::client::embedded::count_living;
use crate::config::Instance;
use crate::config::directories::System;
use crate::service::ServiceError;
use crate::service::installed::Machine;
use crate::service::plan;
use crate::service::unit::unit_name;

/// With what root calls other machines: they trust this key, and the list may be all that says which they are.
const CLIENTS: [&str; 4] = ["client.key", "client.crt", "client.toml", "targets.toml"];

/// Stop the agent and remove what `install` wrote; scripts that run go on
///
/// Configuration, identity and state stay, for the next installation. When it is not installed nothing is
/// changed, and that is no error. What is root's own as a client of other machines (client.key, client.crt,
/// client.toml, targets.toml) is not the service's, and always stays.
#[derive(Debug, Args)]
pub(super) struct UninstallArgs {
    /// Remove configuration, identity and state too
    #[arg(long)]
    purge: bool,
    /// Purge also while scripts run: what becomes of them is not known then
    #[arg(long, requires = "purge")]
    force: bool,
    /// Print each file and command, and change nothing; needs no root
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn uninstall(
    args: &UninstallArgs,
    instance: Option<&Instance>,
) -> Result<ExitCode, Failure> {
    if !args.dry_run {
        check_machine()?;
    }
    let System { config, state, runtime } = System::of(instance);
    let plan = plan::uninstall(&Machine::default(), instance);
    let purged = [&config, &state, &runtime];
    if args.dry_run {
        show(&plan)?;
        if args.purge {
            let lines = purged.map(|folder| format!("# remove {}\n", folder.display()));
            let kept = clients(&config).map(|path| format!("# but keep {}\n", path.display()));
            write_out((lines.concat() + &kept.collect::<String>()).as_bytes())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let unit = unit_name(instance);
    // Before anything is changed. What is started from here on is counted after the stop.
    let check = || match count_living(&state) {
        running if running > 0 && args.purge && !args.force => Err(ServiceError::Busy(running)),
        running => Ok(running),
    };
    check()?;
    carry_out(&plan, &unit)?;
    let running = check()?;
    if running > 0 {
        let told = "the next installation finds them";
        complain(&format!("baton: scripts that go on without it: {running}; {told}"));
    }
    if args.purge {
        for folder in purged {
            remove(folder, instance)?;
        }
    }
    let what = if args.purge { ", with configuration and state" } else { "" };
    write_out(format!("{unit} is not installed any more{what}\n").as_bytes())?;
    if args.purge {
        for path in clients(&config) {
            complain(&format!("baton: {} stays: it is no file of the service", path.display()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What of root's own as a client is in a folder.
fn clients(config: &Path) -> impl Iterator<Item = PathBuf> {
    CLIENTS.into_iter().map(|name| config.join(name)).filter(|path| path.symlink_metadata().is_ok())
}

/// Removes a folder; the instances in that of the default one stay, and what is root's own as a client.
fn remove(folder: &Path, instance: Option<&Instance>) -> Result<(), ServiceError> {
    let is_gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(failed(folder)(error)),
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_instances = instance.is_none() && entry.file_name() == "instances";
        if is_instances || CLIENTS.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed =
            if is_folder { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed
            .or_else(|error| if is_gone(&error) { Ok(()) } else { Err(failed(&path)(error)) })?;
    }
    // Not empty: something stays in it.
    std::fs::remove_dir(folder).unwrap_or_default();
    Ok(())
}
