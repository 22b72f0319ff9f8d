//! Looking at one directory and at one entry of it. Everything here may block.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::libc;
use nix::sys::stat::Mode;

use super::{Context, Listing, Root, Seen, Unlisted};
use crate::devices;
use crate::health;
use crate::identity::{part, read};
use crate::observed::{EntryKind, MountFacts};
use crate::sys;

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC)
    .union(OFlag::O_NONBLOCK);

/// Opens and reads a discovery directory.
pub(super) fn list(path: &Path) -> Result<Listing, Unlisted> {
    let failed = |call: &str, errno: Errno| Unlisted::Unreadable(format!("{call} {}: {}", path.display(), text(errno)));
    let fd = match open(path, DIRECTORY, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::ENOENT) => return Err(Unlisted::Missing),
        Err(errno) => return Err(failed("open", errno)),
    };
    let mount_id = sys::mount_id(fd.as_fd()).map_err(|errno| failed("statx", errno))?;
    let names = names(&fd).map_err(|errno| failed("reading", errno))?;
    Ok(Listing { fd, mount_id, names })
}

fn names(fd: &OwnedFd) -> nix::Result<Vec<OsString>> {
    let mut dir = Dir::from_fd(fd.try_clone().map_err(|_| Errno::EMFILE)?)?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort();
    Ok(names)
}

/// Looks at an entry. A device is probed for users and signatures only if `probe` says so.
pub(super) fn look(listing: &Listing, name: &OsStr, probe: bool, context: &Context) -> Seen {
    let name = Path::new(name);
    let mut root = None;
    // O_PATH names the file without opening it: no FIFO blocks, no tape rewinds, no automount is triggered.
    let kind = match devices::open_node(listing.fd.as_fd(), name, false) {
        // Removed since the directory was read.
        Err(Errno::ENOENT) => None,
        Err(errno) => Some(failed(("open", errno))),
        Ok(node) => Some(classify(listing, name, node.as_fd(), probe, context, &mut root).unwrap_or_else(failed)),
    };
    Seen { kind, root }
}

fn failed((call, errno): Failure) -> EntryKind {
    EntryKind::Failed(format!("{call}: {}", text(errno)))
}

fn failing((call, errno): Failure) -> EntryKind {
    EntryKind::Failing(format!(
        "{call}: {}; its filesystem has shut down, or its disk fails (dmesg says which): unmount it, mend it (e2fsck, xfs_repair), and mount it again",
        text(errno)
    ))
}

type Failure = (&'static str, Errno);

fn call(name: &'static str) -> impl Fn(Errno) -> Failure {
    move |errno| (name, errno)
}

fn classify(
    listing: &Listing,
    name: &Path,
    node: BorrowedFd<'_>,
    probe: bool,
    context: &Context,
    root: &mut Option<Root>,
) -> Result<EntryKind, Failure> {
    let status = match sys::status(node) {
        Err(errno) if health::is_error(errno) => {
            // A filesystem that has shut down does not even tell that this is its root.
            let mount_id = sys::mount_id_by_proc(node).ok().filter(|id| *id != listing.mount_id);
            *root = mount_id.map(Root::unknown);
            let failure = ("statx", errno);
            return root.map(|_| failing(failure)).ok_or(failure);
        }
        status => status.map_err(call("statx"))?,
    };
    Ok(match status.file_type() {
        libc::S_IFDIR => directory(node, &status, listing.mount_id, context, root).or_else(|failure| {
            let mounted = root.is_some() && health::is_error(failure.1);
            if mounted { Ok(failing(failure)) } else { Err(failure) }
        })?,
        libc::S_IFBLK => device(node, probe, context),
        libc::S_IFLNK => symlink(listing.fd.as_fd(), name, probe, context)?,
        libc::S_IFREG => EntryKind::File,
        libc::S_IFIFO => EntryKind::Fifo,
        libc::S_IFSOCK => EntryKind::Socket,
        libc::S_IFCHR => EntryKind::CharacterDevice,
        other => EntryKind::Failed(format!("a file of unknown type {other:#o}")),
    })
}

fn symlink(dir: BorrowedFd<'_>, name: &Path, probe: bool, context: &Context) -> Result<EntryKind, Failure> {
    let target = match devices::open_node(dir, name, true) {
        Ok(target) => target,
        Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR) => {
            return Ok(EntryKind::DanglingSymlink);
        }
        Err(errno) => return Err(("following the symlink", errno)),
    };
    let status = sys::status(target.as_fd()).map_err(call("statx"))?;
    Ok(match status.file_type() {
        libc::S_IFBLK => device(target.as_fd(), probe, context),
        libc::S_IFDIR => EntryKind::SymlinkToDirectory,
        _ => EntryKind::SymlinkToOther,
    })
}

