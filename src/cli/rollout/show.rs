//! What is told of roll-outs, as it is shown.

use std::io::{self, IsTerminal as _, Write as _};

use jiff::Timestamp;

use super::lines;
use super::table::{self, Table};
use super::view::View;
use crate::cli::failure::Failure;
use crate::cli::screen::write_json;
use crate::deploy::event::Event;
use crate::deploy::plan::Plan;

/// How it is shown.
pub(super) struct Show {
    form: Form,
    views: Vec<View>,
}

enum Form {
    /// Nobody reads it.
    Nothing,
    Json,
    Lines,
    Table(Table),
}

impl Show {
    pub(super) fn new(json: bool) -> Self {
        let form = if json {
            Form::Json
        } else if io::stdout().is_terminal() && io::stderr().is_terminal() {
            Form::Table(Table::new())
        } else {
            Form::Lines
        };
        Self { form, views: Vec::new() }
    }

    /// This run will be told of.
    pub(super) fn expect(&mut self, plan: &Plan, run: &str) {
        self.views.push(View::new(plan, run));
    }

    pub(super) fn is_table(&self) -> bool {
        matches!(self.form, Form::Table(_))
    }

    pub(super) fn hear(&mut self, event: &Event) -> Result<(), Failure> {
        let is_one_of_many = self.views.len() > 1;
        let mut of = String::new();
        for view in self.views.iter_mut().filter(|view| view.run() == event.run) {
            view.hear(event);
            if is_one_of_many {
                of = format!("{}: ", view.project());
            }
        }
        match &mut self.form {
            Form::Nothing => {}
            Form::Json => write_json(&serde_json::to_value(event).unwrap_or_default())?,
            Form::Lines => {
                if let Some(line) = lines::line(event) {
                    let mut out = io::stdout().lock();
                    writeln!(out, "{of}{line}").and_then(|()| out.flush())?;
                }
            }
            Form::Table(table) => table.told(&of, event),
        }
        Ok(())
    }

    /// Nobody reads any more what is shown.
    pub(super) fn be_silent(&mut self) {
        self.form = Form::Nothing;
    }

    pub(super) fn draw(&mut self) {
        let Form::Table(table) = &mut self.form else { return };
        let (rows, columns) = table::size();
        // One line is left for what comes behind.
        let share = usize::from(rows).saturating_sub(1) / self.views.len().max(1);
        let now = Timestamp::now();
        let lines =
            self.views.iter().flat_map(|view| view.lines(share.max(2), columns.into(), now));
        table.draw(lines.collect());
    }

    /// What is left on the screen at the end.
    pub(super) fn finish(self) -> String {
        if let Form::Table(table) = self.form {
            table.clear();
        } else if matches!(self.form, Form::Json | Form::Nothing) {
            return String::new();
        }
        let summaries: Vec<String> = self.views.iter().map(View::summary).collect();
        summaries.join("\n")
    }
}
