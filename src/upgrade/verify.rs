//! Whether a program is what somebody signed whose key the configuration names: signatures of minisign, prehashed
//! (what minisign makes) and legacy.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use minisign_verify::{Error, PublicKey, Signature};

use super::{UpgradeError, failed};

/// How much of a file is read at once.
const PIECE_BYTES: usize = 256 * 1024;

/// Verifies a file against the keys; returns the signature's trusted comment.
///
/// # Errors
/// When the signature is none, is by no key of these, or is not of this file.
pub(super) fn verify(
    path: &Path,
    signature: &str,
    keys: &[String],
) -> Result<String, UpgradeError> {
    let refused = |error: &Error| UpgradeError::Signature(describe(error));
    let signature = Signature::decode(signature).map_err(|error| refused(&error))?;
    for key in keys {
        let key = PublicKey::from_base64(key).map_err(|error| refused(&error))?;
        let verified = match key.verify_stream(&signature) {
            Ok(mut stream) => {
                each_piece(path, |piece| stream.update(piece))?;
                stream.finalize()
            }
            // Legacy: the signature is of the content itself, not of its hash.
            Err(Error::UnsupportedLegacyMode) => {
                let content = std::fs::read(path).map_err(failed(path))?;
                key.verify(&content, &signature, true)
            }
            Err(error) => Err(error),
        };
        match verified {
            Ok(()) => return Ok(signature.trusted_comment().to_owned()),
            Err(Error::UnexpectedKeyId) => {}
            Err(error) => return Err(refused(&error)),
        }
    }
    Err(UpgradeError::UnknownKey(key_id(signature.untrusted_comment())))
}

fn describe(error: &Error) -> String {
    match error {
        Error::InvalidEncoding => {
            "is none of minisign (a file FILE.minisig is expected)".to_owned()
        }
        Error::InvalidSignature => "is not of this program".to_owned(),
        Error::IoError(_)
        | Error::UnexpectedAlgorithm
        | Error::UnexpectedKeyId
        | Error::UnsupportedAlgorithm
        | Error::UnsupportedLegacyMode => error.to_string(),
    }
}

/// What the untrusted comment says, for people: it often names the key.
fn key_id(comment: &str) -> String {
    let comment = comment.strip_prefix("untrusted comment: ").unwrap_or(comment);
    crate::text::shorten(comment, 80)
}

fn each_piece(path: &Path, mut take: impl FnMut(&[u8])) -> Result<(), UpgradeError> {
    let mut file = File::open(path).map_err(failed(path))?;
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece).map_err(failed(path))? {
            0 => return Ok(()),
            length => take(piece.get(..length).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Key, signatures and text of minisign's own documentation.
    const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    const PREHASHED: &str = "untrusted comment: signature from minisign secret key
RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=
trusted comment: timestamp:1633700835\tfile:test\tprehashed
wLMDjy9FLAuxZ3q4NlEvkgtyhrr0gtTu6KC4KBJdITbbOeAi1zBIYo0v4iTgt8jJpIidRJnp94ABQkJAgAooBQ==";
    const LEGACY: &str = "untrusted comment: signature from minisign secret key
RWQf6LRCGA9i59SLOFxz6NxvASXDJeRtuZykwQepbDEGt87ig1BNpWaVWuNrm73YiIiJbq71Wi+dP9eKL8OC351vwIasSSbXxwA=
trusted comment: timestamp:1555779966\tfile:test
QtKMXWyYcwdpZAlPF7tE2ENJkRd1ujvKjlj1m9RtHTBnZPa5WKU5uWRs5GoP5M/VqE81QFuMKI5k/SfNQUaOAA==";

    fn check(content: &[u8], signature: &str, keys: &[&str]) -> Result<String, UpgradeError> {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("program");
        crate::durable::replace_file(&path, content, 0o600).unwrap();
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        verify(&path, signature, &keys)
    }

    #[test]
    fn both_kinds_of_signatures_are_verified_and_nothing_else() {
        let other = "RWQf6LRCGA9i53mlYecP4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
        let unknown = "RWQAAAAAAAAAAHmlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
        for signature in [PREHASHED, LEGACY] {
            assert!(check(b"test", signature, &[unknown, KEY]).unwrap().contains("file:test"));
            for (content, keys) in [(b"Test", [KEY]), (b"tes\0", [KEY]), (b"test", [other])] {
                let error = check(content, signature, &keys).unwrap_err();
                assert!(matches!(error, UpgradeError::Signature(_)), "{error}");
            }
            let error = check(b"test", signature, &[unknown]).unwrap_err();
            assert!(matches!(error, UpgradeError::UnknownKey(_)), "{error}");
            // The comment is signed too.
            let changed = signature.replace("file:test", "file:text");
            assert!(check(b"test", &changed, &[KEY]).is_err());
        }
        let error = check(b"test", "signature", &[KEY]).unwrap_err();
        assert!(error.to_string().contains("FILE.minisig"), "{error}");
    }
}
