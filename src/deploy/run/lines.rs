//! Pure: output in pieces becomes whole lines.

/// The longest line; a longer one is told in pieces.
const MAX_LINE_BYTES: usize = 16 * 1024;

/// One output of one script.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    /// The lines that are whole now.
    pub(super) fn push(&mut self, data: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        let pieces = data.split_inclusive(|byte| *byte == b'\n');
        for piece in pieces.flat_map(|line| line.chunks(MAX_LINE_BYTES)) {
            self.pending.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.pending.len() >= MAX_LINE_BYTES {
                lines.extend(self.rest());
            }
        }
        lines
    }

    /// What is left of a line without an end.
    pub(super) fn rest(&mut self) -> Option<String> {
        if self.pending.is_empty() {
            return None;
        }
        let line = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        // Of a progress bar, what is seen in the end.
        let line = line.trim_end_matches(['\r', '\n']);
        let line = line.rsplit('\r').next().unwrap_or_default();
        Some(line.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_lines_and_the_last_needs_no_end() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"a\nb"), ["a"]);
        assert_eq!(lines.push(b"c\r\n\xff\n  10%\r 20%"), ["bc", "\u{fffd}"]);
        assert_eq!(lines.rest(), Some(" 20%".to_owned()));
        assert_eq!(lines.rest(), None);
        let long = vec![b'x'; MAX_LINE_BYTES + 1];
        assert_eq!(lines.push(&long).len(), 1);
    }
}
