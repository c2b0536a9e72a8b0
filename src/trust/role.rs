//! Pure: what a peer may do. Each role may do what the ones before it may.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a peer may do.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads: how the agent and its scripts stand, their output, files, packages.
    Observer,
    /// Also runs and cancels scripts, sends files and packages, holds leases, drains. Who is trusted without a
    /// word about its role is this.
    #[default]
    Operator,
    /// Also replaces the agent's program, and gives up what nothing can end.
    Admin,
}

/// Why a text is no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a role: observer, operator or admin is expected")]
pub struct RoleError;

impl Role {
    /// All of them, the least one first.
    pub const ALL: [Self; 3] = [Self::Observer, Self::Operator, Self::Admin];

    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Observer => "observer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// Whether it goes without saying.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or(RoleError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_may_do_more_than_the_one_before_and_is_read_as_it_is_written() {
        assert!(Role::ALL.is_sorted());
        for role in Role::ALL {
            assert_eq!(role.to_string().parse(), Ok(role));
            assert_eq!(serde_json::to_value(role).unwrap(), role.as_str());
        }
        assert_eq!("root".parse::<Role>(), Err(RoleError));
    }
}
