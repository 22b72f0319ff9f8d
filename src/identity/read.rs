//! Reading the identity of what is there now, through a descriptor that stays on it.

use std::fmt::Write as _;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::stat::{major, minor};

use super::{IdKind, VolumeId, fsid_text, part};
use crate::devices::sysfs::{self, Block, DiskKey};
use crate::mounts::Mount;
use crate::sys;

/// The identity of the filesystem behind `fd`, a descriptor of the root directory of `mount`, opened for reading (an
/// `O_PATH` one takes no ioctls).
///
/// The root of /sys is an argument for the sake of tests.
///
/// # Errors
/// What the filesystem cannot be told by, or the system call that failed, in words for the operator.
pub fn filesystem(
    fd: BorrowedFd<'_>,
    mount: &Mount,
    boot_id: &str,
    sysfs: &Path,
) -> Result<VolumeId> {
    let directory = sys::status(fd).context("statx")?;
    let bound = mount.root != Path::new("/");
    if is_volatile(&mount.fs_type) {
        return volatile(fd, mount, boot_id, bound);
    }
    let id = VolumeId::new(IdKind::Filesystem);
    // The current boot is noted with nothing that outlives it; it is there to tell what volatile storage was lost.
    let mut id = match uuid(fd, &mount.fs_type)? {
        Some(uuid) => id.with(part::UUID, uuid_text(&uuid)),
        None => id.with(part::FSID, fsid(fd, &mount.fs_type)?),
    };
    id = id.with(part::BOOT, boot_id);
    if bound {
        id = with_directory(id, fd, mount, &directory)?;
    }
    if let Some((key, value)) = disk_of_filesystem(sysfs, mount.dev) {
        id = id.with(key, value);
    }
    Ok(id)
}

/// Filesystems in memory. A reboot makes a new one.
fn is_volatile(fs_type: &str) -> bool {
    matches!(fs_type, "tmpfs" | "ramfs" | "devtmpfs" | "hugetlbfs")
}

/// The UUID of tmpfs is new with every mount. Kernels before 6.9 do not tell it; there the handle of the mounted
/// directory, whose generation is random, and the filesystem's device number take its place.
fn volatile(fd: BorrowedFd<'_>, mount: &Mount, boot_id: &str, bound: bool) -> Result<VolumeId> {
    let id = VolumeId::new(IdKind::Volatile).with(part::BOOT, boot_id);
    let status = sys::status(fd).context("statx")?;
    match uuid(fd, &mount.fs_type)? {
        Some(uuid) => {
            let id = id.with(part::UUID, uuid_text(&uuid));
            if bound {
                with_directory(id, fd, mount, &status)
            } else {
                Ok(id)
            }
        }
        None => {
            let id = id.with(
                part::DEVICE,
                format!("{}:{}", major(mount.dev), minor(mount.dev)),
            );
            with_directory(id, fd, mount, &status)
        }
    }
}

/// Adds which directory of the filesystem it is. One that was deleted and made again is another, even with the same
/// path and inode number (ext4 gives a new directory the number of the last one deleted).
fn with_directory(
    id: VolumeId,
    fd: BorrowedFd<'_>,
    mount: &Mount,
    status: &sys::Status,
) -> Result<VolumeId> {
    let mut id = id
        .with(part::SUBTREE, path_text(&mount.root))
        .with(part::INODE, status.inode.to_string());
    if let Some(birth) = status.birth_nanoseconds {
        id = id.with(part::BTIME, birth.to_string());
    }
    match sys::file_handle(fd) {
        Ok(handle) => Ok(id.with(
            part::HANDLE,
            format!("{:x}-{}", handle.kind, hexadecimal(&handle.bytes)),
        )),
        // Not by this filesystem, or a seccomp profile is in the way.
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EPERM)
            if status.birth_nanoseconds.is_some() =>
        {
            Ok(id)
        }
        Err(errno) => bail!(
            "{} gives no file handle ({errno}) and no birth time, so a directory that was made again cannot be told from the one before; mount a whole filesystem instead of a directory of one",
            mount.fs_type
        ),
    }
}

