//! What a person or a program sees of files that are pushed or pulled: a progress bar at a terminal, a
//! line for each file, or JSON.

use std::io::IsTerminal as _;
use std::sync::Arc;

use clap::Args;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde_json::json;

use super::failure::{Failure, code, complain};
use super::screen::{write_json, write_out};
use crate::client::away::moment;
use crate::client::{Away, FileError, Moved, Tell, Told};
use crate::transfer::{Kind, Place, TransferError};

/// How it is told.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Telling {
    /// Print nothing but errors
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// Print one line of JSON for each file
    #[arg(long)]
    json: bool,
}

/// Which way a file went.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    Pushed,
    Pulled,
}

/// One file on its way.
pub(super) struct Moving {
    telling: Telling,
    bar: Option<ProgressBar>,
}

impl Telling {
    /// Shows a file that is about to be moved.
    pub(super) fn begin(self, name: &str) -> Moving {
        let bar = !self.quiet && !self.json && std::io::stderr().is_terminal();
        Moving { telling: self, bar: bar.then(|| progress_bar(name)) }
    }

    /// Whether nothing is printed but errors.
    pub(super) fn quiet(self) -> bool {
        self.quiet
    }

    /// Whether it is told as JSON.
    pub(super) fn json(self) -> bool {
        self.json
    }

    /// Says something about a file that is not moved.
    pub(super) fn note(self, text: &str) {
        if !self.quiet {
            complain(&format!("baton: {text}"));
        }
    }
}

impl Moving {
    /// Who is told of its progress.
    pub(super) fn tell(&self) -> Tell {
        let bar = self.bar.clone();
        Arc::new(move |told| match told {
            Told::Moved { bytes, size } => {
                if let Some(bar) = &bar {
                    bar.set_length(size);
                    bar.set_position(bytes);
                }
            }
            Told::Interrupted(Away { why, until, .. }) => {
                let until = moment(until, Timestamp::now());
                let text = format!("baton: {why}; trying again until {until}");
                match &bar {
                    Some(bar) => bar.suspend(|| complain(&text)),
                    None => complain(&text),
                }
            }
        })
    }

    /// Says that it is there.
    pub(super) fn finish(
        self,
        way: Way,
        local: &str,
        place: &Place,
        moved: &Moved,
    ) -> Result<(), Failure> {
        self.clear();
        let Kind::File { size, digest } = moved.file.kind else {
            return Ok(());
        };
        let (event, count, from, to) = match way {
            Way::Pushed => ("pushed", "sent_bytes", local.to_owned(), place.to_string()),
            Way::Pulled => ("pulled", "received_bytes", place.to_string(), local.to_owned()),
        };
        if self.telling.json {
            let mut line = json!({
                "event": event,
                "local": local,
                "root": place.root,
                "path": place.path.to_string(),
                "size": size,
                "sha256": digest.map(|digest| digest.to_string()),
                "unchanged": moved.unchanged,
            });
            line[count] = json!(moved.moved_bytes);
            return Ok(write_json(&line)?);
        }
        if self.telling.quiet {
            return Ok(());
        }
        let what = match (moved.unchanged, moved.moved_bytes) {
            (true, _) => "is there already".to_owned(),
            (false, bytes) if bytes == size => HumanBytes(size).to_string(),
            (false, bytes) => format!("{} ({} moved)", HumanBytes(size), HumanBytes(bytes)),
        };
        Ok(write_out(format!("{from} -> {to}  {what}\n").as_bytes())?)
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        self.clear();
    }
}

fn progress_bar(name: &str) -> ProgressBar {
    let bar = ProgressBar::new(0).with_message(crate::text::shorten(name, 40));
    let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    // The template is ours and well-formed.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Agent(error) => error.into(),
            FileError::Local { .. } => Self::new(code::USAGE, error),
            FileError::Folder(_) => Self::new(code::USAGE, error)
                .hint("files are pulled one by one; `baton push` takes folders too"),
            FileError::Receive(ref cause) => match cause {
                TransferError::DiskFull { .. } => Self::new(code::BUSY, error),
                TransferError::WrongDigest { .. } => Self::new(code::INTERNAL, error)
                    .hint("the file was changed while it was pulled; pull it again"),
                TransferError::Link(_) | TransferError::WrongKind { .. } => {
                    Self::new(code::USAGE, error)
                }
                TransferError::UnknownRoot { .. }
                | TransferError::ReadOnly(_)
                | TransferError::Root { .. }
                | TransferError::NotFound(_)
                | TransferError::OtherFileSystem(_)
                | TransferError::TooLarge { .. }
                | TransferError::Busy(_)
                | TransferError::Incomplete { .. }
                | TransferError::TooMuch { .. }
                | TransferError::OffsetBeyondEnd { .. }
                | TransferError::File { .. } => Self::new(code::INTERNAL, error),
            },
        }
    }
}
