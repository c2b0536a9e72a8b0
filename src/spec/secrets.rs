//! Pure: what is left of the secret values of a request when its script has ended: a digest, by which the same
//! request is known again.
//!
//! 1. Nobody finds a value by trying without the key, however short it is: the digest is an HMAC, and its key is
//!    not where the digest is.
//! 2. It covers the script's id and all values with their names: two equal secrets are not seen to be equal.

use std::collections::BTreeMap;

use ring::hmac;

/// How many bytes a key has, and a digest.
pub const SECRETS_KEY_BYTES: usize = 32;

/// The key of an agent.
#[derive(Debug, Clone)]
pub struct SecretsKey(hmac::Key);

impl SecretsKey {
    /// A key of these bytes.
    pub fn new(bytes: &[u8; SECRETS_KEY_BYTES]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// The digest of the values of a script, by their names.
    pub fn digest(&self, id: &str, values: &BTreeMap<&str, &str>) -> Vec<u8> {
        hmac::sign(&self.0, &text(id, values)).as_ref().to_vec()
    }

    /// Whether it is the digest of these values, in a time that does not tell how far it is.
    pub fn matches(&self, digest: &[u8], id: &str, values: &BTreeMap<&str, &str>) -> bool {
        hmac::verify(&self.0, &text(id, values), digest).is_ok()
    }
}

/// One text for each script with its values: each part has its length before it.
fn text(id: &str, values: &BTreeMap<&str, &str>) -> Vec<u8> {
    let pairs = values.iter().flat_map(|(name, value)| [*name, *value]);
    let mut text = Vec::new();
    for part in [id].into_iter().chain(pairs) {
        text.extend(part.len().to_be_bytes());
        text.extend(part.as_bytes());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_script_name_value_and_key_has_another_digest() {
        let (key, other) = (SecretsKey::new(&[1; 32]), SecretsKey::new(&[2; 32]));
        let cases: [(&str, &[(&str, &str)]); 8] = [
            ("a", &[]),
            ("a", &[("A", "1")]),
            ("b", &[("A", "1")]),
            ("a", &[("A", "2")]),
            ("a", &[("B", "1")]),
            // Not only one after the other.
            ("a", &[("A", "1B2")]),
            ("a", &[("A1", "B2")]),
            ("a", &[("A", "1"), ("B", "2")]),
        ];
        for (i, (id, values)) in cases.iter().enumerate() {
            let values = values.iter().copied().collect();
            let digest = key.digest(id, &values);
            assert_eq!(digest.len(), SECRETS_KEY_BYTES);
            assert!(!other.matches(&digest, id, &values));
            for (j, (id, values)) in cases.iter().enumerate() {
                let values = values.iter().copied().collect();
                assert_eq!(key.matches(&digest, id, &values), i == j, "{i} {j}");
            }
        }
        assert!(!key.matches(&[], "a", &BTreeMap::new()));
    }
}
