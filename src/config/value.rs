//! Values of keys, from TOML and as TOML. What is wrong with one is said without its key and place:
//! those know who asked for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use toml::{Table, Value};

use super::files::{Access, Root};
use super::{MAX_COMMAND_WORDS, MAX_TIME};

/// The longest name of a root.
const MAX_ROOT_NAME: usize = 64;
/// The bytes of a minisign public key: algorithm (2), key id (8), Ed25519 key (32).
const KEY_BYTES: usize = 42;

/// What is wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub(super) struct WrongValue {
    /// What is wrong.
    pub(super) problem: String,
    /// The entry of a table that it is about.
    pub(super) entry: Option<String>,
}

fn wrong(problem: impl Into<String>) -> WrongValue {
    WrongValue { problem: problem.into(), entry: None }
}

type Parsed<T> = Result<T, WrongValue>;

/// A string.
fn string(value: Value) -> Parsed<String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Integer(_)
        | Value::Float(_)
        | Value::Boolean(_)
        | Value::Datetime(_)
        | Value::Array(_)
        | Value::Table(_) => Err(wrong("must be a text, in quotes")),
    }
}

fn integer(value: &Value) -> Parsed<i64> {
    value.as_integer().ok_or_else(|| wrong("must be a number"))
}

/// What the agent calls itself.
pub(super) fn name(value: Value) -> Parsed<String> {
    let name = string(value)?;
    if name.trim().is_empty() {
        return Err(wrong("must not be empty"));
    }
    crate::script::check_text(&name, 255).map_err(|error| wrong(error.to_string()))?;
    Ok(name)
}

/// An address, or `none`.
pub(super) fn address(value: Value) -> Parsed<Option<SocketAddr>> {
    let text = string(value)?;
    if text == "none" {
        return Ok(None);
    }
    let problem = "must be ADDRESS:PORT, for example 0.0.0.0:10950, or none";
    text.parse().map(Some).map_err(|_| wrong(problem))
}

/// How many.
pub(super) fn count(value: &Value, allowed: &RangeInclusive<u64>) -> Parsed<u64> {
    let count = u64::try_from(integer(value)?).ok().filter(|count| allowed.contains(count));
    count.ok_or_else(|| wrong(format!("must be {} to {}", allowed.start(), allowed.end())))
}

/// The same, where it counts things in memory.
pub(super) fn length(value: &Value, allowed: &RangeInclusive<u64>) -> Parsed<usize> {
    let count = count(value, allowed)?;
    usize::try_from(count).map_err(|_| wrong("is more than this machine can count"))
}

/// How many bytes.
pub(super) fn bytes(value: &Value) -> Parsed<u64> {
    u64::try_from(integer(value)?).map_err(|_| wrong("must not be negative"))
}

/// A time of at most a day.
pub(super) fn time(value: Value) -> Parsed<Duration> {
    let time = parse_time(&string(value)?, "")?;
    if time > MAX_TIME {
        return Err(wrong("must be at most 1 day"));
    }
    Ok(time)
}

/// The same, and not zero.
pub(super) fn time_limit(value: Value) -> Parsed<Duration> {
    let time = time(value)?;
    if time.is_zero() { Err(wrong("must not be zero")) } else { Ok(time) }
}

/// A time without an end.
pub(super) fn age(value: Value) -> Parsed<Duration> {
    parse_time(&string(value)?, "")
}

/// The same, or `none` for ever.
pub(super) fn age_or_none(value: Value) -> Parsed<Option<Duration>> {
    match string(value)?.as_str() {
        "none" => Ok(None),
        text => parse_time(text, ", or none").map(Some),
    }
}

fn parse_time(text: &str, or: &str) -> Parsed<Duration> {
    humantime::parse_duration(text)
        .map_err(|error| wrong(format!("{error}; must be a time such as 90s or 12h{or}")))
}

