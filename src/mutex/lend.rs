//! Lending a hold to another process: the open files of its places, over a Unix socket.
//!
//! A lock of the operating system belongs to the open file. So the borrower, and the tree that inherits
//! from it, keep the places alive as the lender's own tree would (rule 6 of [`crate::mutex`]), also when
//! the lender is killed. The borrower never unlocks: that would give the places back for all.
//!
//! ```text
//! lender ── "+", the descriptors ──► borrower
//!        ── terms as JSON, "\n" ───►
//!        ◄── "." when it has ended all that had the descriptors ──
//! ```

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use super::deadlock::Held;
use super::holder::variables_of;
use super::{Hold, MutexName, os};
use crate::format::{self, FormatError};

/// The most descriptors of one hold: ticket and plain lock of a mutex and of an exclusive key.
const MAX_FILES: usize = 4;
/// The longest terms, in bytes.
const MAX_TERMS_BYTES: u64 = 64 * 1024;
/// What goes with the descriptors.
const LENT: &[u8] = b"+";
/// What a borrower says at its end.
pub const RETURNED: &[u8] = b".";

/// What a borrower must know of the hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Terms {
    /// How many descriptors go with it: one whose process has too many open gets fewer.
    files: usize,
    /// The claim's name.
    claim: String,
    /// The tickets.
    held: Vec<Held>,
    /// The fencing number of each mutex, its own one first.
    fences: Vec<(MutexName, u64)>,
}

/// A hold of another process.
#[derive(Debug)]
pub struct Loan {
    stream: UnixStream,
    files: Vec<File>,
    terms: Terms,
}

impl Hold {
    /// Lends it to whoever is at the other end; `first` is the mutex whose fencing number is told first.
    ///
    /// # Errors
    /// When it is gone, or does not read.
    pub fn lend(&self, stream: &UnixStream, first: Option<&MutexName>) -> io::Result<()> {
        let files: Vec<_> = self.files().map(|file| file.as_fd()).take(MAX_FILES).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&files));
        sendmsg(stream, &[IoSlice::new(LENT)], &mut ancillary, SendFlags::NOSIGNAL)?;
        let mut fences = self.fences();
        fences.sort_by_key(|(name, _)| Some(name) != first);
        let claim = self.claim().to_owned();
        let terms = Terms { files: files.len(), claim, held: self.held(), fences };
        let mut line = format::to_json(format::WORKSPACE, &terms)?;
        line.push(b'\n');
        (&*stream).write_all(&line)
    }
}

impl Loan {
    /// Takes a hold that is lent at the other end. May block as long as that says nothing: give the stream
    /// a time limit.
    ///
    /// # Errors
    /// `UnexpectedEof` when nothing is lent, EMFILE when not all of it could be taken.
    pub fn take(stream: UnixStream) -> io::Result<Self> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0_u8];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&stream, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags)?;
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                descriptors.extend(some);
            }
        }
        if received.bytes == 0 || byte != LENT {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut files = Vec::with_capacity(descriptors.len());
        for descriptor in descriptors {
            files.push(os::out_of_the_way(&File::from(descriptor))?);
        }
        let mut line = Vec::new();
        let read = io::Read::take(&stream, MAX_TERMS_BYTES);
        BufReader::new(read).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let terms: Terms = match format::from_json(format::WORKSPACE, &line) {
            Ok(terms) => terms,
            Err(FormatError::Newer(error)) => return Err(io::Error::other(error)),
            Err(FormatError::Json(error)) => return Err(error.into()),
        };
        if files.len() < terms.files {
            return Err(rustix::io::Errno::MFILE.into());
        }
        Ok(Self { stream, files, terms })
    }

    /// Lets the programs that this process starts from now on keep the places alive.
    ///
    /// # Errors
    /// When a descriptor can't be changed.
    pub fn make_inheritable(&self) -> io::Result<()> {
        self.files.iter().try_for_each(os::make_inheritable)
    }

    /// What the borrower's command is told about its mutexes.
    pub fn variables(&self) -> Vec<(String, String)> {
        variables_of(&self.terms.claim, &self.terms.fences, &self.terms.held)
    }

    /// The mutexes.
    pub fn names(&self) -> impl Iterator<Item = &MutexName> {
        self.terms.fences.iter().map(|(name, _)| name)
    }

    /// Says that nothing of the borrower's goes on. The places stay with the lender.
    ///
    /// # Errors
    /// When the lender is gone.
    pub fn give_back(self) -> io::Result<()> {
        // First closed: whoever hears of it finds only the lender's own.
        drop(self.files);
        (&self.stream).write_all(RETURNED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutex::{Advance, Claim, Claimant, Mode};

    #[test]
    fn a_borrower_keeps_the_place_when_the_lender_is_gone_and_does_not_give_it_back() {
        let root = tempfile::tempdir().unwrap();
        let name: MutexName = "log".parse().unwrap();
        let claims = [Claim { name: name.clone(), mode: Mode::Exclusive }];
        let join = || {
            Hold::join(root.path(), &claims, Claimant::this_process("test".to_owned()), false)
                .unwrap()
        };
        let is_held = |hold: &mut Hold| hold.advance().unwrap() == Advance::Held;
        let (mut lender, mut next) = (join(), join());
        assert!(is_held(&mut lender) && !is_held(&mut next));
        let (here, there) = UnixStream::pair().unwrap();
        lender.lend(&here, Some(&name)).unwrap();
        let loan = Loan::take(there).unwrap();
        assert_eq!(loan.terms.fences, lender.fences());
        assert_eq!(loan.variables(), super::super::holder::variables(&lender, &claims));
        // Given back by one borrower, still held by the lender; then only by another borrower.
        loan.give_back().unwrap();
        let (again, there) = UnixStream::pair().unwrap();
        lender.lend(&again, None).unwrap();
        let loan = Loan::take(there).unwrap();
        drop(lender);
        assert!(!is_held(&mut next));
        loan.give_back().unwrap();
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !is_held(&mut next) {
            assert!(std::time::Instant::now() < limit, "not free");
            os::sleep(next.descriptors(), Some(limit)).unwrap();
        }
    }

    #[test]
    fn nothing_is_taken_from_one_who_closes() {
        let (here, there) = UnixStream::pair().unwrap();
        drop(here);
        assert_eq!(Loan::take(there).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
