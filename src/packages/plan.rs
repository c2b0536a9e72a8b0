//! Pure: which chunks of a package have to come, and which came.

use std::collections::HashMap;

use super::manifest::Chunk;
use crate::transfer::Digest;

/// What is still to come of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    missing: Vec<u32>,
    left: HashMap<Digest, u32>,
    left_bytes: u64,
}

impl Plan {
    /// What is missing of these distinct chunks.
    pub fn new(distinct: &[Chunk], mut has: impl FnMut(&Chunk) -> bool) -> Self {
        let mut plan = Self { missing: Vec::new(), left: HashMap::new(), left_bytes: 0 };
        for (index, chunk) in (0..).zip(distinct) {
            if !has(chunk) {
                plan.missing.push(index);
                plan.left.entry(chunk.digest).or_insert(chunk.size);
                plan.left_bytes += u64::from(chunk.size);
            }
        }
        plan
    }

    /// The missing chunks' places among the distinct ones, in order.
    pub fn missing(&self) -> &[u32] {
        &self.missing
    }

    /// How large the missing chunk of this digest is; `None`: it is not missing, or any more.
    pub fn size_of(&self, digest: &Digest) -> Option<u32> {
        self.left.get(digest).copied()
    }

    /// A chunk has come. Whether it was missing.
    pub fn came(&mut self, digest: &Digest) -> bool {
        match self.left.remove(digest) {
            Some(size) => {
                self.left_bytes -= u64::from(size);
                true
            }
            None => false,
        }
    }

    /// How many chunks are still to come.
    pub fn left(&self) -> usize {
        self.left.len()
    }

    /// How many bytes these have.
    pub fn left_bytes(&self) -> u64 {
        self.left_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_comes_once() {
        let chunk = |content: &[u8]| Chunk {
            digest: Digest::of(content),
            size: u32::try_from(content.len()).unwrap(),
        };
        let chunks = [chunk(b"a"), chunk(b"bb"), chunk(b"ccc")];
        let mut plan = Plan::new(&chunks, |chunk| chunk.size == 2);
        assert_eq!(plan.missing(), [0, 2]);
        assert_eq!((plan.left(), plan.left_bytes()), (2, 4));
        assert_eq!(plan.size_of(&chunks[2].digest), Some(3));
        assert!(plan.came(&chunks[2].digest));
        assert!(!plan.came(&chunks[2].digest), "twice");
        assert!(!plan.came(&chunks[1].digest), "it was there");
        assert!(plan.came(&chunks[0].digest));
        assert_eq!((plan.left(), plan.left_bytes()), (0, 0));
    }
}
