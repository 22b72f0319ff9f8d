//! Making the previous tenant's data unreadable: deleting the files of a filesystem, or wiping a block device.
//!
//! Everything here blocks and runs on a thread of its own. Whether a volume may be scrubbed is decided by the caller;
//! what is scrubbed is a descriptor that the caller has checked, never a path. Each function may be killed at any
//! instruction: what is left is a volume that is partly scrubbed, and scrubbing it again finishes the work.

pub mod block;
pub mod checkpoint;
pub mod command;
pub mod filesystem;
pub mod limits;
pub mod progress;

use crate::reason::Held;
use rustix::io::Errno;

/// Why a scrub did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ScrubError {
    /// A cause that can be observed and that ends by itself. Nothing was touched, or nothing more is touched; it does
    /// not count as a failure.
    #[error("{0}")]
    Held(Held),
    /// It was tried and did not work: counts as a failure.
    #[error("{0:#}")]
    Failed(anyhow::Error),
    /// [`progress::Cancel`] was set. Scrubbing again goes on where this one stopped.
    #[error("cancelled")]
    Cancelled,
}

impl From<anyhow::Error> for ScrubError {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// The error of a system call on the volume: a volume that is read-only (or became so: ext4 with
/// `errors=remount-ro`) is held, all else is a failure.
fn failed(error: Errno, what: impl FnOnce() -> String) -> ScrubError {
    if error == Errno::ROFS {
        return ScrubError::Held(Held::ReadOnly);
    }
    ScrubError::Failed(anyhow::Error::new(std::io::Error::from(error)).context(what()))
}
