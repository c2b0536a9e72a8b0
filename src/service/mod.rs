//! The agent as a service of the system: what systemd is told.
//!
//! Nothing here decides about scripts; without systemd each of it does nothing.

pub mod notify;
