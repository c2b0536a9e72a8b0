//! Pure: texts for people, on one line and not too long.

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Cuts a text to so many characters, without control characters, and says so with `…`.
pub fn shorten(text: &str, characters: usize) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    if text.chars().count() <= characters {
        return text.chars().map(clean).collect();
    }
    text.chars().take(characters.saturating_sub(1)).map(clean).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_and_a_control_character_is_a_space() {
        assert_eq!(shorten("a\nb", 10), "a b");
        assert_eq!(shorten("abcdef", 4), "abc…");
    }

    #[test]
    fn causes_are_told_one_behind_the_other() {
        let cause = std::io::Error::other("disk is full");
        let error = Outer(cause);
        assert_eq!(chain(&error), "not written: disk is full");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("not written")]
    struct Outer(#[source] std::io::Error);
}
