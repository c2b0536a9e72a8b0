//! Pure: output on its way into the journal, in which secrets are overwritten with as many `*`.
//!
//! 1. A secret is found in whatever pieces it comes. What may be the beginning of one waits for the next piece,
//!    or for the end.
//! 2. The number of bytes stays the same: offsets count what the script wrote.
//! 3. Each line of a secret is one; one of fewer than [`MIN_BYTES`] can't be told from other text.
//! 4. Texts for people have spaces for control characters, and may be cut: a secret is found in them all the same,
//!    also its beginning where they were cut.

use std::borrow::Cow;
use std::collections::BTreeMap;

use memchr::memmem::Finder;

/// The shortest line of a secret that is overwritten.
pub(super) const MIN_BYTES: usize = 4;

/// The secrets of a script.
#[derive(Debug, Default)]
pub(crate) struct Mask {
    secrets: Vec<Finder<'static>>,
}

impl Mask {
    /// Those of an environment.
    pub(crate) fn of(names: &[String], environment: &BTreeMap<String, String>) -> Self {
        Self::new(names.iter().filter_map(|name| environment.get(name)).map(String::as_str))
    }

    /// All lines of these values.
    pub(super) fn new<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let lines = values.flat_map(str::lines).filter(|line| line.len() >= MIN_BYTES);
        let in_texts = |line: &str| line.replace(char::is_control, " ").trim().to_owned();
        let forms = lines.flat_map(|line| [line.to_owned(), in_texts(line)]);
        let mut lines: Vec<String> = forms.filter(|line| line.len() >= MIN_BYTES).collect();
        lines.sort_unstable();
        lines.dedup();
        let secrets = lines.into_iter().map(|line| Finder::new(line.as_bytes()).into_owned());
        Self { secrets: secrets.collect() }
    }

    /// A text for people as it may be shown.
    pub(crate) fn shown(&self, text: &str) -> String {
        let mut shown = text.as_bytes().to_vec();
        self.overwrite(text.as_bytes(), &mut shown);
        if let Some(kept) = text.strip_suffix('…') {
            let from = kept.len() - self.undecided(kept.as_bytes());
            shown[from..kept.len()].fill(b'*');
        }
        String::from_utf8_lossy(&shown).into_owned()
    }

    /// Overwrites, where it is shown, what is in a text as a whole.
    fn overwrite(&self, text: &[u8], shown: &mut [u8]) {
        let mut found = Vec::new();
        for secret in &self.secrets {
            let length = secret.needle().len();
            let mut from = 0;
            while let Some(at) = text.get(from..).and_then(|rest| secret.find(rest)) {
                found.push(from + at..from + at + length);
                // The next one may begin within this one.
                from += at + 1;
            }
        }
        for range in found {
            shown[range].fill(b'*');
        }
    }

    /// How many bytes at the end may be the beginning of a secret.
    fn undecided(&self, text: &[u8]) -> usize {
        let of = |secret: &Finder<'static>| {
            let needle = secret.needle();
            let most = text.len().min(needle.len() - 1);
            (1..=most).rev().find(|length| text.ends_with(&needle[..*length])).unwrap_or(0)
        };
        self.secrets.iter().map(of).max().unwrap_or(0)
    }
}

/// One output of a script.
#[derive(Debug, Default)]
pub(super) struct Masked {
    waiting: Vec<u8>,
    /// The same as it will be shown, as far as that is known.
    shown: Vec<u8>,
}

impl Masked {
    /// What of it may go on now.
    pub(super) fn push<'a>(&mut self, bytes: &'a [u8], mask: &Mask) -> Cow<'a, [u8]> {
        if mask.secrets.is_empty() {
            return Cow::Borrowed(bytes);
        }
        self.waiting.extend_from_slice(bytes);
        self.shown.extend_from_slice(bytes);
        mask.overwrite(&self.waiting, &mut self.shown);
        let decided = self.waiting.len() - mask.undecided(&self.waiting);
        self.waiting.drain(..decided);
        Cow::Owned(self.shown.drain(..decided).collect())
    }

    /// What is left at the end.
    pub(super) fn rest(&mut self) -> Vec<u8> {
        self.waiting.clear();
        std::mem::take(&mut self.shown)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_secret_is_overwritten_in_whatever_pieces_it_comes() {
        let mask = Mask::new(["hunter22", "one\nsecond line\n", "abab"].into_iter());
        let text = b"it is hunter22, one, second line; ababab hunter2";
        let expected = b"it is ********, one, ***********; ****** hunter2";
        for size in 1..text.len() {
            let mut masked = Masked::default();
            let mut out: Vec<u8> = text
                .chunks(size)
                .flat_map(|piece| masked.push(piece, &mask).into_owned())
                .collect();
            out.extend(masked.rest());
            let (out, expected) =
                (String::from_utf8_lossy(&out), String::from_utf8_lossy(expected));
            assert_eq!(out, expected, "{size}");
        }
    }

    #[test]
    fn rule_4_a_secret_is_found_in_a_text_that_was_cleaned_and_cut() {
        let mask = Mask::new(["correct horse\tbattery ", "hunter22"].into_iter());
        for (text, shown) in [
            ("with correct horse\tbattery ", "with **********************"),
            ("with correct horse battery", "with *********************"),
            ("with correct horse ba…", "with ****************…"),
            ("with hunter2…", "with *******…"),
            ("with hunter22…", "with ********…"),
            // Not cut.
            ("with hunter2", "with hunter2"),
        ] {
            assert_eq!(mask.shown(text), shown);
        }
    }

    #[test]
    fn what_is_no_secret_goes_on_at_once() {
        let mask = Mask::new(["hunter22"].into_iter());
        let mut masked = Masked::default();
        assert_eq!(&*masked.push(b"Password: ", &mask), b"Password: ");
        assert_eq!(&*masked.push(b"hun", &mask), b"");
        assert_eq!(&*masked.push(b"gry\n", &mask), b"hungry\n");
        assert_eq!(masked.rest(), b"");
    }

    proptest! {
        #[test]
        fn no_piecing_lets_a_secret_through(
            text in "[ab]{0,60}", cuts in prop::collection::vec(1_usize..9, 1..30)
        ) {
            let mask = Mask::new(["abba", "aabab"].into_iter());
            let (mut masked, mut out, mut rest) = (Masked::default(), Vec::new(), text.as_bytes());
            for cut in cuts.into_iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, more) = rest.split_at(cut.min(rest.len()));
                out.extend_from_slice(&masked.push(piece, &mask));
                rest = more;
            }
            out.extend(masked.rest());
            prop_assert_eq!(out.len(), text.len());
            for secret in ["abba", "aabab"] {
                prop_assert!(!String::from_utf8(out.clone()).unwrap().contains(secret));
            }
        }
    }
}
