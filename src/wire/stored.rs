//! Requests as the store keeps them: a `ScriptSpec`, with what the agent adds for itself. Who does not know
//! that, an older baton say, reads the rest.
//!
//! 1. The secret values of a script that has ended are not in its request. Their names are, and a digest of the
//!    values.
//! 2. While they are, they stand so far behind in the row that SQLite has them on pages of their own. Those it
//!    overwrites as a whole when they are free. A page with several rows is another matter: what SQLite moved to
//!    another one may be left on it.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;

use super::{WireError, v1};
use crate::spec::{SecretsKey, Spec};

/// More than SQLite keeps of one row on a page with others, at its page size of 4096 bytes.
const PADDING_BYTES: usize = 4096;

/// What the agent adds to a request. Both numbers are reserved in `ScriptSpec`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Added {
    /// Rule 2.
    #[prost(bytes = "vec", tag = "1000")]
    padding: Vec<u8>,
    /// The values of the sensitive variables have been erased: their digest, empty when it could not be made.
    #[prost(bytes = "vec", optional, tag = "1001")]
    erased: Option<Vec<u8>>,
}

/// A request as the store kept it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The request; secret values that have been erased are empty.
    pub spec: Spec,
    /// What is left of those.
    erased: Option<Vec<u8>>,
}

impl Stored {
    /// Whether it lacks the values of its secrets: it can't be run.
    pub fn is_erased(&self) -> bool {
        self.erased.is_some()
    }

    /// The fields in which another request for the same script id differs.
    pub fn differences(&self, asked: &Spec, key: &SecretsKey) -> Vec<&'static str> {
        let Some(digest) = &self.erased else {
            return self.spec.differences(asked);
        };
        let names = self.spec.sensitive.iter().map(String::as_str).collect::<BTreeSet<_>>();
        let (mut shown, mut values) = (asked.clone(), BTreeMap::new());
        for name in names {
            if let (Some(value), Some(shown)) =
                (asked.environment.get(name), shown.environment.get_mut(name))
            {
                values.insert(name, value.as_str());
                shown.clear();
            }
        }
        let mut fields = self.spec.differences(&shown);
        let is_same = key.matches(digest, asked.script_id.as_str(), &values);
        if !is_same && !fields.contains(&ENVIRONMENT) {
            fields.push(ENVIRONMENT);
        }
        fields
    }
}

/// As [`Spec::differences`] calls it.
const ENVIRONMENT: &str = "environment";

/// A request as the store keeps it.
pub fn encode_spec(spec: &Spec) -> Vec<u8> {
    pad(&spec.clone().into())
}

/// A request as the store kept it.
///
/// # Errors
/// When it was written by something else.
pub fn decode_stored(bytes: &[u8]) -> Result<Stored, WireError> {
    let spec = v1::ScriptSpec::decode(bytes)?.try_into()?;
    Ok(Stored { spec, erased: Added::decode(bytes)?.erased })
}

/// The same request without the values of its secrets; `None` when there are none. Without a key it is known
/// again by nobody.
pub fn erase(bytes: &[u8], key: Option<&SecretsKey>) -> Option<Vec<u8>> {
    let Ok(mut spec) = v1::ScriptSpec::decode(bytes) else {
        // What can't be read may hold anything.
        return (!bytes.is_empty()).then(Vec::new);
    };
    if spec.sensitive.is_empty() || Added::decode(bytes).is_ok_and(|added| added.erased.is_some()) {
        return None;
    }
    let names = spec.sensitive.iter().collect::<BTreeSet<_>>();
    let values = names
        .iter()
        .filter_map(|name| Some((name.as_str(), spec.environment.get(name.as_str())?.as_str())));
    let digest = key.map(|key| key.digest(&spec.script_id, &values.collect()));
    for name in names {
        if let Some(value) = spec.environment.get_mut(name) {
            value.clear();
        }
    }
    let added = Added { padding: Vec::new(), erased: Some(digest.unwrap_or_default()) };
    Some([spec.encode_to_vec(), added.encode_to_vec()].concat())
}

/// The same request with room before its secrets (rule 2), if an older baton left that out.
pub fn pad_again(bytes: &[u8]) -> Option<Vec<u8>> {
    let spec = v1::ScriptSpec::decode(bytes).ok()?;
    let added = Added::decode(bytes).ok()?;
    let lacks = !spec.sensitive.is_empty() && added.padding.is_empty() && added.erased.is_none();
    lacks.then(|| pad(&spec))
}

