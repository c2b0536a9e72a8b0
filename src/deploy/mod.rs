//! The orchestrator's side: what is deployed where, in which order, with which variables.
//!
//! From the files down to what an executor works off:
//!
//! ```text
//! targets.toml ─► Targets ──┐
//! deploy.toml ──► Project ──┼─► planning ─► Plan ─► waves, stages ─► steps ─► jobs
//! the request ──► Request ──┘
//! ```
//!
//! Policy is pure: scopes, variables, special variables, planning. Reading files is one edge, [`load`]. A
//! [`plan::Plan`] asks nothing any more: whoever works it off needs none of the files. The files' shapes
//! are Rust types; their JSON Schemas in `share/schema/` are made from these and are what a file is
//! checked against.

pub mod address;
pub mod document;
pub mod event;
pub mod limit;
pub mod load;
pub mod plan;
pub mod planning;
pub mod problem;
pub mod project;
mod project_file;
pub mod record;
pub mod report;
pub mod rollout;
pub mod run;
pub mod scope;
pub mod special;
pub mod step;
pub mod target_edit;
pub mod targets;
pub mod template;
#[cfg(test)]
mod tests;
pub mod value;
pub mod variables;
