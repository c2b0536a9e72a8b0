//! `baton mutex status --watch`: shows how mutexes stand, again and again, until it is ended.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;

use super::status::{status_json, text};
use crate::cli::failure::Failure;
use crate::cli::screen::{write_json, write_out};
use crate::mutex::MutexName;
use crate::mutex::status::Status;
use crate::mutex::watch::{Wake, Watch};
use crate::text::shorten;

pub(super) fn watch(
    root: &Path,
    asked: Option<&MutexName>,
    json: bool,
) -> Result<ExitCode, Failure> {
    let mut watch = Watch::new(root, asked.cloned());
    let mut view = match (json, io::stdout().is_terminal()) {
        (true, _) => View::Json(BTreeMap::new()),
        (false, true) => View::Terminal,
        (false, false) => View::Text(None),
    };
    loop {
        view.show(watch.look()?, asked, root)?;
        if watch.wait(io::stdout().as_fd())? == Wake::ReaderGone {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
        }
    }
}

/// What it is shown on, and what was shown last as far as that matters.
enum View {
    /// A line for each mutex that changed.
    Json(BTreeMap<MutexName, Value>),
    /// A table for each change.
    Text(Option<Vec<Value>>),
    /// A table in place.
    Terminal,
}

impl View {
    fn show(
        &mut self,
        mut all: Vec<Status>,
        asked: Option<&MutexName>,
        root: &Path,
    ) -> io::Result<()> {
        if let Self::Json(told) = self {
            return tell_changes(told, &all, asked, root);
        }
        if asked.is_none() {
            all.retain(|status| !status.is_free());
        }
        let text = text(&all, asked, root);
        let Self::Text(told) = self else {
            // Without a size there are no limits.
            let limit = |size: u16| if size == 0 { usize::MAX } else { size.into() };
            let (columns, rows) = rustix::termios::tcgetwinsize(io::stdout())
                .map_or((0, 0), |size| (size.ws_col, size.ws_row));
            return write_out(picture(&text, limit(columns), limit(rows)).as_bytes());
        };
        // Not the text: how long is no change.
        let values: Vec<Value> = all.iter().map(|status| status_json(status, root)).collect();
        if told.as_ref() == Some(&values) {
            return Ok(());
        }
        let gap = if told.is_some() { "\n" } else { "" };
        *told = Some(values);
        write_out(format!("{gap}{text}").as_bytes())
    }
}

fn tell_changes(
    told: &mut BTreeMap<MutexName, Value>,
    all: &[Status],
    asked: Option<&MutexName>,
    root: &Path,
) -> io::Result<()> {
    let is_gone = |name: &&MutexName| !all.iter().any(|status| status.name == **name);
    let gone: Vec<_> = told.keys().filter(is_gone).cloned().map(Status::free).collect();
    for status in all.iter().chain(&gone) {
        // That it is free is news of what was not.
        if status.is_free() && asked.is_none() && !told.contains_key(&status.name) {
            continue;
        }
        let value = status_json(status, root);
        if told.get(&status.name) != Some(&value) {
            write_json(&value)?;
            told.insert(status.name.clone(), value);
        }
    }
    Ok(())
}

/// The text in the place of what was on the terminal before, line by line, so that nothing flickers.
/// The line below it is left for the prompt that comes after.
fn picture(text: &str, columns: usize, rows: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let room = rows.saturating_sub(1).max(1);
    let shown = if lines.len() > room { room - 1 } else { lines.len() };
    let mut picture = "\u{1b}[H".to_owned();
    let more = (shown < lines.len()).then(|| format!("… {} more", lines.len() - shown));
    for line in lines[..shown].iter().copied().chain(more.as_deref()) {
        picture += &shorten(line, columns);
        picture += "\u{1b}[K\n";
    }
    picture + "\u{1b}[J"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_fits_the_terminal_and_clears_what_it_does_not_cover() {
        let text = "MUTEX  WHO\nlog    pid 1\nweb    pid 2\n";
        let fits = picture(text, 80, 4);
        assert_eq!(
            fits,
            "\u{1b}[HMUTEX  WHO\u{1b}[K\nlog    pid 1\u{1b}[K\nweb    pid 2\u{1b}[K\n\u{1b}[J"
        );
        assert_eq!(picture(text, usize::MAX, usize::MAX), fits);
        assert_eq!(picture(text, 8, 3), "\u{1b}[HMUTEX  …\u{1b}[K\n… 2 more\u{1b}[K\n\u{1b}[J");
        assert_eq!(picture(text, 80, 1), "\u{1b}[H… 3 more\u{1b}[K\n\u{1b}[J");
    }
}
