//! Pure: a variable's value, which may be a secret. A secret shows itself to nobody by accident: not
//! in `Debug`, not in `Display`, not in JSON.

use std::fmt;

use serde::{Serialize, Serializer};

/// What is shown instead of a secret.
pub const MASK: &str = "********";

/// A text, and whether it is sensitive. What is joined from several is sensitive when one of them is.
#[derive(Clone, PartialEq, Eq)]
pub struct Value {
    text: String,
    is_sensitive: bool,
}

impl Value {
    /// A value that everybody may see.
    pub fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_sensitive: false }
    }

    /// A value that nobody may see but the script.
    pub fn sensitive(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_sensitive: true }
    }

    /// The text itself, also when it is sensitive.
    ///
    /// # Security
    /// It goes to the script, and nowhere where somebody reads it.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Whether it must not be shown.
    pub fn is_sensitive(&self) -> bool {
        self.is_sensitive
    }

    /// The text as it may be shown.
    pub fn shown(&self) -> &str {
        if self.is_sensitive { MASK } else { &self.text }
    }

    /// Puts a text behind it.
    pub fn push_str(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Puts another value behind it.
    pub fn push(&mut self, other: &Self) {
        self.text.push_str(&other.text);
        self.is_sensitive |= other.is_sensitive;
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.shown(), f)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shown())
    }
}

impl Serialize for Value {
    /// `{"value": "…"}`, or `{"sensitive": true}` without the value.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;
        let mut map = serializer.serialize_map(Some(1))?;
        if self.is_sensitive {
            map.serialize_entry("sensitive", &true)?;
        } else {
            map.serialize_entry("value", &self.text)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_shown_nowhere_and_spoils_what_it_is_joined_with() {
        let mut joined = Value::plain("user:");
        joined.push(&Value::sensitive("hunter2"));
        joined.push_str("@db");
        assert_eq!(joined.expose(), "user:hunter2@db");
        let json = serde_json::to_string(&joined).unwrap();
        for shown in [format!("{joined:?}"), joined.to_string(), json.clone()] {
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        assert_eq!(json, r#"{"sensitive":true}"#);
        assert_eq!(serde_json::to_string(&Value::plain("a")).unwrap(), r#"{"value":"a"}"#);
    }
}
