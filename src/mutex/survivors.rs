//! What lives on of a holder whose wrapper or supervisor was killed.
//!
//! The descriptors of ticket and plain lock are inherited, but a program may close them: Python's
//! `subprocess` does for its children, daemons and sudo do. So whoever finds a ticket that held, is
//! dead, and was not given back, looks for the processes of its command (rule 6 of [`crate::mutex`]):
//!
//! 1. those with the claim in their environment;
//! 2. the command itself, by the id that its wrapper left in the ticket;
//! 3. all below them.
//!
//! Not found is who closed the descriptors, and cleared or overwrote its environment (or runs for another
//! user, so that it can't be read), and was left by all its ancestors; and who is in a namespace of
//! processes that can't be seen from here.

use std::io;
use std::os::fd::OwnedFd;

use super::line::Claimant;
use crate::process::{self, Process};

/// The variable in which a protected command has the claims that it runs under.
pub const CLAIMS_VARIABLE: &str = "BATON_MUTEX_CLAIMS";

/// A process that lives, and what becomes readable at its end.
pub type Living = (Process, OwnedFd);

/// How often it is looked while processes of the tree are seen that have ended a moment later: they may
/// have started others.
const MAX_LOOKS: u32 = 100;

/// The living processes of a holder's command, those above first. A token (`acquire`) has no command.
///
/// # Errors
/// When the system's list of processes can't be read whole.
pub fn of(holder: &Claimant) -> io::Result<Vec<Living>> {
    if holder.claim.is_empty() || holder.kept_for.is_some() {
        return Ok(Vec::new());
    }
    let mut seen_nobody = 0;
    for _ in 0..MAX_LOOKS {
        let tree = find(holder)?;
        let living: Vec<Living> =
            tree.iter().filter_map(|process| Some((process.clone(), process.living()?))).collect();
        if !living.is_empty() {
            return Ok(living);
        }
        // Twice: one that was about to start another may have ended while the list was read.
        seen_nobody = if tree.iter().all(Process::is_zombie) { seen_nobody + 1 } else { 0 };
        if seen_nobody == 2 {
            return Ok(living);
        }
    }
    Err(io::Error::other("its processes come and go too fast to be seen"))
}

fn find(holder: &Claimant) -> io::Result<Vec<Process>> {
    let me = std::process::id();
    let mut tree = process::trees(|process| {
        let is_leader = holder.leader == Some(process.id());
        let is_other = process.pid != me && process.pid != holder.pid;
        Ok(is_other && (is_leader || has_claim(process, &holder.claim)?))
    })?;
    tree.retain(|process| process.pid != me && process.pid != holder.pid);
    Ok(tree)
}

fn has_claim(process: &Process, claim: &str) -> io::Result<bool> {
    let claims = process.variable(CLAIMS_VARIABLE)?.unwrap_or_default();
    Ok(claims.split(' ').any(|found| found == claim))
}
