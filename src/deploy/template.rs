//! Pure: texts in which variables stand as `#{Name}`. `##{` is a plain `#{`.

/// A piece of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'a> {
    /// As it is.
    Literal(&'a str),
    /// The value of a variable.
    Reference(&'a str),
}

/// Why a text can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A reference has no end.
    #[error("has `#{{` without `}}`; a plain `#{{` is written `##{{`")]
    Open,
    /// A reference names nothing.
    #[error("has `#{{}}` without a name; a plain `#{{` is written `##{{`")]
    Nameless,
}

/// The pieces of a text.
///
/// # Errors
/// When a reference has no end or no name.
pub fn parts(text: &str) -> Result<Vec<Part<'_>>, TemplateError> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("#{") {
        if rest[..at].ends_with('#') {
            parts.push(Part::Literal(&rest[..at - 1]));
            parts.push(Part::Literal("#{"));
            rest = &rest[at + 2..];
            continue;
        }
        let (before, reference) = (&rest[..at], &rest[at + 2..]);
        let end = reference.find('}').ok_or(TemplateError::Open)?;
        let name = reference[..end].trim();
        if name.is_empty() {
            return Err(TemplateError::Nameless);
        }
        parts.push(Part::Literal(before));
        parts.push(Part::Reference(name));
        rest = &reference[end + 1..];
    }
    parts.push(Part::Literal(rest));
    parts.retain(|part| *part != Part::Literal(""));
    Ok(parts)
}

/// The text, if no variable stands in it.
pub fn literal(text: &str) -> Option<String> {
    let parts = parts(text).ok()?;
    let literal = |part: &Part<'_>| match part {
        Part::Literal(text) => Some((*text).to_owned()),
        Part::Reference(_) => None,
    };
    parts.iter().map(literal).collect()
}

#[cfg(test)]
mod tests {
    use super::Part::{Literal, Reference};
    use super::*;

    #[test]
    fn a_text_falls_into_its_pieces() {
        let cases: &[(&str, &[Part<'_>])] = &[
            ("", &[]),
            ("plain # { }", &[Literal("plain # { }")]),
            ("#{A}", &[Reference("A")]),
            (
                "a#{ B.c }d#{E[f]}",
                &[Literal("a"), Reference("B.c"), Literal("d"), Reference("E[f]")],
            ),
            ("##{A}", &[Literal("#{"), Literal("A}")]),
            ("x##{#{A}", &[Literal("x"), Literal("#{"), Reference("A")]),
            ("###{A}", &[Literal("#"), Literal("#{"), Literal("A}")]),
        ];
        for (text, expected) in cases {
            assert_eq!(parts(text).as_deref(), Ok(*expected), "{text}");
        }
        assert_eq!(parts("a#{b"), Err(TemplateError::Open));
        assert_eq!(parts("a#{ }"), Err(TemplateError::Nameless));
        assert_eq!(literal("a##{b}"), Some("a#{b}".to_owned()));
        assert_eq!(literal("a#{b}"), None);
    }
}
