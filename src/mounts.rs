//! The mount table: a parser of mountinfo, and what the rest asks of it.
//!
//! Everything here is pure: bytes in, data out. The bytes come from `/proc/self/mountinfo` and, for the mounts of pods,
//! from the host's `/proc/1/mountinfo`. Paths are bytes, not text: a mount point may have any name.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use crate::observed::PodMount;

mod table;
#[cfg(test)]
mod tests;

pub use table::{Reading, Source, Table};

/// One line of mountinfo; see proc_pid_mountinfo(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The mount's id, as statx(2) gives it in `stx_mnt_id`. Reused by the kernel once the mount is gone.
    pub mount_id: u64,
    /// The id of the mount that this one is on.
    pub parent_id: u64,
    /// The filesystem's device number, in the encoding of `st_dev`. On btrfs it is the filesystem's own, which differs
    /// from the `st_dev` of the files in it.
    pub dev: u64,
    /// The directory of the filesystem that is mounted: `/`, or for a bind mount another one.
    pub root: PathBuf,
    /// Where it is mounted, relative to the root directory of the process whose table this is.
    pub mount_point: PathBuf,
    /// This mount is read-only.
    pub mount_read_only: bool,
    /// The filesystem is read-only, through whatever mount.
    pub filesystem_read_only: bool,
    /// The filesystem has given up after an error: ext4 says so since Linux 6.14 without becoming `ro`, and writes fail.
    pub gave_up: bool,
    /// The filesystem's type, such as `ext4` or `fuse.sshfs`.
    pub fs_type: String,
    /// What was mounted, in the words of whoever did: a device's path, or anything else.
    pub source: OsString,
}

impl Mount {
    /// Whether it shows a directory of a filesystem and not the whole: one that others can rename or delete.
    #[must_use]
    pub fn is_of_a_directory(&self) -> bool {
        self.root != Path::new("/")
    }

    /// Whether writing through this mount is refused, for either reason.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.mount_read_only || self.filesystem_read_only
    }

    /// Whether the directory that is mounted was deleted since: the kernel appends `//deleted` to the root field, which
    /// no live path can end in.
    #[must_use]
    pub fn deleted(&self) -> bool {
        self.root.as_os_str().as_bytes().ends_with(b"//deleted")
    }
}

/// The mounts in `mountinfo`, in its order. Lines that are not understood are left out; [`parse_counting`] tells how
/// many they were.
#[must_use]
pub fn parse(mountinfo: &[u8]) -> Vec<Mount> {
    parse_counting(mountinfo).0
}

