//! The manual go-ahead: at the terminal, or by `baton deploy go-ahead` from anywhere on this machine.

use std::io::{self, BufRead as _, IsTerminal as _};
use std::path::{Path, PathBuf};

use futures_util::future::BoxFuture;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::cli::failure::{Failure, complain};
use crate::deploy::record::{Answer, take_answer};
use crate::deploy::run::GoAhead;
use crate::filewatch::FileWatcher;
use crate::mutex::Claimant;

/// Asks people.
pub(super) struct Asker {
    run: String,
    folder: PathBuf,
    has_terminal: bool,
    watcher: FileWatcher,
    _stop: DropGuard,
}

impl Asker {
    pub(super) fn new(run: &str, folder: &Path, is_table: bool) -> Result<Self, Failure> {
        let stop = CancellationToken::new();
        let watcher = FileWatcher::start(&TaskTracker::new(), stop.clone())?;
        let has_terminal = is_table && io::stdin().is_terminal();
        let (run, folder, stop) = (run.to_owned(), folder.to_owned(), stop.drop_guard());
        Ok(Self { run, folder, has_terminal, watcher, _stop: stop })
    }

    async fn answer(&self, step: &str, message: &str) -> Answer {
        let mut watch = self.watcher.watch(&self.folder).ok();
        let other = format!("baton deploy go-ahead {}", self.run);
        complain(&format!("{step}: {message}"));
        if self.has_terminal {
            complain(&format!("go on? yes or no; or elsewhere: {other}"));
        } else {
            complain(&format!("it goes on after: {other}"));
        }
        let typed =
            async { if self.has_terminal { typed().await } else { std::future::pending().await } };
        let given = async {
            loop {
                if let Some(answer) = take_answer(&self.folder) {
                    return answer;
                }
                match &mut watch {
                    Some(watch) => watch.changed().await,
                    None => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            answer = typed => answer,
            answer = given => answer,
        }
    }
}

impl GoAhead for Asker {
    fn ask<'a>(&'a self, step: &'a str, message: &'a str) -> BoxFuture<'a, Answer> {
        Box::pin(self.answer(step, message))
    }
}

/// A yes or a no from the terminal; a terminal that is gone answers nothing.
async fn typed() -> Answer {
    let by = Claimant::this_process(String::new()).user;
    loop {
        // The thread is left behind when the answer comes from elsewhere.
        let read = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            io::stdin().lock().read_line(&mut line).map(|length| (length, line))
        });
        match read.await {
            Ok(Ok((length, line))) if length > 0 => {
                match line.trim().to_ascii_lowercase().as_str() {
                    "y" | "yes" => return Answer { by, goes_on: true },
                    "n" | "no" => return Answer { by, goes_on: false },
                    _ => complain("yes or no?"),
                }
            }
            _ => std::future::pending::<()>().await,
        }
    }
}
