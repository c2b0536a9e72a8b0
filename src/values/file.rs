//! Pure: the output file, in the format of GitHub Actions' `$GITHUB_OUTPUT`.
//!
//! ```text
//! name=value
//! name<<DELIMITER
//! a value
//! of several lines
//! DELIMITER
//! ```
//!
//! 1. What comes first in a line, `=` or `<<`, decides. Blank lines mean nothing.
//! 2. A line without its newline at the end counts. A `\r` at the end of a line is no part of a value of
//!    one line.
//! 3. A value of several lines has no newline at its end.

use super::{MAX_TOTAL_BYTES, Place, Problem, Values};

/// How much of the file is read, in bytes: what is set is at most a quarter of it, and some is set again.
pub const MAX_FILE_BYTES: usize = 4 * MAX_TOTAL_BYTES;

/// After so many values without an end the rest is not read: each one is looked for through the whole
/// file.
const MAX_WITHOUT_END: u32 = 32;

/// Takes what stands in an output file.
pub fn read(text: &[u8], values: &mut Values) {
    let kept = &text[..text.len().min(MAX_FILE_BYTES)];
    let mut lines = Lines { rest: kept, number: 0 };
    let mut without_end = 0;
    while let Some(line) = lines.next() {
        let number = lines.number;
        let place = Place::File(number);
        let Ok(line) = std::str::from_utf8(without_return(line)) else {
            values.remark(place, Problem::NotText, "");
            continue;
        };
        match (line.split_once('='), line.split_once("<<")) {
            (Some((name, value)), heredoc)
                if heredoc.is_none_or(|(other, _)| name.len() < other.len()) =>
            {
                values.set(place, name, value);
            }
            (_, Some((name, delimiter))) if !delimiter.is_empty() => {
                if !read_lines(&mut lines, place, name, delimiter, values) {
                    without_end += 1;
                }
                if without_end == MAX_WITHOUT_END {
                    return values.remark(place, Problem::TooMany, "");
                }
            }
            _ if line.trim().is_empty() => {}
            _ => values.remark(place, Problem::NotUnderstood, line),
        }
    }
    if kept.len() < text.len() {
        values.remark(Place::File(lines.number), Problem::TooLong, "");
    }
}

/// A value of several lines; whether it has an end.
fn read_lines(
    lines: &mut Lines<'_>,
    place: Place,
    name: &str,
    delimiter: &str,
    values: &mut Values,
) -> bool {
    let mut value = Vec::new();
    let mut is_first = true;
    let begun = lines.clone();
    for line in lines.by_ref() {
        if without_return(line) == delimiter.as_bytes() {
            match String::from_utf8(value) {
                Ok(value) => values.set(place, name, &value),
                Err(_) => values.remark(place, Problem::NotText, name),
            }
            return true;
        }
        if !std::mem::take(&mut is_first) {
            value.push(b'\n');
        }
        value.extend_from_slice(line);
    }
    values.remark(place, Problem::NoEnd, name);
    // What comes after such a line is not lost with it.
    *lines = begun;
    false
}

fn without_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[derive(Debug, Clone)]
struct Lines<'a> {
    rest: &'a [u8],
    /// The number of the last one.
    number: u64,
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        self.number += 1;
        let end = memchr::memchr(b'\n', self.rest);
        let (line, rest) = match end {
            Some(end) => (&self.rest[..end], &self.rest[end + 1..]),
            None => (self.rest, &self.rest[..0]),
        };
        self.rest = rest;
        Some(line)
    }
}

