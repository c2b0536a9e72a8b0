//! The descriptor that a process was started with, by its number.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use rustix::io::{Errno, FdFlags};

/// A descriptor of the open file behind a number; programs that are started from now on inherit neither.
///
/// # Errors
/// When there is no such descriptor.
pub(super) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(Errno::BADF.into());
    }
    // SAFETY: it is not -1, and is used for two system calls only, for which a number that is not open
    // is no more than an error.
    #[expect(unsafe_code, reason = "a number on the command line is not known to be open")]
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    Ok(rustix::io::fcntl_dupfd_cloexec(borrowed, 0)?)
}
