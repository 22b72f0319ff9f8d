//! A look at the device of a Job: the status of a Job that failed does not say what it met, and one that would be held is
//! not made.

use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;

use crate::devices;
use crate::identity::Comparison;
use crate::observed::DeviceFacts;
use crate::plan::JobDevice;
use crate::reason::Held;
use crate::scan::{self, ScanSettings, Tables};

/// What would hold a scrub of this device, if anything does. A device that cannot be opened here says nothing: the Job
/// may be able to.
pub(super) async fn look_at(device: &JobDevice, scan: &ScanSettings) -> Option<Held> {
    let (device, settings) = (device.clone(), scan.clone());
    let path = device.path.display().to_string();
    let look = tokio::task::spawn_blocking(move || look(&device, &settings));
    // Several system calls, on a device that may be slow to answer.
    match tokio::time::timeout(scan.syscall_timeout * 2, look).await {
        Ok(Ok(held)) => held,
        Ok(Err(_)) => None,
        Err(_) => Some(Held::Unreadable(format!("{path} does not answer"))),
    }
}

fn look(device: &JobDevice, scan: &ScanSettings) -> Option<Held> {
    let facts = match opened(&device.path, scan)? {
        Ok(facts) => facts,
        Err(held) => return Some(held),
    };
    if let Some(expected) = &device.expected {
        match &facts.id {
            Err(error) => return Some(Held::IdentityUnknown(error.clone())),
            Ok(found) if expected.compare(found) == Comparison::Same => {}
            Ok(found) => {
                return Some(Held::WrongStorage {
                    expected: expected.to_string(),
                    found: found.to_string(),
                });
            }
        }
    }
    let users = facts.users.filter(|users| !users.is_empty());
    users
        .map(|users| Held::InUse(users.join(", ")))
        .or_else(|| facts.read_only.then_some(Held::ReadOnly))
}

/// The facts of a device that nobody uses: as `scrub` looks at it, but for reading only.
fn opened(path: &Path, scan: &ScanSettings) -> Option<Result<DeviceFacts, Held>> {
    let node = match devices::open_node(AT_FDCWD, path, true) {
        Ok(node) => node,
        Err(Errno::ENOENT) => {
            return Some(Err(Held::NotMounted(format!("{} does not exist", path.display()))));
        }
        Err(_) => return None,
    };
    match devices::probe(node.as_fd(), &scan::surroundings(scan, &Tables::new(scan))) {
        Ok(facts) => Some(Ok(facts)),
        Err(error @ devices::DeviceError::NotABlockDevice) => Some(Err(Held::NotMounted(error.to_string()))),
        Err(_) => None,
    }
}