/// An output as it stands in the file. The name must have been checked.
pub fn write(name: &str, value: &str) -> String {
    if !value.chars().any(char::is_control) {
        return format!("{name}={value}\n");
    }
    let mut delimiter = "BATON_END".to_owned();
    let is_line = |delimiter: &str| value.split('\n').any(|line| line.trim_end() == delimiter);
    while is_line(&delimiter) {
        delimiter.push('_');
    }
    format!("{name}<<{delimiter}\n{value}\n{delimiter}\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::values::MAX_REMARKS;

    fn values(text: &[u8]) -> Values {
        let mut values = Values::default();
        read(text, &mut values);
        values
    }

    /// The outputs as `name=value`, and the remarks as `line problem name`.
    fn told(text: &[u8]) -> (Vec<String>, Vec<String>) {
        let Values { outputs, remarks, .. } = values(text);
        let outputs = outputs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let line = |place| match place {
            Place::File(line) => line,
            Place::Message(_) | Place::Progress => panic!("not in a file"),
        };
        let remarks =
            remarks.iter().map(|r| format!("{} {:?} {}", line(r.place), r.problem, r.name));
        (outputs, remarks.collect())
    }

    #[test]
    fn the_table_of_forms_is_this_one() {
        let table: &[(&[u8], &[&str], &[&str])] = &[
            (b"", &[], &[]),
            (b"\n \n", &[], &[]),
            (b"a=1\nb=2\n", &["a=1", "b=2"], &[]),
            (b"a=1\na=2", &["a=2"], &[]),
            (b"a=\n", &["a="], &[]),
            (b"a=b=c<<d\n", &["a=b=c<<d"], &[]),
            (b"a= x \r\n", &["a= x "], &[]),
            (b"a<<E\nx\n\ny=1\nE\nb=2\n", &["a=x\n\ny=1", "b=2"], &[]),
            (b"a<<E=1\nx\nE=1\n", &["a=x"], &[]),
            (b"a<<E\r\nx\r\nE\r\n", &["a=x\r"], &[]),
            (b"a<<E\nE\n", &["a="], &[]),
            (b"a<<E\n\n\nE", &["a=\n"], &[]),
            (b"b=1\na<<E\nc=2\n", &["b=1", "c=2"], &["2 NoEnd a"]),
            (b"nonsense\nb=1\n", &["b=1"], &["1 NotUnderstood nonsense"]),
            (b"a<<\nb=1\n", &["b=1"], &["1 NotUnderstood a<<"]),
            (b"=x\n<<E\ny\nE\n", &[], &["1 BadName ", "2 BadName "]),
            (b"a=\xff\nb=1\n", &["b=1"], &["1 NotText "]),
            (b"a<<E\n\xff\nE\nb=1\n", &["b=1"], &["1 NotText a"]),
        ];
        for (text, outputs, remarks) in table {
            let (told_outputs, told_remarks) = told(text);
            let text = String::from_utf8_lossy(text);
            assert_eq!(told_outputs, *outputs, "{text:?}");
            assert_eq!(told_remarks, *remarks, "{text:?}");
        }
    }

    #[test]
    fn a_file_that_is_too_long_is_read_as_far_as_the_limit() {
        let mut text = b"a=1\n".to_vec();
        text.resize(MAX_FILE_BYTES, b'\n');
        text.extend_from_slice(b"b=2\n");
        let values = values(&text);
        assert_eq!(values.outputs.len(), 1);
        assert_eq!(values.remarks[0].problem, Problem::TooLong);
    }

    #[test]
    fn many_values_without_an_end_take_no_time() {
        let values = values(&b"a<<E\n".repeat(MAX_FILE_BYTES / 5));
        assert_eq!(values.outputs.len(), 0);
        assert!(values.remarks_dropped > 0);
    }

    proptest! {
        #[test]
        fn what_was_written_reads_back(
            outputs in prop::collection::btree_map("[a-z]{1,8}", "(?s)(.|BATON_END|_|\n|\r){0,40}", 0..8),
        ) {
            let text: String = outputs.iter().map(|(name, value)| write(name, value)).collect();
            let values = values(text.as_bytes());
            prop_assert_eq!(values.outputs, outputs);
            prop_assert!(values.remarks.is_empty());
        }

        #[test]
        fn no_text_is_too_strange(text in prop::collection::vec(
            prop_oneof![Just(b'\n'), Just(b'='), Just(b'<'), Just(b'E'), any::<u8>()], 0..400))
        {
            let values = values(&text);
            prop_assert!(values.outputs.len() <= text.len() && values.remarks.len() <= MAX_REMARKS);
        }
    }
}