/// The filesystem's UUID, if the kernel tells it.
fn uuid(fd: BorrowedFd<'_>, fs_type: &str) -> Result<Option<sys::Uuid>> {
    type Way = fn(BorrowedFd<'_>) -> nix::Result<sys::Uuid>;
    let ways: &[Way] = match fs_type {
        "btrfs" => &[sys::btrfs_uuid],
        "ext2" | "ext3" | "ext4" => &[sys::filesystem_uuid, sys::ext4_uuid],
        "xfs" => &[sys::filesystem_uuid, sys::xfs_uuid],
        _ => &[sys::filesystem_uuid],
    };
    for way in ways {
        match way(fd) {
            Ok(uuid) if uuid != [0; 16] => return Ok(Some(uuid)),
            Ok(_) | Err(Errno::ENOTTY | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS) => {}
            Err(errno) => return Err(errno).context("asking the filesystem for its UUID"),
        }
    }
    Ok(None)
}

/// `f_fsid` where it derives from what is stored: the UUID on ext4, an identifier of the dataset on ZFS. Elsewhere it
/// mostly is the device number of the day.
fn fsid(fd: BorrowedFd<'_>, fs_type: &str) -> Result<String> {
    if !matches!(fs_type, "ext2" | "ext3" | "ext4" | "zfs") {
        bail!(
            "a filesystem of type {fs_type} does not tell its UUID, so it cannot be told from another one; use ext4, xfs or btrfs"
        );
    }
    let fsid = sys::filesystem_status(fd).context("fstatfs")?.fsid;
    if fsid == 0 {
        bail!("this {fs_type} has no UUID; give it one (tune2fs -U random)");
    }
    Ok(fsid_text(fsid))
}

/// The number of the disk below a filesystem. Equal UUIDs do not prove the same filesystem: disks get cloned.
///
/// Only where the filesystem is directly on a disk or a partition: what is below device mapper, md and btrfs may be
/// replaced while the filesystem lives on.
fn disk_of_filesystem(sysfs: &Path, dev: u64) -> Option<DiskKey> {
    Block::find(sysfs, dev).ok()?.hardware_key()
}

/// The identity of the block device behind `fd`, opened for reading, whose number is `rdev`.
///
/// The root of /sys is an argument for the sake of tests.
///
/// # Errors
/// What the device cannot be told by, in words for the operator.
pub fn device(fd: BorrowedFd<'_>, rdev: u64, sysfs: &Path, boot_id: &str) -> Result<VolumeId> {
    let block = Block::find(sysfs, rdev).with_context(|| {
        format!(
            "looking up {}/dev/block/{}:{}",
            sysfs.display(),
            major(rdev),
            minor(rdev)
        )
    })?;
    let attached = if block.is_loop() {
        Some(sys::loop_status(fd).context("LOOP_GET_STATUS64")?)
    } else {
        None
    };
    device_of(&block, attached.as_ref(), boot_id)
}

/// The identity of a device from what was read of it.
pub(crate) fn device_of(
    block: &Block,
    attached: Option<&sys::LoopStatus>,
    boot_id: &str,
) -> Result<VolumeId> {
    let kind = if block.is_ram() {
        IdKind::Volatile
    } else {
        IdKind::Device
    };
    let mut id = VolumeId::new(kind).with(part::BOOT, boot_id);
    for (key, value) in disk_keys(block, attached)? {
        id = id.with(key, value);
    }
    if let Some(number) = block.partition {
        let start = block
            .start_sector()
            .with_context(|| format!("/sys does not tell where {} starts", block.name()))?;
        id = id
            .with(part::PARTITION, number.to_string())
            .with(part::START, start.to_string());
        if let Some(uuid) = block.partition_uuid() {
            id = id.with(part::PARTUUID, uuid);
        }
    }
    if let Some(sequence) = block.disk_attribute("diskseq") {
        id = id.with(part::DISKSEQ, sequence);
    }
    Ok(id)
}

/// What identifies the disk as a whole.
fn disk_keys(block: &Block, attached: Option<&sys::LoopStatus>) -> Result<Vec<DiskKey>> {
    let name = block.disk_name();
    if let Some(attached) = attached {
        return Ok(loop_keys(block, attached));
    }
    if block.disk_file("dm").is_dir() {
        let uuid = block.disk_attribute("dm/uuid").with_context(|| {
            format!("device mapper device {name} has no UUID; make it with one (dmsetup create --uuid, LVM and cryptsetup give one)")
        })?;
        return Ok(vec![(part::DM, uuid)]);
    }
    if block.disk_file("md").is_dir() {
        let uuid = block
            .disk_attribute("md/uuid")
            .with_context(|| format!("the kernel does not tell the UUID of md array {name}"))?;
        return Ok(vec![(part::MD, uuid)]);
    }
    if block.is_ram() {
        return Ok(vec![(part::RAM, name)]);
    }
    let key = block
        .hardware_key()
        .or_else(|| Some((part::BUS, block.attachment()?)));
    Ok(vec![key.with_context(|| {
        format!("device {name} has neither a WWN nor a serial number nor a place on a bus, so it cannot be told from another one")
    })?])
}

/// A loop device is its backing file.
fn loop_keys(block: &Block, attached: &sys::LoopStatus) -> Vec<DiskKey> {
    // A block device that backs a loop device is itself, whatever filesystem its node is in and whatever its path.
    let (device, inode, path) = if attached.rdev == 0 {
        (
            attached.dev,
            attached.inode.to_string(),
            block.loop_backing_path(),
        )
    } else {
        (attached.rdev, "device".to_owned(), None)
    };
    let mut keys = vec![
        (
            part::LOOP_DEVICE,
            format!("{}:{}", major(device), minor(device)),
        ),
        (part::LOOP_INODE, inode),
        (part::LOOP_OFFSET, attached.offset_bytes.to_string()),
    ];
    if let Some(path) = path {
        keys.push((part::LOOP_PATH, path_text(&path)));
    }
    keys
}

/// A path as the value of a part: text if it is UTF-8, else its bytes. No path that is told begins with `bytes:`.
fn path_text(path: &Path) -> String {
    match path.to_str() {
        Some(text) => text.to_owned(),
        None => format!("bytes:{}", hexadecimal(path.as_os_str().as_bytes())),
    }
}

fn uuid_text(uuid: &sys::Uuid) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Keys under which the same storage could be met again through another name: two devices that share one are, in part
/// or as a whole, the same storage. A disk has the keys of its partitions, too; a partition has its own only, so that
/// it collides with its disk and not with its siblings.
pub(crate) fn storage_keys(block: &Block, attached: Option<&sys::LoopStatus>) -> Vec<String> {
    let mut keys = vec![number_key(block.rdev)];
    let disk = disk_keys(block, attached)
        .ok()
        .and_then(|keys| whole_disk_key(&keys));
    let key_of = |piece: &Block| {
        let disk = disk.as_ref()?;
        match piece.partition {
            Some(_) => Some(format!("{disk}#{}", piece.start_sector()?)),
            None => Some(disk.clone()),
        }
    };
    keys.extend(key_of(block));
    for partition in block.partitions() {
        keys.push(number_key(partition.rdev));
        keys.extend(key_of(&partition));
    }
    if let Some(attached) = attached.filter(|attached| attached.rdev != 0) {
        keys.push(number_key(attached.rdev));
    }
    keys
}

fn number_key(rdev: u64) -> String {
    format!("dev:{}:{}", major(rdev), minor(rdev))
}

/// One text for what tells a whole disk from all others that are attached now. A place on a bus or a RAM disk's name
/// tell no more than the device number.
fn whole_disk_key(keys: &[DiskKey]) -> Option<String> {
    let value = |wanted: &str| {
        keys.iter()
            .find(|(key, _)| *key == wanted)
            .map(|(_, value)| value.as_str())
    };
    if let (Some(device), Some(inode), Some(offset)) = (
        value(part::LOOP_DEVICE),
        value(part::LOOP_INODE),
        value(part::LOOP_OFFSET),
    ) {
        return Some(format!("loop:{device}:{inode}:{offset}"));
    }
    [part::WWN, part::SERIAL, part::DM, part::MD]
        .iter()
        .find_map(|key| Some(format!("{key}:{}", value(key)?)))
}

impl Block {
    /// The path of a loop device's backing file as the kernel shows it to this process.
    fn loop_backing_path(&self) -> Option<std::path::PathBuf> {
        let path = sysfs::read_path(&self.disk_file("loop/backing_file"))?;
        // The kernel says so if the file was deleted since.
        let bytes = path.as_os_str().as_bytes();
        let bytes = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
        Some(Path::new(std::ffi::OsStr::from_bytes(bytes)).to_path_buf())
    }
}
