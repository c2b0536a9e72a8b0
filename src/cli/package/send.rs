//! `baton package send`: a directory, a file or an archive of this machine to an agent.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use indicatif::HumanBytes;
use serde_json::json;

use crate::cli::failure::{Failure, code};
use crate::cli::moving::Telling;
use crate::cli::reach::Reach;
use crate::cli::screen::{write_json, write_out};
use crate::client::{SendError, Sent};
use crate::config::Directories;
use crate::packages::{Package, PackageId, SourceError, Version};

const EXAMPLES: &str = "\
Examples:
  baton package send build/ --id shop --version 1.4.2
  baton package send shop-1.4.2.tar.gz --id shop --version 1.4.2 --target web-1
  baton package send app.war --id app --version 7 --json | jq .sent_bytes
  baton package send base.tar --id image --version 3 --as-file

A package that broke off goes on with what is still missing when it is sent again.";

/// Send a package to an agent, only what it hasn't got
///
/// Archives (.tar, .tar.gz, .tgz, .tar.zst, .zip) are expanded here: of a compressed file hardly a byte
/// stays the same from version to version. An id and a version stand for one content: another one is
/// refused. Nothing waits for the machine's mutex.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct SendArgs {
    #[command(flatten)]
    reach: Reach,
    /// A directory, a file or an archive of this machine
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// The package's name: letters, digits, . _ -
    #[arg(long)]
    id: PackageId,
    /// Its version: letters, digits, . _ - +
    #[arg(long)]
    version: Version,
    /// Take the place of another content of the same version
    #[arg(long)]
    replace: bool,
    /// Leave an archive as the file that it is
    #[arg(long)]
    as_file: bool,
    #[command(flatten)]
    telling: Telling,
}

pub(super) async fn send(args: SendArgs, folders: Directories) -> Result<ExitCode, Failure> {
    let SendArgs { reach, path, id, version, replace, as_file, telling } = args;
    // Before it is read, which may take long: the agent may not be there.
    let client = reach.client(&folders).await?;
    let name = format!("{id} {version}");
    let open = move || {
        if as_file {
            Package::open_as_it_is(&path, id, version)
        } else {
            Package::open(&path, id, version)
        }
    };
    let opened = tokio::task::spawn_blocking(open).await;
    let package = opened.map_err(|error| Failure::new(code::INTERNAL, error))??;
    let package = if replace { package.replacing() } else { package };
    let moving = telling.begin(&name);
    let sent = client.send_package(&package, moving.tell()).await?;
    drop(moving);
    if telling.json() {
        write_json(&json!({
            "event": "sent",
            "id": package.id().as_str(),
            "version": package.version().as_str(),
            "sha256": sent.digest.to_string(),
            "size_bytes": sent.bytes_total,
            "sent_bytes": sent.bytes_sent,
            "chunks": sent.chunks_total,
            "sent_chunks": sent.chunks_sent,
            "already_there": sent.already_there,
        }))?;
    } else if !telling.quiet() {
        write_out(format!("{name}  {}\n", describe(&sent)).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(sent: &Sent) -> String {
    let Sent { bytes_total, bytes_sent, chunks_total, chunks_sent, .. } = sent;
    let total = HumanBytes(*bytes_total);
    if sent.already_there {
        return format!("{total}, is there already");
    }
    let bytes = HumanBytes(*bytes_sent);
    format!("{total}, {bytes} sent ({chunks_sent} of {chunks_total} chunks)")
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Changed(_) => {
                Self::new(code::BUSY, error).hint("send it when nobody writes to it any more")
            }
            SourceError::File { .. }
            | SourceError::Archive { .. }
            | SourceError::Name(_)
            | SourceError::Kind(_)
            | SourceError::Manifest { .. } => Self::new(code::USAGE, error),
        }
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Source(error) => error.into(),
            SendError::Agent(error) => error.into(),
        }
    }
}
