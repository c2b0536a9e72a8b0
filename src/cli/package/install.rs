//! `baton package install`: inside a script, from what the agent of this machine keeps.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::cli::failure::{Failure, code, complain};
use crate::cli::screen::{write_json, write_out};
use crate::config::Directories;
use crate::config::directories::DirectoryOverrides;
use crate::packages::install::{InstallError, Installed, Placed, Wish};
use crate::packages::{FOLDER, PackageId, Version};
use crate::workspace::is_lack;

const EXAMPLES: &str = "\
Examples, in a script:
  baton package install shop 1.4.2 --to /opt        makes /opt/shop/1.4.2 and /opt/shop/current
  cd \"$(baton package install shop 1.4.2)\" && ./migrate
  baton package install shop 1.4.1 --to /opt        back to the version before

The version's folder is the package's: when something in it was changed, a new one takes its
place, so keep data elsewhere. A kill at any point leaves current as it was or as it is to be.";

/// Inside a script: install a package that the agent keeps, and make it the current version
///
/// It runs under the mutexes of its script. The version appears whole, in a folder of its own, then
/// DIR/ID/current is switched to it, then older versions are removed. A version that is there already is
/// compared with the package, and put right. The path of the version is printed.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct InstallArgs {
    /// The package's id
    id: PackageId,
    /// Its version
    version: Version,
    /// The folder that gets ID/VERSION and ID/current. Default: installed, in $BATON_PACKAGES
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// How many versions stay, the current one among them
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    keep: u16,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn install(args: InstallArgs, set: DirectoryOverrides) -> Result<ExitCode, Failure> {
    let InstallArgs { id, version, to, keep, json } = args;
    let told = std::env::var_os("BATON_PACKAGES").filter(|path| !path.is_empty());
    let packages = match told {
        Some(path) => PathBuf::from(path),
        None => Directories::resolve(set)?.state.join(FOLDER),
    };
    let into = to.unwrap_or_else(|| packages.join("installed"));
    let into = std::path::absolute(into)?;
    let wish = Wish { packages, into, id, version, keep: keep.into() };
    let Installed { path, digest, placed, before, removed } = wish.install()?;
    let (event, wrong) = match placed {
        Placed::New => ("installed", Vec::new()),
        Placed::Unchanged => ("unchanged", Vec::new()),
        Placed::Repaired { wrong } => ("repaired", wrong),
    };
    let removed: Vec<_> = removed.iter().map(Version::as_str).collect();
    if json {
        write_json(&json!({
            "event": event,
            "id": wish.id.as_str(),
            "version": wish.version.as_str(),
            "path": path,
            "sha256": digest.to_string(),
            "wrong": wrong,
            "before": before,
            "removed": removed,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(first) = wrong.first() {
        let and = wrong.len() - 1;
        let more = if and > 0 { format!(" and {and} more") } else { String::new() };
        complain(&format!("baton: {} was changed at {first}{more}: put right", path.display()));
    }
    write_out(format!("{}\n", path.display()).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

impl From<InstallError> for Failure {
    fn from(error: InstallError) -> Self {
        let (status, hint) = match &error {
            InstallError::NotThere { .. } => (
                code::REFUSED,
                Some("send it first: baton package send PATH --id ID --version VERSION"),
            ),
            InstallError::NotRepairable { .. }
            | InstallError::Chunk { .. }
            | InstallError::Manifest { .. } => {
                (code::REFUSED, Some("send the package again; only what is missing is sent"))
            }
            InstallError::NotOurs(_) => {
                (code::REFUSED, Some("move it away, or install to another folder with --to"))
            }
            InstallError::File { .. } if is_lack(&error) => (code::BUSY, None),
            InstallError::File { .. } => (code::INTERNAL, None),
        };
        let failure = Self::new(status, error);
        hint.into_iter().fold(failure, Self::hint)
    }
}