fn strings(value: Value) -> Parsed<Vec<String>> {
    match value {
        Value::Array(items) => items.into_iter().map(string).collect(),
        Value::String(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::Boolean(_)
        | Value::Datetime(_)
        | Value::Table(_) => Err(wrong("must be a list of texts: [\"…\", \"…\"]")),
    }
}

/// A program and its arguments, or nothing.
pub(super) fn command(value: Value) -> Parsed<Vec<String>> {
    let words = strings(value)?;
    match words.first() {
        None => Ok(words),
        Some(program) if program.is_empty() => Err(wrong("names no program")),
        Some(_) if words.len() > MAX_COMMAND_WORDS => {
            Err(wrong(format!("has more than {MAX_COMMAND_WORDS} words")))
        }
        Some(_) if words.iter().any(|word| word.contains('\0')) => Err(wrong("has a NUL")),
        Some(_) => Ok(words),
    }
}

/// Public keys of minisign.
pub(super) fn public_keys(value: Value) -> Parsed<Vec<String>> {
    let keys = strings(value)?;
    let is_key = |key: &&String| {
        let decoded = STANDARD.decode(key);
        decoded.is_ok_and(|bytes| bytes.len() == KEY_BYTES && bytes.starts_with(b"Ed"))
    };
    if let Some(bad) = keys.iter().find(|key| !is_key(key)) {
        let problem = "is no public key of minisign (the last line of minisign.pub)";
        return Err(wrong(format!("{bad:?} {problem}")));
    }
    Ok(keys)
}

/// Folders that are open to clients, by name.
pub(super) fn roots(value: Value) -> Parsed<BTreeMap<String, Root>> {
    let Value::Table(table) = value else {
        return Err(wrong("must be a table of roots: NAME = { path = \"…\", access = \"…\" }"));
    };
    let root = |(name, value): (String, Value)| {
        let failed = |problem: String| WrongValue { problem, entry: Some(name.clone()) };
        crate::script::check_name(&name, MAX_ROOT_NAME).map_err(|e| failed(e.to_string()))?;
        let root: Root =
            value.try_into().map_err(|e: toml::de::Error| failed(e.message().to_owned()))?;
        if root.path.as_os_str().is_empty() {
            return Err(failed("its path is empty".to_owned()));
        }
        Ok((name, root))
    };
    table.into_iter().map(root).collect()
}

/// As TOML.
pub(super) fn from_text(text: &str) -> Value {
    Value::String(text.to_owned())
}

/// An address, or `none`.
pub(super) fn from_address(address: Option<SocketAddr>) -> Value {
    Value::String(address.map_or_else(|| "none".to_owned(), |address| address.to_string()))
}

/// A number; TOML has no greater ones than that.
pub(super) fn from_number(number: impl TryInto<i64>) -> Value {
    Value::Integer(number.try_into().unwrap_or(i64::MAX))
}

/// Texts.
pub(super) fn from_texts(texts: &[String]) -> Value {
    Value::Array(texts.iter().map(|text| from_text(text)).collect())
}

/// Roots.
pub(super) fn from_roots(roots: &BTreeMap<String, Root>) -> Value {
    let root = |Root { path, access }: &Root| {
        let access = match access {
            Access::Read => "read",
            Access::ReadWrite => "read-write",
        };
        Value::Table(Table::from_iter([
            // It came from TOML, which is UTF-8.
            ("path".to_owned(), from_text(&path.to_string_lossy())),
            ("access".to_owned(), from_text(access)),
        ]))
    };
    Value::Table(roots.iter().map(|(name, found)| (name.clone(), root(found))).collect())
}

/// A time as short as people write it: `1d12h`, `90s` as `1m30s`.
pub(super) fn from_time(time: Duration) -> Value {
    let mut left = time.as_nanos();
    let units = [
        ("d", 86_400_000_000_000),
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
        ("us", 1_000),
        ("ns", 1),
    ];
    let part = |(unit, nanos)| {
        let count = left / nanos;
        left %= nanos;
        (count > 0).then(|| format!("{count}{unit}"))
    };
    let text: String = units.into_iter().filter_map(part).collect();
    Value::String(if text.is_empty() { "0s".to_owned() } else { text })
}

/// The same, or `none`.
pub(super) fn from_time_or_none(time: Option<Duration>) -> Value {
    time.map_or_else(|| from_text("none"), from_time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_short_as_it_is_read() {
        for text in ["0s", "10s", "1m30s", "30d", "1d12h", "250ms", "1s5ms", "1us1ns"] {
            let time = humantime::parse_duration(text).unwrap();
            assert_eq!(from_time(time), from_text(text));
        }
    }

    #[test]
    fn a_table_is_shown_on_one_line() {
        let table: Table = toml::from_str("a = { path = \"x\", access = \"read\" }").unwrap();
        assert_eq!(Value::Table(table).to_string(), "{ a = { access = \"read\", path = \"x\" } }");
    }

    #[test]
    fn a_root_that_is_wrong_is_named() {
        for (text, problem) in [
            ("a = { path = \"x\" }", "missing field `access`"),
            ("a = { path = \"x\", access = \"all\" }", "unknown variant `all`"),
            ("a = { path = \"\", access = \"read\" }", "its path is empty"),
            ("a = 1", "invalid type"),
        ] {
            let error = roots(Value::Table(toml::from_str(text).unwrap())).unwrap_err();
            assert_eq!(error.entry.as_deref(), Some("a"), "{error}");
            assert!(error.problem.contains(problem), "{error}");
        }
    }
}
