//! `baton push`: files and folders of this machine to a root of an agent.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::failure::Failure;
use super::moving::{Telling, Way};
use super::reach::Reach;
use super::remote::Remote;
use crate::config::Directories;
use crate::transfer::Place;

/// The most files of one push: their names are held in memory.
const MAX_FILES: usize = 100_000;
/// The deepest folder: paths of agents are no deeper.
const MAX_DEPTH: usize = 64;

const EXAMPLES: &str = "\
Examples:
  baton push app.tar.gz files:                          to the agent of this machine
  baton push --target web-1 app.tar.gz files:app/1.2.tar.gz
  baton push -t web-1 site files:www                    the folder's content becomes files:www
  baton push -t web-1 a.deb b.deb packages:incoming/    both, under their own names
  baton push --json app.tar.gz files: | jq .sent_bytes

What is there already is not sent again, and a push that broke off goes on where it stood.";

/// Push files to an agent, each whole or not at all
///
/// A file appears at its place when all of it has arrived, is on disk, and has the right SHA-256.
/// Until then, and if anything fails, what was there before stays. Folders are pushed with all that
/// is in them; symbolic links in them are left out.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct PushArgs {
    #[command(flatten)]
    reach: Reach,
    /// Files and folders of this machine
    #[arg(required = true, value_name = "LOCAL")]
    locals: Vec<PathBuf>,
    /// Where to: ROOT:PATH, or ROOT:FOLDER/ to keep the name. The agent's configuration names its
    /// roots; by default there is one, "files"
    #[arg(value_name = "REMOTE")]
    remote: Remote,
    #[command(flatten)]
    telling: Telling,
}

pub(super) async fn push(args: PushArgs, folders: Directories) -> Result<ExitCode, Failure> {
    let PushArgs { reach, locals, remote, telling } = args;
    let mut plan = Plan { telling, files: Vec::new() };
    let into = remote.is_folder() || locals.len() > 1;
    for local in locals {
        let remote = if into { remote.join(own_name(&local)?) } else { remote.clone() };
        plan.add(local, &remote)?;
    }
    let client = reach.client(&folders).await?;
    for (local, place) in plan.files {
        let moving = telling.begin(&place.to_string());
        let moved = client.push(&local, &place, moving.tell()).await?;
        moving.finish(Way::Pushed, &local.display().to_string(), &place, &moved)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is pushed where to.
struct Plan {
    telling: Telling,
    files: Vec<(PathBuf, Place)>,
}

impl Plan {
    /// Adds what was named; a link that was named is followed.
    fn add(&mut self, local: PathBuf, remote: &Remote) -> Result<(), Failure> {
        let found = local.metadata().map_err(|error| unreadable(&local, error))?;
        if found.is_dir() {
            return self.add_folder(&local, remote, 0);
        }
        self.add_file(local, remote)
    }

    fn add_file(&mut self, local: PathBuf, remote: &Remote) -> Result<(), Failure> {
        if self.files.len() >= MAX_FILES {
            let text = format!("more than {MAX_FILES} files");
            return Err(Failure::usage(text).hint("push an archive instead"));
        }
        self.files.push((local, remote.place()?));
        Ok(())
    }

    fn add_folder(&mut self, local: &Path, remote: &Remote, depth: usize) -> Result<(), Failure> {
        if depth > MAX_DEPTH {
            return Err(Failure::usage(format!("folder {} is too deep", local.display())));
        }
        let entries = std::fs::read_dir(local).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let mut entries = entries.map_err(|error| unreadable(local, error))?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let kind = entry.file_type().map_err(|error| unreadable(&path, error))?;
            let remote = remote.join(own_name(&path)?);
            if kind.is_dir() {
                self.add_folder(&path, &remote, depth + 1)?;
            } else if kind.is_file() {
                self.add_file(path, &remote)?;
            } else {
                let what = if kind.is_symlink() { "a symbolic link" } else { "no regular file" };
                self.telling.note(&format!("{} is {what}: left out", path.display()));
            }
        }
        Ok(())
    }
}

/// The name under which a file goes into a folder.
fn own_name(local: &Path) -> Result<&str, Failure> {
    let name = local.file_name().ok_or_else(|| {
        let text = format!("{} has no name of its own", local.display());
        Failure::usage(text).hint("name the folder, or give a REMOTE that doesn't end with /")
    })?;
    let no_text = || Failure::usage(format!("the name of {} is no UTF-8", local.display()));
    name.to_str().ok_or_else(no_text)
}

fn unreadable(path: &Path, error: std::io::Error) -> Failure {
    let context = format!("file {}", path.display());
    Failure::new(super::failure::code::USAGE, anyhow::Error::new(error).context(context))
}