fn pad(spec: &v1::ScriptSpec) -> Vec<u8> {
    if spec.sensitive.is_empty() {
        return spec.encode_to_vec();
    }
    let added = Added { padding: vec![0; PADDING_BYTES], erased: None };
    [added.encode_to_vec(), spec.encode_to_vec()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(values: &[(&str, &str)]) -> Spec {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Spec {
            script_id: "a".parse().unwrap(),
            environment: values.iter().map(owned).collect(),
            sensitive: vec!["P".to_owned(), "Q".to_owned()],
            ..Spec::of_body("true", "sh")
        }
    }

    fn key() -> SecretsKey {
        SecretsKey::new(&[7; 32])
    }

    fn find(bytes: &[u8], text: &str) -> Option<usize> {
        memchr::memmem::find(bytes, text.as_bytes())
    }

    #[test]
    fn rule_1_an_erased_request_has_no_value_and_is_known_again() {
        let asked = spec(&[("P", "hunter2"), ("Q", "hunter3"), ("PLAIN", "shown")]);
        let kept = encode_spec(&asked);
        let whole = decode_stored(&kept).unwrap();
        assert_eq!((&whole.spec, whole.is_erased()), (&asked, false));
        let erased = erase(&kept, Some(&key())).unwrap();
        assert_eq!((find(&erased, "hunter"), find(&erased, "shown").is_some()), (None, true));
        let stored = decode_stored(&erased).unwrap();
        assert!(stored.is_erased());
        assert_eq!(
            stored.spec.environment,
            spec(&[("P", ""), ("Q", ""), ("PLAIN", "shown")]).environment
        );
        assert_eq!(stored.differences(&asked, &key()), [""; 0]);
        // There is nothing more to erase.
        assert_eq!(erase(&erased, Some(&key())), None);
        for other in [
            spec(&[("P", "hunter3"), ("Q", "hunter3"), ("PLAIN", "shown")]),
            spec(&[("P", "hunter3"), ("Q", "hunter2"), ("PLAIN", "shown")]),
            spec(&[("P", ""), ("Q", ""), ("PLAIN", "shown")]),
            spec(&[("P", "hunter2"), ("Q", "hunter3"), ("PLAIN", "other")]),
            spec(&[("P", "hunter2"), ("Q", "hunter3")]),
        ] {
            assert_eq!(stored.differences(&other, &key()), ["environment"]);
        }
        let fewer = Spec { sensitive: vec!["P".to_owned()], ..asked.clone() };
        assert_eq!(stored.differences(&fewer, &key()), ["sensitive"]);
        // Whoever lost its key can't tell, and runs nothing twice.
        assert_eq!(stored.differences(&asked, &SecretsKey::new(&[8; 32])), ["environment"]);
        let unknown = decode_stored(&erase(&kept, None).unwrap()).unwrap();
        assert_eq!(unknown.differences(&asked, &key()), ["environment"]);
    }

    #[test]
    fn what_has_no_secrets_stays_as_it_is_and_what_can_t_be_read_goes() {
        let plain = Spec { sensitive: Vec::new(), ..spec(&[("P", "1")]) };
        let bytes = encode_spec(&plain);
        assert_eq!(bytes, v1::ScriptSpec::from(plain).encode_to_vec());
        assert_eq!((erase(&bytes, Some(&key())), pad_again(&bytes)), (None, None));
        assert_eq!(erase(&[0xff; 7], Some(&key())), Some(Vec::new()));
        assert_eq!((erase(&[], Some(&key())), pad_again(&[0xff; 7])), (None, None));
    }

    #[test]
    fn rule_2_a_value_stands_behind_all_that_a_row_has_on_a_page_with_others() {
        let secret = spec(&[("P", "hunter2"), ("Q", "hunter3")]);
        let kept = encode_spec(&secret);
        assert!(find(&kept, "hunter").unwrap() > PADDING_BYTES);
        let older = v1::ScriptSpec::from(secret.clone()).encode_to_vec();
        assert_eq!(decode_stored(&pad_again(&older).unwrap()).unwrap().spec, secret);
        assert!(find(&pad_again(&older).unwrap(), "hunter").unwrap() > PADDING_BYTES);
        assert_eq!(pad_again(&kept), None);
        assert_eq!(pad_again(&erase(&kept, None).unwrap()), None);
        // An older baton passes over what was added.
        assert_eq!(Spec::try_from(v1::ScriptSpec::decode(&*kept).unwrap()).unwrap(), secret);
    }
}