fn device(node: BorrowedFd<'_>, probe: bool, context: &Context) -> EntryKind {
    let look = if probe { devices::probe } else { devices::examine };
    match look(node, &context.around) {
        Ok(facts) => EntryKind::Device(Box::new(facts)),
        Err(error) => {
            let rdev = sys::status(node).map(|status| status.rdev);
            let state = rdev.ok().and_then(|rdev| health::device(&context.around.sysfs, rdev));
            match (state, &error) {
                (Some(state), _) => EntryKind::Failing(state),
                (None, devices::DeviceError::System { errno, .. }) if health::is_error(*errno) => {
                    EntryKind::Failing(format!("{error}; see dmesg"))
                }
                (None, _) => EntryKind::Failed(error.to_string()),
            }
        }
    }
}

/// A directory is the root of a mount if it is in another mount than the directory that it is an entry of: one name
/// down, only a mount point leads there. No path is compared.
fn directory(
    node: BorrowedFd<'_>,
    status: &sys::Status,
    outer_mount_id: u64,
    context: &Context,
    root: &mut Option<Root>,
) -> Result<EntryKind, Failure> {
    let id = match status.mount_id {
        Some(id) => id,
        None => sys::mount_id(node).map_err(call("statx"))?,
    };
    if id == outer_mount_id {
        return Ok(EntryKind::PlainDirectory);
    }
    *root = Some(Root::new(id, status));
    let Some(mount) = context.own.table.get(id) else {
        let table = context.own_path.display();
        return Ok(EntryKind::Failed(format!("its mount (id {id}) is not in {table}")));
    };
    if status.mount_root == Some(false) {
        return Ok(EntryKind::Failed(format!(
            "it is inside of the mount at {:?} and not its root",
            mount.mount_point
        )));
    }
    if mount.fs_type == "autofs" {
        // Opening it would mount what is behind it.
        return Ok(EntryKind::Failed(
            "an automount point, and nothing is mounted on it now".to_owned(),
        ));
    }
    let filesystem = sys::filesystem_status(node).map_err(call("fstatfs"))?;
    let known = root.as_ref().and_then(|root| context.known.get(root));
    let identity = match known {
        Some(known) => Ok(known.clone()),
        None => {
            let dir = openat(node, ".", DIRECTORY, Mode::empty()).map_err(call("open"))?;
            let around = &context.around;
            read::filesystem(dir.as_fd(), mount, &around.boot_id, &around.sysfs).map_err(|error| format!("{error:#}"))
        }
    };
    let uuid = identity.as_ref().ok().and_then(|id| id.get(part::UUID));
    Ok(EntryKind::Mount(Box::new(MountFacts {
        dev: mount.dev,
        subtree: mount.root.clone(),
        fs_type: mount.fs_type.clone(),
        // Of a filesystem that has turned read-only since, or a directory deleted since, the table need not tell.
        read_only: filesystem.read_only,
        failing: health::filesystem(&context.around.sysfs, mount, uuid),
        deleted: mount.deleted() || status.nlink == 0,
        capacity_bytes: filesystem.total_bytes,
        id: identity,
        nested: Vec::new(),
    })))
}

/// `EACCES: Permission denied`
fn text(errno: Errno) -> String {
    format!("{errno:?}: {}", errno.desc())
}
