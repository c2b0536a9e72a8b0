//! Pure: the service messages of Octopus Deploy in a script's standard output.
//!
//! ```text
//! ##octopus[setVariable name='dmVyc2lvbg==' value='MS4y']
//! ##octopus[progress percentage='NDA=' message='Y29weWluZw==']
//! ##octopus[stdout-warning]
//! ```
//!
//! 1. Every byte comes out again, in order, however the input is cut. Only a line that may be a message
//!    is held back until its end.
//! 2. A message stands at the beginning of a line and is the whole line.
//! 3. A line that is too long for a message is none.
//! 4. In a message with a sensitive value, the value comes out as so many `*`.
//! 5. Looking costs one search for the beginning of a message; lines are not told apart.

use std::ops::Range;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use memchr::memmem::Finder;
use serde::{Deserialize, Serialize};

use super::{Problem, Progress};

/// What a message begins with.
const MARKER: &[u8] = b"##octopus[";
/// The longest message, in bytes: the longest value and name in base64 with room around.
pub const MAX_MESSAGE_BYTES: usize = 128 * 1024;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a piece of output is, as the script's service messages say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Nothing was said.
    #[default]
    Default,
    /// For who wants to know more.
    Verbose,
    /// To stand out.
    Highlight,
    /// The script waits for something.
    Wait,
    /// A warning.
    Warning,
    /// An error.
    Error,
    /// Of no interest to people.
    Ignored,
    /// A service message itself.
    Message,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// What follows is of another level.
    Level(Level),
    /// An output.
    Output {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// How far the script is.
    Progress(Progress),
    /// Nothing that can be used: why, and the name of the output or message.
    Nothing(Problem, String),
}

/// A piece of output.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// What it is.
    pub level: Level,
    /// The bytes.
    pub bytes: &'a [u8],
    /// What it says when it is a message.
    pub said: Option<Said>,
}

/// Finds messages in a stream of bytes.
#[derive(Debug)]
pub struct Messages {
    finder: Finder<'static>,
    level: Level,
    /// Whether the next byte is the first of a line.
    at_start: bool,
    /// The beginning of a line that may be a message.
    held: Vec<u8>,
}

impl Default for Messages {
    fn default() -> Self {
        let finder = Finder::new(MARKER);
        Self { finder, level: Level::Default, at_start: true, held: Vec::new() }
    }
}

