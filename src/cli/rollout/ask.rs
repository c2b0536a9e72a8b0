//! The manual go-ahead: at the terminal, or by `baton deploy go-ahead` from anywhere on this machine.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use rustix::termios::{QueueSelector, tcflush};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::cli::failure::{Failure, complain};
use crate::deploy::record::{Answer, Question};
use crate::deploy::run::GoAhead;
use crate::filewatch::FileWatcher;
use crate::mutex::Claimant;

/// How many typed lines may wait to be read.
const MAX_LINES: usize = 16;

/// Asks people.
pub(super) struct Asker {
    run: String,
    folder: PathBuf,
    /// The question stands above a table, which would be drawn over anything else.
    is_table: bool,
    terminal: Option<Arc<Terminal>>,
    watcher: FileWatcher,
    _stop: DropGuard,
}

impl Asker {
    pub(super) fn new(
        run: &str,
        folder: &Path,
        is_table: bool,
        terminal: Option<Arc<Terminal>>,
    ) -> Result<Self, Failure> {
        let stop = CancellationToken::new();
        let watcher = FileWatcher::start(&TaskTracker::new(), stop.clone())?;
        let (run, folder, stop) = (run.to_owned(), folder.to_owned(), stop.drop_guard());
        Ok(Self { run, folder, is_table, terminal, watcher, _stop: stop })
    }

    async fn answer(&self, question: Option<Question>, step: &str, message: &str) -> Answer {
        let mut watch = self.watcher.watch(&self.folder).ok();
        if !self.is_table {
            complain(&format!("{step}: {message}"));
            complain(&format!("it goes on after: baton deploy go-ahead {}", self.run));
        }
        let typed = async {
            match &self.terminal {
                Some(terminal) => terminal.ask().await,
                None => std::future::pending().await,
            }
        };
        let given = async {
            loop {
                if let Some(answer) = question.as_ref().and_then(Question::answer) {
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
        let question = Question::ask(&self.folder);
        if let Err(error) = &question {
            complain(&format!("baton: nobody can answer from elsewhere: {error}"));
        }
        Box::pin(self.answer(question.ok(), step, message))
    }
}

/// Who sits at the terminal: asked one thing at a time, by however many runs.
#[derive(Default)]
pub(super) struct Terminal {
    lines: Mutex<Option<mpsc::Receiver<String>>>,
}

impl Terminal {
    /// The terminal, if there is somebody to ask.
    pub(super) fn of(is_table: bool) -> Option<Arc<Self>> {
        (is_table && io::stdin().is_terminal()).then(Arc::default)
    }

    /// A yes or a no; a terminal that is gone answers nothing.
    async fn ask(&self) -> Answer {
        let by = Claimant::this_process(String::new()).user;
        let mut lines = self.lines.lock().await;
        // What was typed before is no answer.
        tcflush(io::stdin(), QueueSelector::IFlush).unwrap_or_default();
        let lines = lines.get_or_insert_with(read_lines);
        while lines.try_recv().is_ok() {}
        while let Some(line) = lines.recv().await {
            match line.trim().to_ascii_lowercase().as_str() {
                "y" | "yes" => return Answer { by, goes_on: true },
                "n" | "no" => return Answer { by, goes_on: false },
                _ => complain("yes or no?"),
            }
        }
        std::future::pending().await
    }
}

/// One thread reads all that is typed: one that were left behind by an answer from elsewhere would take the
/// next one.
fn read_lines() -> mpsc::Receiver<String> {
    let (typed, lines) = mpsc::channel(MAX_LINES);
    std::thread::spawn(move || {
        for line in io::stdin().lines() {
            let Ok(line) = line else { return };
            if typed.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}
