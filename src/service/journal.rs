//! The log as entries of systemd's journal, with fields, where that reads standard error.
//!
//! 1. The text of an entry is what the text form of the log says, scripts and causes included: `journalctl`
//!    shows nothing but the text.
//! 2. What is said of a script or a call is a field too, `BATON_SCRIPT_ID` say, by which entries are found;
//!    `BATON_INSTANCE` is in each. The level is the priority.
//! 3. An entry that the journal doesn't take is written to standard error, which the journal reads.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, Scope};

use crate::text::shorten;

/// Where the journal takes entries.
const SOCKET: &str = "/run/systemd/journal/socket";
/// The name of the program in the journal.
const IDENTIFIER: &str = "baton";
/// The longest value of a field, in characters: a datagram has a limit.
const MAX_VALUE_CHARS: usize = 8 * 1024;

/// Writes each event into the journal.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    instance: String,
}

impl Journal {
    /// Whether standard error goes to the journal, as systemd says in `JOURNAL_STREAM`: a shell below a
    /// service has the variable too, and another standard error.
    pub fn reads_stderr() -> bool {
        let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
        rustix::fs::fstat(rustix::stdio::stderr())
            .is_ok_and(|found| stream == format!("{}:{}", found.st_dev, found.st_ino))
    }

    /// Finds the journal.
    ///
    /// # Errors
    /// When there is none.
    pub fn connect(instance: &str) -> io::Result<Self> {
        Self::at(Path::new(SOCKET), instance)
    }

    fn at(path: &Path, instance: &str) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        // A journal that hangs must not hang the agent: such entries go to standard error.
        socket.set_nonblocking(true)?;
        Ok(Self { socket, instance: instance.to_owned() })
    }

    fn write(&self, level: Level, target: &str, text: &str, fields: &[(String, String)]) {
        let mut entry = Vec::new();
        put(&mut entry, "PRIORITY", priority(level));
        put(&mut entry, "SYSLOG_IDENTIFIER", IDENTIFIER);
        put(&mut entry, "BATON_INSTANCE", &self.instance);
        put(&mut entry, "BATON_TARGET", target);
        put(&mut entry, "MESSAGE", text);
        for (name, value) in fields {
            put(&mut entry, name, value);
        }
        if self.socket.send(&entry).is_err() {
            // With the priority in the way that journald reads it there; nobody may be left to read it.
            writeln!(io::stderr().lock(), "<{}>{text}", priority(level)).unwrap_or_default();
        }
    }
}

impl<S> Layer<S> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut said = Said::default();
        attributes.record(&mut said);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(said);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(said) = span.extensions_mut().get_mut::<Said>()
        {
            values.record(said);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut own = Said::default();
        event.record(&mut own);
        let (mut text, mut fields) = (String::new(), Vec::new());
        for span in context.event_scope(event).into_iter().flat_map(Scope::from_root) {
            if let Some(said) = span.extensions().get::<Said>() {
                // Writing into a String can't fail.
                write!(text, "{}{{{}}}: ", span.name(), said.text()).unwrap_or_default();
                fields.extend(said.journal_fields());
            }
        }
        text.push_str(&own.message);
        if !own.values.is_empty() {
            write!(text, " {}", own.text()).unwrap_or_default();
        }
        fields.extend(own.journal_fields());
        let metadata = event.metadata();
        self.write(*metadata.level(), metadata.target(), &text, &fields);
    }
}

/// What an event or a span says.
#[derive(Debug, Default)]
struct Said {
    message: String,
    values: Vec<(&'static str, String)>,
}

impl Said {
    fn text(&self) -> String {
        let pairs = self.values.iter().map(|(name, value)| format!("{name}={value}"));
        pairs.collect::<Vec<_>>().join(" ")
    }

    fn journal_fields(&self) -> impl Iterator<Item = (String, String)> {
        self.values.iter().map(|(name, value)| (field_name(name), value.clone()))
    }
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            name => self.values.push((name, value.to_owned())),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// `script_id` becomes `BATON_SCRIPT_ID`: the journal takes capitals, digits and `_`.
fn field_name(name: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("BATON_{}", name.chars().map(allowed).collect::<String>())
}

/// As syslog numbers them.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

/// One field in the form of the journal's protocol: with its length when it has a line break.
fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    let value =
        if value.len() > MAX_VALUE_CHARS { &shorten(value, MAX_VALUE_CHARS) } else { value };
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&u64::try_from(value.len()).unwrap_or(0).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use tracing::{error, info, info_span};
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn an_entry_has_the_text_of_the_log_and_its_fields() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("socket");
        let received = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::at(&path, "blue").unwrap();
        let subscriber = tracing_subscriber::registry().with(journal);
        tracing::subscriber::with_default(subscriber, || {
            let span = info_span!("script", script_id = "s1");
            span.in_scope(|| info!(reason = "no\nmore", "asked to stop"));
            error!("plain");
        });
        let mut buffer = [0; 4096];
        let mut entry = || {
            let length = received.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        let first = entry();
        for part in [
            "PRIORITY=6\n",
            "SYSLOG_IDENTIFIER=baton\n",
            "BATON_INSTANCE=blue\n",
            "MESSAGE\n\u{32}\0\0\0\0\0\0\0script{script_id=s1}: asked to stop reason=no\nmore\n",
            "BATON_SCRIPT_ID=s1\n",
            "BATON_REASON\n\u{7}\0\0\0\0\0\0\0no\nmore\n",
        ] {
            assert!(first.contains(part), "{part:?} in {first:?}");
        }
        let second = entry();
        assert!(second.contains("PRIORITY=3\n") && second.contains("MESSAGE=plain\n"), "{second}");
    }

    #[test]
    fn a_terminal_or_a_pipe_is_no_journal() {
        // Also below a service, where the variable is set.
        assert!(!Journal::reads_stderr());
    }
}