/// As [`parse`], with the number of lines that were not understood. Who concludes something from the *absence* of a
/// mount has to look at it.
#[must_use]
pub fn parse_counting(mountinfo: &[u8]) -> (Vec<Mount>, usize) {
    let mut mounts = Vec::new();
    let mut skipped = 0;
    for line in mountinfo.split(|&byte| byte == b'\n') {
        if line.is_empty() {
            continue;
        }
        match parse_line(line) {
            Some(mount) => mounts.push(mount),
            None => skipped += 1,
        }
    }
    (mounts, skipped)
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse_line(line: &[u8]) -> Option<Mount> {
    // Blanks inside of a field are escaped, so a blank always separates; an empty source leaves an empty field.
    let mut fields = line.split(|&byte| byte == b' ');
    let mount_id = number(fields.next()?)?;
    let parent_id = number(fields.next()?)?;
    let dev = device_number(fields.next()?)?;
    let root = path(fields.next()?)?;
    let mount_point = path(fields.next()?)?;
    let options = fields.next()?;
    // Optional fields (shared:1 master:2 …) up to a lone hyphen.
    fields.by_ref().find(|field| *field == b"-")?;
    let fs_type = String::from_utf8_lossy(&unescape(fields.next()?)).into_owned();
    let source = OsString::from_vec(unescape(fields.next()?));
    let super_options = fields.next().unwrap_or_default();
    Some(Mount {
        mount_id,
        parent_id,
        dev,
        root,
        mount_point,
        mount_read_only: has_option(options, b"ro"),
        filesystem_read_only: has_option(super_options, b"ro"),
        gave_up: [&b"shutdown"[..], b"emergency_ro"]
            .iter()
            .any(|option| has_option(super_options, option)),
        fs_type,
        source,
    })
}

fn number<T: FromStr>(field: &[u8]) -> Option<T> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn device_number(field: &[u8]) -> Option<u64> {
    let mut parts = field.splitn(2, |&byte| byte == b':');
    // Larger numbers would lose their upper half, and be those of another device.
    let major: u32 = number(parts.next()?)?;
    let minor: u32 = number(parts.next()?)?;
    Some(nix::sys::stat::makedev(major.into(), minor.into()))
}

/// A path, which is absolute except in pseudo-filesystems (`mnt:[4026531840]` of nsfs).
fn path(field: &[u8]) -> Option<PathBuf> {
    (!field.is_empty()).then(|| PathBuf::from(OsString::from_vec(unescape(field))))
}

fn has_option(options: &[u8], wanted: &[u8]) -> bool {
    options.split(|&byte| byte == b',').any(|option| option == wanted)
}

/// Undoes the kernel's `\ooo` (blank, tab, newline, backslash and hash come so). A backslash that three octal digits do
/// not follow stands for itself.
pub(crate) fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] if byte == b'\\' => {
                out.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                rest = after;
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

/// The mount with this id.
#[must_use]
pub fn by_id(mounts: &[Mount], mount_id: u64) -> Option<&Mount> {
    mounts.iter().find(|mount| mount.mount_id == mount_id)
}

/// What pods have mounted of local volumes, judged by where it is mounted: at or below
/// `…/pods/<uid>/volumes/kubernetes.io~local-volume/<pv>`, or below `…/pods/<uid>/volume-subpaths/<pv>`, where kubelet
/// mounts a `subPath` of a volume once more. kubelet's root directory is a setting, so nothing is assumed about it.
#[must_use]
pub fn pod_mounts(mounts: &[Mount]) -> Vec<PodMount> {
    mounts.iter().filter_map(pod_mount).collect()
}

fn pod_mount(mount: &Mount) -> Option<PodMount> {
    let parts: Vec<&[u8]> = mount
        .mount_point
        .as_os_str()
        .as_bytes()
        .split(|&byte| byte == b'/')
        .collect();
    // The first match counts: what comes after it is the volume's own tree, which may hold a path that looks alike.
    let (pod_uid, pv) = parts
        .windows(5)
        .filter_map(|window| match window {
            [b"pods", uid, b"volumes", b"kubernetes.io~local-volume", pv] => Some((*uid, *pv)),
            [b"pods", uid, b"volume-subpaths", pv, _] => Some((*uid, *pv)),
            _ => None,
        })
        .find(|(uid, pv)| !uid.is_empty() && !pv.is_empty())?;
    Some(PodMount {
        pod_uid: String::from_utf8_lossy(pod_uid).into_owned(),
        pv: String::from_utf8_lossy(pv).into_owned(),
        dev: mount.dev,
        subtree: mount.root.clone(),
    })
}

/// The mount points of this table that lie strictly inside the directory `subtree` of the filesystem `dev`, through
/// whatever mount of that filesystem. For many questions to one table, keep a [`Nesting`].
#[must_use]
pub fn nested(mounts: &[Mount], dev: u64, subtree: &Path) -> Vec<PathBuf> {
    Nesting::new(mounts).below(dev, subtree)
}

/// Where the mounts of a table sit inside of filesystems.
#[derive(Debug, Default)]
pub struct Nesting {
    /// Sorted. Paths order by component, so what lies below a directory is one contiguous range.
    points: Vec<Point>,
}

/// A mount point, by the filesystem and the place in it that it covers.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    dev: u64,
    place: Box<Path>,
    mount_point: Box<Path>,
}

impl Nesting {
    /// Works out the place of every mount whose parent is in the table, too.
    #[must_use]
    pub fn new(mounts: &[Mount]) -> Self {
        let by_id: HashMap<u64, &Mount> = mounts.iter().map(|mount| (mount.mount_id, mount)).collect();
        let point = |mount: &Mount| {
            let parent = by_id.get(&mount.parent_id)?;
            let relative = mount.mount_point.strip_prefix(&parent.mount_point).ok()?;
            (parent.mount_id != mount.mount_id).then(|| Point {
                dev: parent.dev,
                place: parent.root.join(relative).into(),
                mount_point: mount.mount_point.as_path().into(),
            })
        };
        let mut points: Vec<Point> = mounts.iter().filter_map(point).collect();
        points.sort_unstable();
        points.dedup();
        Self { points }
    }

    /// The mount points strictly inside the directory `subtree` of the filesystem `dev`, sorted.
    #[must_use]
    pub fn below(&self, dev: u64, subtree: &Path) -> Vec<PathBuf> {
        let before = |point: &Point| (point.dev, &*point.place) <= (dev, subtree);
        let from = self.points.partition_point(before);
        let mut found: Vec<PathBuf> = self.points[from..]
            .iter()
            .take_while(|point| point.dev == dev && point.place.starts_with(subtree))
            .map(|point| point.mount_point.to_path_buf())
            .collect();
        found.sort();
        found.dedup();
        found
    }
}

/// Whether `inner` is the directory `outer` or lies below it. Both are absolute and without `.` and `..`, as mountinfo
/// gives them.
#[must_use]
pub fn contains(outer: &Path, inner: &Path) -> bool {
    let plain = |path: &Path| {
        path.components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
    };
    plain(outer) && plain(inner) && inner.starts_with(outer)
}
