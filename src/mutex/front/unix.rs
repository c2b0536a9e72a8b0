//! Descriptors that this process was started with, by their numbers.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use rustix::io::Errno;

/// The open file behind a descriptor's number: another descriptor of the same one, so a lock that it
/// takes stays with whoever has the number.
///
/// # Errors
/// When there is no such descriptor.
pub(super) fn open_file(number: RawFd) -> io::Result<File> {
    if number < 0 {
        return Err(Errno::BADF.into());
    }
    // SAFETY: it is not -1, and is used for one system call only, for which a number that is not open
    // is no more than an error.
    #[expect(unsafe_code, reason = "a number on the command line is not known to be open")]
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(rustix::io::fcntl_dupfd_cloexec(borrowed, 0)?.into())
}
