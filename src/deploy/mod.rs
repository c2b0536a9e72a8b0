//! The orchestrator's side: what is deployed where, in which order, with which variables.
//!
//! From the files down to what an executor works off:
//!
//! ```text
//! targets.toml ─► Targets ──┐
//! deploy.toml ──► Project ──┼─► planning ─► Plan ─► stages ─► steps ─► batches ─► jobs
//! the request ──► Request ──┘
//! ```
//!
//! A [`plan::Plan`] asks nothing any more: whoever works it off needs none of the files.

pub mod plan;
pub mod value;
