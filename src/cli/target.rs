//! `baton target`: the machines that this client knows by name.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::failure::Failure;
use super::screen::{write_json, write_out};
use super::show::Table;
use crate::config::Directories;
use crate::deploy::address::is_host_and_port;
use crate::deploy::plan::TargetKind;
use crate::deploy::targets::{Limits, Target, Targets};
use crate::deploy::{load, target_edit};
use crate::durable;
use crate::trust::Fingerprint;

/// Name the machines that this client knows
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  baton target add web-1 10.0.0.7:10950 --fingerprint 5f3c…
  baton target add web-2 10.0.0.8:10950 --fingerprint 77a0… --environment Test --role web
  baton target list --json
  baton run --target web-1 deploy.sh
  baton target remove web-1

They stand in targets.toml in the configuration folder; its order and comments are kept.")]
pub(super) struct TargetArgs {
    #[command(subcommand)]
    command: TargetCommand,
    /// Another file than that of the configuration folder
    #[arg(long, global = true, value_name = "FILE")]
    targets: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum TargetCommand {
    /// Add a machine
    Add(AddArgs),
    /// Show the machines
    List {
        /// Print them as JSON, one a line
        #[arg(long)]
        json: bool,
    },
    /// Forget a machine
    Remove {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Args)]
struct AddArgs {
    /// The name for it
    name: String,
    /// HOST:PORT of its agent
    address: String,
    /// The fingerprint that `baton agent init` prints there
    #[arg(long)]
    fingerprint: Fingerprint,
    /// What it is
    #[arg(long, value_name = "KIND", default_value = "machine")]
    kind: KindName,
    /// An environment that it belongs to; may be given more than once
    #[arg(long, short, value_name = "NAME")]
    environment: Vec<String>,
    /// What it is there for; may be given more than once
    #[arg(long, short, value_name = "NAME")]
    role: Vec<String>,
    /// A tenant whose deployments it takes; may be given more than once. Default: all
    #[arg(long, value_name = "NAME")]
    tenant: Vec<String>,
    /// An interpreter that it has, the preferred one first; may be given more than once. Default: any
    #[arg(long, value_name = "NAME")]
    interpreter: Vec<String>,
    /// How many scripts that bypass run there at once
    #[arg(long, value_name = "N")]
    at_most: Option<NonZeroU32>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindName {
    /// Something is deployed to it
    Machine,
    /// It works for others: its scripts bypass the machine mutex
    Worker,
}

impl From<AddArgs> for Target {
    fn from(args: AddArgs) -> Self {
        Self {
            name: args.name,
            address: args.address,
            fingerprint: args.fingerprint,
            kind: match args.kind {
                KindName::Machine => TargetKind::Machine,
                KindName::Worker => TargetKind::Worker,
            },
            environments: args.environment,
            roles: args.role,
            tenants: args.tenant,
            interpreters: args.interpreter,
            limits: Limits { at_most: args.at_most, ..Limits::default() },
        }
    }
}

pub(super) fn target(args: TargetArgs, folders: &Directories) -> Result<ExitCode, Failure> {
    let path = args.targets.unwrap_or_else(|| load::known_targets_file(&folders.config));
    let file = path.to_string_lossy().into_owned();
    match args.command {
        TargetCommand::Add(args) => {
            if !is_host_and_port(&args.address) {
                return Err(Failure::usage(format!("{:?} is not HOST:PORT", args.address))
                    .hint("the default port of an agent is 10950"));
            }
            let target = Target::from(args);
            let text = target_edit::add(&file, &load::text_if_there(&path)?, &target)?;
            save(&path, &text)?;
            write_out(format!("added {}\n", target.name).as_bytes())?;
        }
        TargetCommand::List { json } => {
            list(&Targets::parse(&file, &load::text_if_there(&path)?)?, json)?;
        }
        TargetCommand::Remove { name } => {
            let text = target_edit::remove(&file, &load::text_if_there(&path)?, &name)?;
            save(&path, &text)?;
            write_out(format!("removed {name}\n").as_bytes())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn save(path: &Path, text: &str) -> Result<(), Failure> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let made = folder.map_or(Ok(()), |folder| durable::create_dir_all(folder, 0o755));
    let written = made.and_then(|()| durable::replace_file(path, text.as_bytes(), 0o644));
    let failed = |source| load::LoadError::File { path: path.to_owned(), source };
    Ok(written.map_err(failed)?)
}

fn list(targets: &Targets, json: bool) -> Result<(), Failure> {
    let header = ["NAME", "ADDRESS", "KIND", "ENVIRONMENTS", "ROLES", "TENANTS", "FINGERPRINT"];
    let mut table = Table::new(&header);
    let words = |words: &[String]| {
        if words.is_empty() { "-".to_owned() } else { words.join(",") }
    };
    for target in targets.iter() {
        let Target { name, address, fingerprint, kind, environments, roles, tenants, .. } = target;
        if json {
            let target = json!({
                "name": name,
                "address": address,
                "fingerprint": fingerprint,
                "kind": kind,
                "environments": environments,
                "roles": roles,
                "tenants": tenants,
                "interpreters": target.interpreters,
                "at_most": target.limits.at_most,
            });
            write_json(&target)?;
        }
        let kind = match kind {
            TargetKind::Machine => "machine",
            TargetKind::Worker => "worker",
        };
        table.row(vec![
            name.clone(),
            address.clone(),
            kind.to_owned(),
            words(environments),
            words(roles),
            words(tenants),
            fingerprint.to_string(),
        ]);
    }
    if !json {
        write_out(table.render().as_bytes())?;
    }
    Ok(())
}
