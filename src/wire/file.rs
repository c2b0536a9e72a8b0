//! What is at a path: `FileInfo` and [`FileInfo`].

use super::{WireError, from_timestamp, to_timestamp, v1};
use crate::transfer::{Digest, FileInfo, Kind};

impl From<FileInfo> for v1::FileInfo {
    fn from(info: FileInfo) -> Self {
        let (kind, size, digest) = match info.kind {
            Kind::File { size, digest } => (v1::FileKind::File, size, digest),
            Kind::Folder => (v1::FileKind::Folder, 0, None),
        };
        Self {
            kind: kind.into(),
            size,
            sha256: digest.map(Digest::to_bytes).unwrap_or_default(),
            mode: info.mode,
            modified_at: Some(to_timestamp(info.modified)),
        }
    }
}

impl TryFrom<v1::FileInfo> for FileInfo {
    type Error = WireError;

    fn try_from(message: v1::FileInfo) -> Result<Self, WireError> {
        let kind = match message.kind() {
            v1::FileKind::File => {
                let digest = Digest::from_bytes(&message.sha256);
                if digest.is_none() && !message.sha256.is_empty() {
                    return Err(WireError::Field("sha256"));
                }
                Kind::File { size: message.size, digest }
            }
            v1::FileKind::Folder => Kind::Folder,
            v1::FileKind::Unspecified => return Err(WireError::Field("kind")),
        };
        let modified = message.modified_at.and_then(from_timestamp);
        Ok(Self {
            kind,
            mode: message.mode & 0o777,
            modified: modified.ok_or(WireError::Field("modified_at"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn what_is_at_a_path_comes_back_as_it_was() {
        let modified = Timestamp::new(1_700_000_000, 7).unwrap();
        let digest = Some(Digest::of(b"x"));
        for kind in
            [Kind::Folder, Kind::File { size: 0, digest: None }, Kind::File { size: 9, digest }]
        {
            let info = FileInfo { kind, mode: 0o755, modified };
            assert_eq!(FileInfo::try_from(v1::FileInfo::from(info.clone())).unwrap(), info);
        }
        FileInfo::try_from(v1::FileInfo::default()).unwrap_err();
    }
}
