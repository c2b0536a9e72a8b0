//! The agent as a service of the system: what systemd is told, and the journal.
//!
//! Nothing here decides about scripts; without systemd each of it does nothing.

pub mod journal;
pub mod notify;
