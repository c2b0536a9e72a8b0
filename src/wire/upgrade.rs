//! How an upgrade of the agent stands: `AgentUpgrade` of a [`Record`].

use super::{to_timestamp, v1};
use crate::upgrade::{Ended, Record, Stage};

impl From<Record> for v1::AgentUpgrade {
    fn from(record: Record) -> Self {
        let (phase, reason, ended_at) = match record.stage {
            Stage::Swapping | Stage::Swapped | Stage::Starting => {
                (v1::UpgradePhase::InProgress, String::new(), None)
            }
            Stage::TakingBack { reason } => (v1::UpgradePhase::InProgress, reason, None),
            Stage::Done { ended: Ended::Upgraded, at } => {
                (v1::UpgradePhase::Upgraded, String::new(), Some(at))
            }
            Stage::Done { ended: Ended::RolledBack { reason }, at } => {
                (v1::UpgradePhase::RolledBack, reason, Some(at))
            }
        };
        Self {
            upgrade_id: record.id,
            from_version: record.from,
            to_version: record.to,
            caller: record.caller,
            begun_at: Some(to_timestamp(record.begun_at)),
            phase: phase.into(),
            reason,
            ended_at: ended_at.map(to_timestamp),
        }
    }
}
