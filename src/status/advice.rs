//! What to do about a state, and the commands for it.

use crate::plan::{State, Volume};
use crate::reason::{Held, Ignored};

/// What to do, as a sentence without a full stop.
pub(crate) fn advice(state: &State) -> Option<String> {
    let further = match state {
        State::Ignored(reason) => return both(reason.action(), ignored(reason)),
        State::Held(reason) => return both(reason.action(), held(reason)),
        State::Unresponsive(_) => Some("look at the disk and its cable (dmesg); the volume comes back when it answers"),
        State::Vanished(_) => {
            Some("bring the disk or the mount back; an unused PV is withdrawn after the grace period")
        }
        State::Available | State::Bound | State::Released | State::Scrubbing(_) => None,
    };
    further.map(str::to_owned)
}

fn both(action: Option<String>, further: Option<&str>) -> Option<String> {
    match (action, further) {
        (Some(action), Some(further)) => Some(format!("{action}; {further}")),
        (action, further) => action.or(further.map(str::to_owned)),
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
        Ignored::ReadOnly => Some("mount it writable"),
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
        Held::Retain => Some("nothing, or, when the data is not needed any more, delete the PV"),
        Held::ForeignFinalizer(_) => Some("see to the program whose finalizer that is"),
        Held::JobRunning(_) => Some("wait for it; the rest follows by itself"),
        Held::Unreadable(_) => Some("mend what the error names; look for I/O errors (dmesg)"),
        Held::Resting(_) => Some("wait; mount /host/mountinfo to avoid it"),
        Held::ScrubFailed { .. } => Some("see the error, and replace the disk if it is broken"),
        Held::CleanerUnavailable(_) => Some("mend what the reason names; the rest follows by itself"),
        Held::NotPermitted(_) => Some("grant it again; the rest follows by itself"),
        Held::RemovedByForce => Some("wait; if it stays, see the log for why the PV cannot be created"),
        _ => None, // Its words say it.
    }
}

/// The commands by which an operator decides, ready to be copied: one for each decision.
pub(crate) fn commands(volume: &Volume) -> Vec<String> {
    let (State::Held(reason), Some(pv), true) = (&volume.state, &volume.pv, volume.published) else {
        return Vec::new();
    };
    let annotate = |what: &str| format!("kubectl annotate pv {pv} local-volume-provisioner/{what}");
    match reason {
        Held::WrongStorage { .. } | Held::IdentityUnknown(_) => vec![annotate("resolve=adopt")],
        Held::Quarantined { .. } => vec![annotate("resolve=retry")],
        Held::RetainDeleting | Held::UnknownUse => vec![annotate("retained=scrub"), annotate("retained=keep")],
        Held::Retain => vec![format!("kubectl delete pv {pv} --wait=false")],
        Held::PhaseFailed => vec![format!("kubectl delete pv {pv}")],
        _ => Vec::new(),
    }
}
