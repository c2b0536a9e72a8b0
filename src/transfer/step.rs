//! Every file operation of a transfer passes here, so that a test can make the n-th one fail.

use std::io;

/// One operation. It fails in tests only, when it is the one that is to.
#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "in tests it fails")]
pub(super) const fn step() -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(super) use fault::step;

#[cfg(test)]
pub(super) mod fault {
    use std::cell::Cell;

    use super::io;

    thread_local! {
        /// How many operations go well until one fails; `None`: all do.
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    }

    pub(crate) fn step() -> io::Result<()> {
        match LEFT.get() {
            None => Ok(()),
            Some(0) => {
                LEFT.set(None);
                Err(io::Error::other("fault"))
            }
            Some(left) => {
                LEFT.set(Some(left - 1));
                Ok(())
            }
        }
    }

    /// Runs something on this thread with its n-th operation (from 0) failing; and whether it had
    /// so many.
    pub(crate) fn with_fault<T>(n: u32, work: impl FnOnce() -> T) -> (T, bool) {
        LEFT.set(Some(n));
        let result = work();
        let failed = LEFT.take().is_none();
        (result, failed)
    }
}
