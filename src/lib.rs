//! baton runs scripts on this machine, one at a time under a machine-wide named mutex.
//!
//! The map, in reading order from the user down to the disk. A module uses what stands below it and
//! never what stands above; `tests/tidy.rs` holds this order.
//!
//! | module | what it is |
//! |---|---|
//! | [`cli`] | the commands; the only code that prints |
//! | [`doctor`] | looks for what keeps baton from working here |
//! | [`service`] | the agent under systemd: what systemd is told, the journal |
//! | [`deploy`] | the orchestrator's side: project file, variables and scopes, plan |
//! | [`guard`] | the process beside an upgrade of the agent: takes it back when it fails |
//! | [`client`] | connects to an agent and follows scripts |
//! | [`rpc`] | the agent's gRPC front: listeners, handlers, errors |
//! | [`agent`] | the daemon's own: queue, table of scripts, launching, recovery |
//! | [`wire`] | generated messages and the conversions |
//! | [`supervisor`] | the process beside each script: mutexes, process tree, journal, outcome |
//! | [`artifacts`] | the files that a script leaves for its clients |
//! | [`packages`] | trees of files that are brought once, as chunks, and installed |
//! | [`workspace`] | a script's folder on disk |
//! | [`upgrade`] | another version of the program: verified, put in place, taken back |
//! | [`transfer`] | files in and out: roots, chunks, digest, resume |
//! | [`snapshot`] | how a script stands, as outsiders see it |
//! | [`spec`] | a validated request |
//! | [`fleet`] | mutexes that a fleet of machines shares, by etcd |
//! | [`mutex`] | named mutexes: names, policy, the line on disk |
//! | [`journal`] | a script's output on disk |
//! | [`store`] | what the agent must remember, in SQLite |
//! | [`trust`] | identity, peers, TLS |
//! | [`config`] | file, environment and flags become one validated configuration |
//! | [`script`] | the nouns: ids, isolation, phases, outcomes |
//! | [`values`] | what a script gives back: outputs, progress, service messages |
//! | [`filewatch`] | told when a file changes |
//! | [`durable`] | replaces a file so that it survives a crash |
//! | [`crash`] | points at which a test lets a process die |
//! | [`format`] | the versions of what is on disk and between processes |
//! | [`process`] | other processes: who is below whom, a signal to exactly one |
//! | [`text`] | texts for people: cut, with causes |
//!
//! [`format`]: mod@format

pub mod agent;
pub mod artifacts;
pub mod cli;
pub mod client;
pub mod config;
pub mod crash;
pub mod deploy;
pub mod doctor;
pub mod durable;
pub mod filewatch;
pub mod fleet;
pub mod format;
pub mod guard;
pub mod journal;
pub mod mutex;
pub mod packages;
pub mod process;
pub mod rpc;
pub mod script;
pub mod service;
pub mod snapshot;
pub mod spec;
pub mod store;
pub mod supervisor;
pub mod text;
pub mod transfer;
pub mod trust;
pub mod upgrade;
pub mod values;
pub mod wire;
pub mod workspace;
