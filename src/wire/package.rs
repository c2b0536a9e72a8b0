//! A package that is kept: `Package` and [`Kept`].

use super::{WireError, from_timestamp, to_timestamp, v1};
use crate::packages::Kept;
use crate::transfer::Digest;

impl From<Kept> for v1::Package {
    fn from(kept: Kept) -> Self {
        Self {
            id: kept.id.to_string(),
            version: kept.version.to_string(),
            sha256: kept.digest.to_bytes(),
            size_bytes: kept.bytes,
            files: kept.files,
            chunks: kept.chunks,
            received_at: Some(to_timestamp(kept.received_at)),
        }
    }
}

impl TryFrom<v1::Package> for Kept {
    type Error = WireError;

    fn try_from(message: v1::Package) -> Result<Self, WireError> {
        let received_at = message.received_at.and_then(from_timestamp);
        Ok(Self {
            id: message.id.parse().map_err(|_| WireError::Field("id"))?,
            version: message.version.parse().map_err(|_| WireError::Field("version"))?,
            digest: Digest::from_bytes(&message.sha256).ok_or(WireError::Field("sha256"))?,
            bytes: message.size_bytes,
            files: message.files,
            chunks: message.chunks,
            received_at: received_at.ok_or(WireError::Field("received_at"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn a_package_comes_back_as_it_was() {
        let kept = Kept {
            id: "app".parse().unwrap(),
            version: "1.2+3".parse().unwrap(),
            digest: Digest::of(b"x"),
            bytes: 1 << 40,
            files: 3,
            chunks: 9,
            received_at: Timestamp::new(1_700_000_000, 7).unwrap(),
        };
        assert_eq!(Kept::try_from(v1::Package::from(kept.clone())).unwrap(), kept);
        Kept::try_from(v1::Package::default()).unwrap_err();
    }
}