impl Messages {
    /// Takes the next bytes; gives out what they are.
    pub fn feed(&mut self, bytes: &[u8], give: &mut impl FnMut(Piece<'_>)) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.held.is_empty() {
                let (plain, candidate) = rest.split_at(self.candidate(rest));
                self.plain(plain, give);
                let begun = candidate.len().min(MARKER.len());
                self.held.extend_from_slice(&candidate[..begun]);
                rest = &candidate[begun..];
            } else {
                rest = self.go_on(rest, give);
            }
        }
    }

    /// The end: gives out what was held back.
    pub fn finish(&mut self, give: &mut impl FnMut(Piece<'_>)) {
        let held = std::mem::take(&mut self.held);
        if held.len() > MARKER.len() {
            self.whole(held, give);
        } else {
            self.plain(&held, give);
        }
    }

    fn plain(&mut self, bytes: &[u8], give: &mut impl FnMut(Piece<'_>)) {
        if let Some(last) = bytes.last() {
            self.at_start = *last == b'\n';
            give(Piece { level: self.level, bytes, said: None });
        }
    }

    /// Where the first line begins that may be a message; the length when there is none.
    fn candidate(&self, bytes: &[u8]) -> usize {
        let starts = |at: usize| match at.checked_sub(1) {
            Some(before) => bytes[before] == b'\n',
            None => self.at_start,
        };
        if let Some(at) = self.finder.find_iter(bytes).find(|at| starts(*at)) {
            return at;
        }
        let longest = bytes.len().min(MARKER.len() - 1);
        let cut = (1..=longest).rev().map(|length| (bytes.len() - length, &MARKER[..length]));
        let mut cut = cut.filter(|(at, begun)| starts(*at) && bytes.ends_with(begun));
        cut.next().map_or(bytes.len(), |(at, _)| at)
    }

    /// Goes on with a line of which the beginning is held; returns what is behind.
    fn go_on<'a>(&mut self, bytes: &'a [u8], give: &mut impl FnMut(Piece<'_>)) -> &'a [u8] {
        if let Some(missing) = MARKER.get(self.held.len()..).filter(|m| !m.is_empty()) {
            let begun = missing.len().min(bytes.len());
            if bytes[..begun] == missing[..begun] {
                self.held.extend_from_slice(&bytes[..begun]);
                return &bytes[begun..];
            }
            let held = std::mem::take(&mut self.held);
            self.plain(&held, give);
            return bytes;
        }
        let room = bytes.len().min(MAX_MESSAGE_BYTES + 1 - self.held.len());
        let end = memchr::memchr(b'\n', &bytes[..room]).map_or(room, |at| at + 1);
        self.held.extend_from_slice(&bytes[..end]);
        if self.held.ends_with(b"\n") {
            let held = std::mem::take(&mut self.held);
            self.whole(held, give);
        } else if self.held.len() > MAX_MESSAGE_BYTES {
            // Rule 3.
            let held = std::mem::take(&mut self.held);
            self.at_start = false;
            let said = Some(Said::Nothing(Problem::TooLong, String::new()));
            give(Piece { level: self.level, bytes: &held, said });
        }
        &bytes[end..]
    }

    /// A whole line that begins as a message does.
    fn whole(&mut self, mut line: Vec<u8>, give: &mut impl FnMut(Piece<'_>)) {
        self.at_start = line.ends_with(b"\n");
        let (said, secret) = parse(&line);
        if let Some(secret) = secret {
            line[secret].fill(b'*');
        }
        let is_understood = !matches!(
            said,
            Said::Nothing(Problem::NotUnderstood | Problem::UnknownMessage | Problem::NotText, _)
        );
        let level = if is_understood { Level::Message } else { self.level };
        if let Said::Level(next) = said {
            self.level = next;
        }
        give(Piece { level, bytes: &line, said: Some(said) });
    }
}

/// What a line says, and where in it a value is that must not be seen.
fn parse(line: &[u8]) -> (Said, Option<Range<usize>>) {
    let Ok(text) = std::str::from_utf8(line) else {
        return (Said::Nothing(Problem::NotText, String::new()), None);
    };
    let inner = text.trim_end().strip_suffix(']').and_then(|text| text.get(MARKER.len()..));
    let Some(inner) = inner else {
        return (Said::Nothing(Problem::NotUnderstood, String::new()), None);
    };
    let (name, attributes) = inner.split_once(' ').unwrap_or((inner, ""));
    let nothing = |problem| (Said::Nothing(problem, name.to_owned()), None);
    let Some(attributes) = Attributes::parse(attributes) else {
        return nothing(Problem::NotUnderstood);
    };
    let level = match name {
        "stdout-default" => Level::Default,
        "stdout-verbose" => Level::Verbose,
        "stdout-highlight" => Level::Highlight,
        "stdout-wait" => Level::Wait,
        "stdout-warning" => Level::Warning,
        "stdout-error" => Level::Error,
        "stdout-ignore" => Level::Ignored,
        "setVariable" => return attributes.variable(MARKER.len() + name.len() + 1),
        "progress" => {
            let progress = attributes.progress().map(Said::Progress);
            return progress.map_or_else(|| nothing(Problem::NotUnderstood), |said| (said, None));
        }
        _ => return nothing(Problem::UnknownMessage),
    };
    (Said::Level(level), None)
}

/// `key='value' …`; the values are base64 of UTF-8.
struct Attributes<'a> {
    text: &'a str,
    pairs: Vec<(&'a str, Range<usize>)>,
}

impl<'a> Attributes<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut pairs = Vec::new();
        let mut at = 0;
        while !text[at..].trim_start().is_empty() {
            let (key, value) = text[at..].split_once("='")?;
            let start = at + key.len() + 2;
            let end = start + value.find('\'')?;
            pairs.push((key.trim(), start..end));
            at = end + 1;
        }
        Some(Self { text, pairs })
    }

    fn range(&self, key: &str) -> Option<Range<usize>> {
        let found = self.pairs.iter().find(|(name, _)| name.eq_ignore_ascii_case(key));
        found.map(|(_, range)| range.clone())
    }

    fn value(&self, key: &str) -> Option<String> {
        let bytes = BASE64.decode(&self.text[self.range(key)?]).ok()?;
        String::from_utf8(bytes).ok()
    }

    /// An output; `offset` is where the attributes begin in the line.
    fn variable(&self, offset: usize) -> (Said, Option<Range<usize>>) {
        let name = self.value("name");
        // What can't be read may say that it is.
        let is_sensitive = self.range("sensitive").is_some_and(|_| {
            self.value("sensitive").is_none_or(|text| !text.eq_ignore_ascii_case("false"))
        });
        if is_sensitive {
            let secret = self.range("value").map(|r| r.start + offset..r.end + offset);
            return (Said::Nothing(Problem::Sensitive, name.unwrap_or_default()), secret);
        }
        let said = match (name, self.value("value")) {
            (Some(name), Some(value)) => Said::Output { name, value },
            (name, _) => {
                Said::Nothing(Problem::NotUnderstood, name.unwrap_or("setVariable".to_owned()))
            }
        };
        (said, None)
    }

    fn progress(&self) -> Option<Progress> {
        let percent = self.value("percentage")?.trim().parse().ok()?;
        Progress::new(percent, &self.value("message").unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Given = (Level, Vec<u8>, Option<Said>);

    /// What comes out, with neighbours of the same level joined.
    fn given(chunks: &[&[u8]]) -> Vec<Given> {
        let mut all: Vec<Given> = Vec::new();
        let mut messages = Messages::default();
        let mut give = |piece: Piece<'_>| match all.last_mut() {
            Some((level, bytes, None)) if piece.said.is_none() && *level == piece.level => {
                bytes.extend_from_slice(piece.bytes);
            }
            _ => all.push((piece.level, piece.bytes.to_vec(), piece.said)),
        };
        for chunk in chunks {
            messages.feed(chunk, &mut give);
        }
        messages.finish(&mut give);
        all
    }

    fn variable(name: &str, value: &str, more: &str) -> String {
        let encode = |text: &str| BASE64.encode(text);
        format!("##octopus[setVariable name='{}' value='{}'{more}]\n", encode(name), encode(value))
    }

    fn said(line: &str) -> Said {
        parse(line.as_bytes()).0
    }

    #[test]
    fn the_table_of_messages_is_this_one() {
        let nothing = |problem, name: &str| Said::Nothing(problem, name.to_owned());
        let output = |name: &str, value: &str| Said::Output {
            name: name.to_owned(),
            value: value.to_owned(),
        };
        let table = [
            (variable("version", "1.2", ""), output("version", "1.2")),
            (variable("größe", "a\nb'", ""), output("größe", "a\nb'")),
            (variable("empty", "", ""), output("empty", "")),
            ("##octopus[setVariable name='YQ' value='Yg']".to_owned(), output("a", "b")),
            (variable("a", "b", " sensitive='RmFsc2U='"), output("a", "b")),
            (variable("a", "b", " sensitive='VHJ1ZQ=='"), nothing(Problem::Sensitive, "a")),
            (variable("a", "b", " sensitive='?'"), nothing(Problem::Sensitive, "a")),
            (
                "##octopus[setVariable name='YQ==']\n".to_owned(),
                nothing(Problem::NotUnderstood, "a"),
            ),
            (
                "##octopus[progress percentage='NDA=' message='Y29weWluZw==']\r\n".to_owned(),
                Said::Progress(Progress::new(40, "copying").unwrap()),
            ),
            (
                "##octopus[progress percentage='MTAx']\n".to_owned(),
                nothing(Problem::NotUnderstood, "progress"),
            ),
            ("##octopus[stdout-warning]\n".to_owned(), Said::Level(Level::Warning)),
            ("##octopus[stdout-ignore]\n".to_owned(), Said::Level(Level::Ignored)),
            (
                "##octopus[createArtifact path='YQ==']\n".to_owned(),
                nothing(Problem::UnknownMessage, "createArtifact"),
            ),
            ("##octopus[stdout-error\n".to_owned(), nothing(Problem::NotUnderstood, "")),
            ("##octopus[progress x]\n".to_owned(), nothing(Problem::NotUnderstood, "progress")),
            ("##octopus[]\n".to_owned(), nothing(Problem::UnknownMessage, "")),
        ];
        for (line, expected) in table {
            assert_eq!(said(&line), expected, "{line}");
        }
    }

    #[test]
    fn what_follows_a_level_has_it_until_the_next() {
        let text = b"a\n##octopus[stdout-error]\nb\nc##octopus[stdout-default]\n##octopus[stdout-verbose]\nd";
        let given = given(&[text]);
        let levels: Vec<_> = given.iter().map(|(level, ..)| *level).collect();
        let expected =
            [Level::Default, Level::Message, Level::Error, Level::Message, Level::Verbose];
        assert_eq!(levels, expected);
        // Not at the beginning of a line, so it is none.
        assert_eq!(given[2].1, b"b\nc##octopus[stdout-default]\n");
    }

    #[test]
    fn rule_3_a_line_that_is_too_long_comes_out_as_it_is() {
        let mut long = MARKER.to_vec();
        long.resize(MAX_MESSAGE_BYTES + 100, b'x');
        long.extend_from_slice(b"]\nnext\n");
        let given = given(&[&long]);
        let problem = Said::Nothing(Problem::TooLong, String::new());
        assert_eq!((given[0].0, &given[0].2), (Level::Default, &Some(problem)));
        assert_eq!(given.iter().map(|(_, bytes, _)| bytes.len()).sum::<usize>(), long.len());
    }

    #[test]
    fn rule_4_a_secret_does_not_come_out() {
        let line = variable("b", "b", " sensitive='VHJ1ZQ=='");
        let given = given(&[line.as_bytes()]);
        let seen = String::from_utf8(given[0].1.clone()).unwrap();
        let expected = "##octopus[setVariable name='Yg==' value='****' sensitive='VHJ1ZQ==']\n";
        assert_eq!(seen, expected);
        assert_eq!(given[0].0, Level::Message);
    }

    fn part() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            Just(b"##octopus[stdout-warning]\n".to_vec()),
            Just(variable("a", "b", "").into_bytes()),
            Just(b"##octopus[nonsense".to_vec()),
            (1..=MARKER.len()).prop_map(|length| MARKER[..length].to_vec()),
            Just(b"\n".to_vec()),
            Just(b"#".to_vec()),
            prop::collection::vec(any::<u8>(), 0..20),
        ]
    }

    proptest! {
        #[test]
        fn rule_1_however_it_is_cut_the_same_comes_out(
            parts in prop::collection::vec(part(), 0..12),
            cuts in prop::collection::vec(1..12_usize, 1..40),
        ) {
            let text = parts.concat();
            let whole = given(&[&text]);
            let bytes: Vec<u8> = whole.iter().flat_map(|(_, bytes, _)| bytes.clone()).collect();
            prop_assert_eq!(&bytes, &text);
            let mut chunks = Vec::new();
            let mut rest = text.as_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (chunk, next) = rest.split_at(rest.len().min(*cut));
                chunks.push(chunk);
                rest = next;
            }
            prop_assert_eq!(given(&chunks), whole);
        }
    }
}
