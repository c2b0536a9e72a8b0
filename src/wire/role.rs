//! What a peer may do: `Role` and [`Role`].

use super::v1;
use crate::trust::Role;

impl From<Role> for v1::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Observer => Self::Observer,
            Role::Operator => Self::Operator,
            Role::Admin => Self::Admin,
        }
    }
}

/// The role of a message; `None` when it says none, as older agents do.
pub fn role(message: v1::Role) -> Option<Role> {
    match message {
        v1::Role::Unspecified => None,
        v1::Role::Observer => Some(Role::Observer),
        v1::Role::Operator => Some(Role::Operator),
        v1::Role::Admin => Some(Role::Admin),
    }
}
