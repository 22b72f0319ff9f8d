//! What to do about a state, where the words of its reason do not say it.

use crate::plan::State;
use crate::reason::{Held, Ignored};

/// What to do, as a sentence without a full stop.
pub(super) fn advice(state: &State) -> Option<&'static str> {
    match state {
        State::Ignored(reason) => ignored(reason),
        State::Held(reason) => held(reason),
        State::Unresponsive(_) => Some("look at the disk and its cable (dmesg); the volume comes back when it answers"),
        State::Vanished(_) => {
            Some("bring the disk or the mount back; an unused PV is withdrawn after the grace period")
        }
        State::Available | State::Bound | State::Released | State::Scrubbing(_) => None,
    }
}

fn ignored(reason: &Ignored) -> Option<&'static str> {
    match reason {
        Ignored::File | Ignored::Fifo | Ignored::Socket | Ignored::CharacterDevice => {
            Some("nothing, or move it out of the directory")
        }
        Ignored::NotAMountPoint => Some(
            "if it is mounted on the node, but not seen here: the container's mount of the directory needs mountPropagation: HostToContainer",
        ),
        Ignored::DanglingSymlink => Some(
            "plug the device in, or remove the link; the target must exist in the container, too: mount /dev there",
        ),
        Ignored::SymlinkToOther => Some("remove it"),
        Ignored::NamePattern(_) => Some("rename it, or change namePattern of its class"),
        Ignored::FilesystemInBlockClass => Some("link the device instead, or use another class"),
        Ignored::InUse(_) => Some("end that use"),
        Ignored::Duplicate(_) => Some("remove one of the two"),
        Ignored::NoCapacity => Some("nothing; this is an empty drive, such as a card reader"),
        Ignored::Failed(_) => Some("mend what the error names; look for I/O errors (dmesg)"),
        Ignored::SymlinkToDirectory | Ignored::NotUtf8 | Ignored::SourceDeleted | Ignored::MemberOf(_) => None,
    }
}

fn held(reason: &Held) -> Option<&'static str> {
    match reason {
        Held::InUse(_) => Some("wait for the pod to end, or end the other use; the rest follows by itself"),
        Held::Retain => Some("when the data is not needed any more: kubectl delete pv NAME --wait=false"),
        Held::ForeignFinalizer(_) => Some("see to the program whose finalizer that is"),
        Held::JobRunning(_) => Some("wait for it; the rest follows by itself"),
        Held::Unreadable(_) => Some("mend what the error names; look for I/O errors (dmesg)"),
        Held::Resting(_) => Some("wait; mount /host/mountinfo to avoid it"),
        Held::ScrubFailed { .. } => Some("see the error, and replace the disk if it is broken"),
        Held::CleanerUnavailable(_) => Some("mend what the reason names; the rest follows by itself"),
        Held::NotPermitted(_) => Some("grant it again; the rest follows by itself"),
        Held::RemovedByForce => Some("wait; if it stays, see the log for why the PV cannot be created"),
        Held::WrongStorage { .. }
        | Held::IdentityUnknown(_)
        | Held::NotMounted(_)
        | Held::NestedMounts(_)
        | Held::ReadOnly
        | Held::Failing(_)
        | Held::ClassNotConfigured
        | Held::StorageClassMissing
        | Held::UnsupportedPolicy(_)
        | Held::RetainDeleting
        | Held::Kept
        | Held::UnknownUse
        | Held::ClaimMayLive(_)
        | Held::ForeignPv(_)
        | Held::PhaseFailed
        | Held::JobPending { .. }
        | Held::Quarantined { .. } => None,
    }
}
