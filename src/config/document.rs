//! Pure: what the text of `agent.toml` says of which key, at which line.
//!
//! Unlike a type that serde fills, it goes on behind what is wrong: all problems are told together, and each value
//! keeps its line.

use std::ops::Range;
use std::path::Path;

use serde::Deserialize as _;
use toml::de::{DeTable, DeValue, ValueDeserializer};
use toml::{Spanned, Value};

use super::given::{Given, Origin, Problem};
use super::key::Key;

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Document {
    pub(super) given: Vec<Given>,
    pub(super) problems: Vec<Problem>,
}

/// A file's text, and where it is.
struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    document: Document,
}

impl Document {
    /// Reads a text.
    pub(super) fn read(path: &Path, text: &str) -> Self {
        let mut reader = Reader { path, text, document: Self::default() };
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut last = 0;
        for error in &errors {
            let line = error.span().map_or(1, |span| reader.line(&span));
            // One mistake may be reported in several ways.
            if line != last {
                reader.problem(line, "", error.message().to_owned(), None);
            }
            last = line;
        }
        // What was made of a text that is no TOML may mean something else.
        if errors.is_empty() {
            reader.table("", table.get_ref());
        }
        reader.document
    }
}

impl Reader<'_> {
    fn line(&self, span: &Range<usize>) -> usize {
        self.text[..span.start].matches('\n').count() + 1
    }

    fn origin(&self, line: usize) -> Origin {
        Origin::File { path: self.path.to_owned(), line }
    }

    fn problem(&mut self, line: usize, key: &str, message: String, hint: Option<String>) {
        let (origin, key) = (self.origin(line), key.to_owned());
        self.document.problems.push(Problem { origin, key, value: None, message, hint });
    }

    /// The keys of a table whose own name, with a dot behind it, is `prefix`.
    fn table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let line = self.line(&name.span());
            let full = format!("{prefix}{}", name.get_ref());
            if let Some(key) = Key::named(&full) {
                self.value(key, line, value);
            } else if !Key::is_table(&full) {
                let known = Key::all().iter().map(|key| key.name);
                let hint = crate::text::did_you_mean(&full, known);
                self.problem(line, &full, format!("unknown key `{full}`"), hint);
            } else if let DeValue::Table(below) = value.get_ref() {
                self.table(&format!("{full}."), below);
            } else {
                let message = format!("`{full}` is a table: [{full}]");
                self.problem(line, &full, message, None);
            }
        }
    }

    fn value(&mut self, key: &'static Key, line: usize, value: &Spanned<DeValue<'_>>) {
        let entry = |(name, _): (&Spanned<_>, _)| (name_of(name), self.line(&name.span()));
        let lines = value.get_ref().as_table().into_iter().flatten().map(entry).collect();
        let origin = self.origin(line);
        match Value::deserialize(ValueDeserializer::from(value.clone())) {
            Ok(value) => self.document.given.push(Given { key, value, origin, lines }),
            // A number that is out of all range, say.
            Err(error) => self.problem(line, key.name, error.message().to_owned(), None),
        }
    }
}

fn name_of(name: &Spanned<std::borrow::Cow<'_, str>>) -> String {
    name.get_ref().clone().into_owned()
}
