//! Pure: texts for people: on one line, not too long, with the name that was meant.

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

/// `did you mean …?`, when one of the known names is near to the given one.
pub fn did_you_mean<'a>(
    given: &str,
    known: impl IntoIterator<Item = impl Into<&'a str>>,
) -> Option<String> {
    let same = |text: &str| text.to_lowercase().replace(['-', ' '], "_");
    let given = same(given);
    let limit = (given.chars().count() / 3).max(1);
    let distance = |name: &str| strsim::damerau_levenshtein(&given, &same(name));
    known
        .into_iter()
        .map(Into::into)
        .map(|name| (distance(name), name))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, name)| format!("did you mean {name:?}?"))
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

    #[test]
    fn a_near_name_is_offered_and_a_far_one_is_not() {
        let known = ["max_parallelism", "roles", "run"];
        let offer = |given| did_you_mean(given, known);
        assert_eq!(offer("role"), Some("did you mean \"roles\"?".to_owned()));
        assert_eq!(offer("max-paralelism"), Some("did you mean \"max_parallelism\"?".to_owned()));
        assert_eq!(offer("Roles"), Some("did you mean \"roles\"?".to_owned()));
        assert_eq!(offer("isolation"), None);
    }

    #[derive(Debug, thiserror::Error)]
    #[error("not written")]
    struct Outer(#[source] std::io::Error);
}
