//! Whose a PersistentVolume is.

use super::Pv;
use crate::names;

/// Whose a PV is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// This provisioner's.
    Ours,
    /// Made by a provisioner on this node while the Node object had another UID or hostname label.
    FormerNode,
    /// Somebody else's.
    Foreign,
}

/// Tells own PVs from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ownership {
    /// The own Node's name.
    pub node_name: String,
    /// The own Node's UID.
    pub node_uid: String,
    /// The value of its hostname label.
    pub hostname: String,
    /// `useNodeNameOnly`.
    pub node_name_only: bool,
}

impl Ownership {
    /// The value of the provisioned-by annotation of the PVs that we make.
    #[must_use]
    pub fn provisioned_by(&self) -> String {
        names::provisioned_by(
            &self.node_name,
            (!self.node_name_only).then_some(self.node_uid.as_str()),
        )
    }

    /// Whose the PV is: by its provisioned-by annotation and the node that it is tied to, whatever its labels say.
    #[must_use]
    pub fn of(&self, pv: &Pv) -> Owner {
        // What follows the node's name: nothing, or a hyphen and a UID.
        let by = pv.annotation(names::PROVISIONED_BY);
        let named = by.and_then(|by| {
            by.strip_prefix(names::PROVISIONED_BY_PREFIX)?
                .strip_prefix(&*self.node_name)
        });
        let Some(uid) = named.and_then(|rest| {
            if rest.is_empty() {
                Some(None)
            } else {
                rest.strip_prefix('-').map(Some)
            }
        }) else {
            return Owner::Foreign;
        };
        let tied_here = pv.path.is_some() && matches!(&pv.hostnames[..], [hostname] if *hostname == self.hostname);
        if uid.is_none_or(|uid| uid == self.node_uid) {
            return match (&pv.path, tied_here) {
                (None, _) => Owner::Foreign,
                (Some(_), true) => Owner::Ours,
                // Its affinity cannot be changed, but it stands for a volume of this node.
                (Some(_), false) => Owner::FormerNode,
            };
        }
        // A UID has 36 characters, so a node called `n` does not take those of `n-1`.
        let former = uid.is_some_and(|uid| uid.len() == 36 && uid.bytes().filter(|byte| *byte == b'-').count() == 4);
        match (former && tied_here, self.node_name_only) {
            (true, true) => Owner::Ours,
            (true, false) => Owner::FormerNode,
            (false, _) => Owner::Foreign,
        }
    }
}
