//! Pure: which versions go, so that the last few stay.

/// Picks what goes: all but the `keep` newest by time, and never the one in use, which counts among
/// those that stay. Sorted, the oldest first.
pub fn pick<V: Clone + Ord, T: Ord>(
    versions: &[(V, T)],
    in_use: Option<&V>,
    keep: usize,
) -> Vec<V> {
    let mut others: Vec<_> =
        versions.iter().filter(|(version, _)| Some(version) != in_use).collect();
    let is_there = others.len() < versions.len();
    let stay = keep.saturating_sub(usize::from(is_there));
    // The newest last; of the same time, by name, so that the choice is always the same.
    others.sort_by(|(a, one), (b, other)| one.cmp(other).then(a.cmp(b)));
    let go = others.len().saturating_sub(stay);
    others.into_iter().take(go).map(|(version, _)| version.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stay_and_the_one_in_use_whatever_its_age() {
        let versions = [("d", 4), ("a", 1), ("c", 3), ("b", 2)];
        let none: [&str; 0] = [];
        for (in_use, keep, go) in [
            (Some("d"), 4, &none[..]),
            (Some("d"), 9, &none),
            (Some("d"), 2, &["a", "b"]),
            (Some("d"), 1, &["a", "b", "c"]),
            (Some("d"), 0, &["a", "b", "c"]),
            // After a rollback the old one is in use.
            (Some("a"), 2, &["b", "c"]),
            (Some("a"), 1, &["b", "c", "d"]),
            // What is in use is not among them.
            (Some("x"), 2, &["a", "b"]),
            (None, 3, &["a"]),
        ] {
            assert_eq!(pick(&versions, in_use.as_ref(), keep), go, "{in_use:?} {keep}");
        }
        assert_eq!(pick(&[("b", 1), ("a", 1)], None, 1), ["a"]);
    }
}
