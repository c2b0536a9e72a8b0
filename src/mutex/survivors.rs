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
//! Not found is who closed the descriptors, and cleared its environment (or runs for another user, so
//! that it can't be read), and was left by all its ancestors.

use std::os::fd::OwnedFd;

use super::line::Claimant;
use crate::process::{self, Process};

/// The variable in which a protected command has the claims that it runs under.
pub const CLAIMS_VARIABLE: &str = "BATON_MUTEX_CLAIMS";

/// A process that lives, and what becomes readable at its end.
pub type Living = (Process, OwnedFd);

/// The living processes of a holder's command, those above first. A token (`acquire`) has no command.
pub fn of(holder: &Claimant) -> Vec<Living> {
    if holder.claim.is_empty() || holder.kept_for.is_some() {
        return Vec::new();
    }
    // Twice: one that was about to start another may have ended while the list was read.
    let found = find(holder);
    if found.is_empty() { find(holder) } else { found }
}

fn find(holder: &Claimant) -> Vec<Living> {
    let is_leader = |process: &Process| holder.leader == Some(process.id());
    let has_claim = |process: &Process| {
        let claims = process.variable(CLAIMS_VARIABLE).unwrap_or_default();
        claims.split(' ').any(|claim| claim == holder.claim)
    };
    let me = std::process::id();
    let mut tree = process::trees(|process| is_leader(process) || has_claim(process));
    tree.retain(|process| process.pid != me && process.pid != holder.pid);
    let watch = |process: Process| process.watch().map(|descriptor| (process, descriptor));
    tree.into_iter().filter_map(watch).collect()
}
