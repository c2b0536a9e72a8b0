//! The mutexes under which a script runs: taken by its own supervisor, or lent by its lease's.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use crate::mutex::lend::Loan;
use crate::mutex::{Claim, Hold, MutexError, MutexName, holder};
use crate::workspace::Workspace;

/// How long the supervisor of a lease may take to answer: it does nothing but that.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// What the system says of the socket of a lease that holds nothing.
const GONE: [io::ErrorKind; 5] = [
    io::ErrorKind::NotFound,
    io::ErrorKind::ConnectionRefused,
    io::ErrorKind::ConnectionReset,
    io::ErrorKind::BrokenPipe,
    io::ErrorKind::UnexpectedEof,
];

/// The mutexes under which a script runs.
pub(super) enum Grip {
    /// Its supervisor took them.
    Own(Box<Hold>),
    /// Its lease holds them.
    Lent(Loan),
}

impl Grip {
    /// Borrows what a lease holds; `None` when that holds nothing (any more).
    pub(super) fn borrow(lease: &Path) -> io::Result<Option<Self>> {
        match connect(&Workspace::at(lease.to_owned())).and_then(Loan::take) {
            Ok(loan) => Ok(Some(Self::Lent(loan))),
            Err(error) if GONE.contains(&error.kind()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn make_inheritable(&self) -> Result<(), MutexError> {
        match self {
            Self::Own(hold) => hold.make_inheritable(),
            Self::Lent(loan) => loan.make_inheritable().map_err(MutexError::Lend),
        }
    }

    pub(super) fn variables(&self, claims: &[Claim]) -> Vec<(String, String)> {
        match self {
            Self::Own(hold) => holder::variables(hold, claims),
            Self::Lent(loan) => loan.variables(),
        }
    }

    /// The mutexes.
    pub(super) fn names(&self, claims: &[Claim]) -> Vec<MutexName> {
        match self {
            Self::Own(_) => claims.iter().map(|claim| claim.name.clone()).collect(),
            Self::Lent(loan) => loan.names().cloned().collect(),
        }
    }

    /// Leaves in the tickets which process is the first. A lease's tickets name nobody: what lives on is
    /// found by its environment.
    pub(super) fn protects(&mut self, leader: u32) {
        match self {
            Self::Own(hold) => hold.protects(leader),
            Self::Lent(_) => {}
        }
    }

    pub(super) fn release(self) -> Result<(), MutexError> {
        match self {
            Self::Own(hold) => hold.release(),
            // The lease's supervisor may have been killed: then there is nobody to be told.
            Self::Lent(loan) => {
                loan.give_back().unwrap_or_default();
                Ok(())
            }
        }
    }
}

fn connect(lease: &Workspace) -> io::Result<UnixStream> {
    let stream = at(lease, |path| UnixStream::connect(path))?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    Ok(stream)
}

/// Does something with the socket of a lease, by a path that is short enough for sockets.
pub(super) fn at<T>(lease: &Workspace, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    use std::os::fd::AsRawFd as _;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(lease.path(), flags, Mode::empty())?;
    let socket = lease.lease_socket();
    let name = socket.file_name().unwrap_or_default();
    act(&Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name))
}
