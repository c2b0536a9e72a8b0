//! The live table on a terminal.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::deploy::event::{Event, What};

/// How often it is drawn.
pub(super) const FRAME: Duration = Duration::from_millis(120);
/// When the terminal doesn't say.
const ROWS: u16 = 24;
const COLUMNS: u16 = 80;

/// Lines that are drawn again and again.
pub(super) struct Table {
    all: MultiProgress,
    bars: Vec<ProgressBar>,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { all: MultiProgress::new(), bars: Vec::new() }
    }

    /// What is to stay on the screen goes above the table.
    pub(super) fn told(&self, of: &str, event: &Event) {
        let stays = matches!(
            event.what,
            What::WaitsForTurn { .. }
                | What::LeftOut { .. }
                | What::Ends { .. }
                | What::Paused { .. }
                | What::Answered { .. }
        );
        if let Some(mut line) = super::lines::line(event).filter(|_| stays) {
            if matches!(event.what, What::Paused { .. }) {
                let here = if io::stdin().is_terminal() { "type yes or no, or " } else { "" };
                line =
                    format!("{line}\ngo on? {here}elsewhere: baton deploy go-ahead {}", event.run);
            }
            self.all.println(format!("{of}{line}")).unwrap_or_default();
        }
    }

    pub(super) fn draw(&mut self, lines: Vec<String>) {
        while self.bars.len() < lines.len() {
            let bar = self.all.add(ProgressBar::new_spinner());
            if let Ok(style) = ProgressStyle::with_template("{msg}") {
                bar.set_style(style);
            }
            self.bars.push(bar);
        }
        for bar in self.bars.drain(lines.len()..) {
            self.all.remove(&bar);
        }
        for (bar, line) in self.bars.iter().zip(lines) {
            bar.set_message(line);
        }
    }

    pub(super) fn clear(self) {
        for bar in self.bars {
            bar.finish_and_clear();
        }
        self.all.clear().unwrap_or_default();
    }
}

/// The terminal's rows and columns.
pub(super) fn size() -> (u16, u16) {
    let size = rustix::termios::tcgetwinsize(io::stderr()).ok();
    let size = size.filter(|size| size.ws_row > 0 && size.ws_col > 0);
    size.map_or((ROWS, COLUMNS), |size| (size.ws_row, size.ws_col))
}
