//! Pure: output in pieces becomes whole lines that may be shown.

use super::super::value::MASK;

/// The longest line; a longer one is told in pieces.
const MAX_LINE_BYTES: usize = 16 * 1024;
/// Shorter texts are no secrets that could be told from others.
const MIN_SECRET_BYTES: usize = 4;

/// One output of one script.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    /// The lines that are whole now.
    pub(super) fn push(&mut self, data: &[u8], secrets: &Secrets) -> Vec<String> {
        let mut lines = Vec::new();
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            self.pending.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.pending.len() >= MAX_LINE_BYTES {
                lines.extend(self.rest(secrets));
            }
        }
        lines
    }

    /// What is left of a line without an end.
    pub(super) fn rest(&mut self, secrets: &Secrets) -> Option<String> {
        if self.pending.is_empty() {
            return None;
        }
        let line = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        // Of a progress bar, what is seen in the end.
        let line = line.trim_end_matches(['\r', '\n']);
        let line = line.rsplit('\r').next().unwrap_or_default();
        Some(secrets.masked(line))
    }
}

/// Texts that nobody is to see.
#[derive(Default)]
pub(super) struct Secrets(Vec<String>);

impl Secrets {
    /// Each line of each of them.
    pub(super) fn new<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let lines = values.flat_map(str::lines).filter(|line| line.len() >= MIN_SECRET_BYTES);
        let mut lines: Vec<String> = lines.map(str::to_owned).collect();
        // One that is part of another leaves nothing of that.
        lines.sort_by_key(|line| std::cmp::Reverse(line.len()));
        lines.dedup();
        Self(lines)
    }

    /// A text without them.
    pub(super) fn masked(&self, line: &str) -> String {
        let mask = |line: String, secret: &String| line.replace(secret, MASK);
        self.0.iter().fold(line.to_owned(), mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_lines_and_the_last_needs_no_end() {
        let (mut lines, secrets) = (Lines::default(), Secrets::default());
        assert_eq!(lines.push(b"a\nb", &secrets), ["a"]);
        assert_eq!(lines.push(b"c\r\n\xff\n  10%\r 20%", &secrets), ["bc", "\u{fffd}"]);
        assert_eq!(lines.rest(&secrets), Some(" 20%".to_owned()));
        assert_eq!(lines.rest(&secrets), None);
        let long = vec![b'x'; MAX_LINE_BYTES + 1];
        assert_eq!(lines.push(&long, &secrets).len(), 1);
    }

    #[test]
    fn a_secret_is_masked_in_whatever_pieces_it_came() {
        let secrets = Secrets::new(["hunter2", "hunter22\nsecond line", "abc"].into_iter());
        let mut lines = Lines::default();
        assert!(lines.push(b"password: hun", &secrets).is_empty());
        assert_eq!(lines.push(b"ter22 abc\n", &secrets), ["password: ******** abc"]);
        assert_eq!(lines.push(b"a second line\n", &secrets), ["a ********"]);
    }
}
