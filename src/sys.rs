//! System calls and ioctls that `nix` lacks: with its children, the one module with unsafe code.
//!
//! Every function takes a borrowed descriptor and plain values, returns plain values, and leaves nothing behind. The
//! numbers and layouts are those of the kernel's include/uapi.
#![allow(unsafe_code)]

pub mod memory;

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::Result;
use nix::errno::Errno;

/// What statx(2) tells about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// `st_mode`: type and permissions.
    pub mode: u32,
    /// Number of names; 0 once it is deleted.
    pub nlink: u32,
    /// Inode number.
    pub inode: u64,
    /// Device number of the filesystem that it is in.
    pub dev: u64,
    /// Device number of the device that it stands for.
    pub rdev: u64,
    /// When it was made, in nanoseconds since 1970, where the filesystem keeps that.
    pub birth_nanoseconds: Option<i128>,
    /// Id of the mount that the path or descriptor goes through, as in mountinfo (Linux 5.8).
    pub mount_id: Option<u64>,
    /// Whether it is the root of that mount (Linux 5.8).
    pub mount_root: Option<bool>,
}

impl Status {
    /// The `S_IFMT` bits of the mode.
    #[must_use]
    pub fn file_type(&self) -> u32 {
        self.mode & libc::S_IFMT
    }
}

/// statx(2) of the file behind a descriptor, which may be an `O_PATH` one. Triggers no automount, and takes what a
/// network filesystem has cached.
///
/// # Errors
/// That of the system call.
pub fn status(fd: BorrowedFd<'_>) -> Result<Status> {
    statx(fd, c"", libc::AT_EMPTY_PATH)
}

/// statx(2) of a name in a directory, not following a symlink, triggering no automount.
///
/// # Errors
/// That of the system call; EINVAL if the name contains a NUL.
pub fn status_at(dir: BorrowedFd<'_>, name: &Path) -> Result<Status> {
    let name = CString::new(name.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    statx(dir, &name, libc::AT_SYMLINK_NOFOLLOW)
}

fn statx(dir: BorrowedFd<'_>, path: &std::ffi::CStr, flags: libc::c_int) -> Result<Status> {
    let flags = flags | libc::AT_NO_AUTOMOUNT | libc::AT_STATX_DONT_SYNC;
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME | libc::STATX_MNT_ID;
    let mut buffer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is NUL-terminated, the buffer is as large as the kernel's structure, and both outlive the call.
    let result = unsafe { libc::statx(dir.as_raw_fd(), path.as_ptr(), flags, mask, buffer.as_mut_ptr()) };
    Errno::result(result)?;
    // SAFETY: zeroed is a valid value of the structure, whatever the kernel has filled in.
    let stat = unsafe { buffer.assume_init() };
    let has = |bit: u32| stat.stx_mask & bit != 0;
    let mount_root_bit = u64::from(libc::STATX_ATTR_MOUNT_ROOT.unsigned_abs());
    Ok(Status {
        mode: u32::from(stat.stx_mode),
        nlink: stat.stx_nlink,
        inode: stat.stx_ino,
        dev: libc::makedev(stat.stx_dev_major, stat.stx_dev_minor),
        rdev: libc::makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
        birth_nanoseconds: has(libc::STATX_BTIME)
            .then(|| i128::from(stat.stx_btime.tv_sec) * 1_000_000_000 + i128::from(stat.stx_btime.tv_nsec)),
        mount_id: has(libc::STATX_MNT_ID).then_some(stat.stx_mnt_id),
        mount_root: (stat.stx_attributes_mask & mount_root_bit != 0)
            .then_some(stat.stx_attributes & mount_root_bit != 0),
    })
}

/// The id of the mount that a descriptor goes through: by statx, on kernels before 5.8 from /proc/self/fdinfo
/// (proc_pid_fdinfo(5)).
///
/// # Errors
/// That of statx(2); ENODATA where neither way tells it.
pub fn mount_id(fd: BorrowedFd<'_>) -> Result<u64> {
    if let Some(id) = status(fd)?.mount_id {
        return Ok(id);
    }
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).map_err(|_| Errno::ENODATA)?;
    mount_id_of_fdinfo(&info).ok_or(Errno::ENODATA)
}

fn mount_id_of_fdinfo(fdinfo: &str) -> Option<u64> {
    fdinfo
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))?
        .trim()
        .parse()
        .ok()
}

/// What identifies a file within its filesystem for as long as the filesystem exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileHandle {
    /// The filesystem's own tag for the layout of the bytes.
    pub kind: i32,
    /// Inode number and generation, mostly.
    pub bytes: Vec<u8>,
}

/// Larger handles do not exist: MAX_HANDLE_SZ.
const HANDLE_BYTES: usize = 128;

#[repr(C)]
struct RawHandle {
    handle_bytes: u32,
    handle_type: i32,
    f_handle: [u8; HANDLE_BYTES],
}

/// name_to_handle_at(2) of the file behind a descriptor, which may be an `O_PATH` one. Needs no privilege.
///
/// # Errors
/// EOPNOTSUPP where the filesystem has no handles; EPERM or ENOSYS where a seccomp profile forbids the call.
pub fn file_handle(fd: BorrowedFd<'_>) -> Result<FileHandle> {
    const LENGTH: u32 = 128;
    let mut raw = RawHandle {
        handle_bytes: LENGTH,
        handle_type: 0,
        f_handle: [0; HANDLE_BYTES],
    };
    let mut mount_id = 0;
    // SAFETY: the structure is the kernel's with room for as many bytes as it says, the path is NUL-terminated.
    let result = unsafe {
        libc::name_to_handle_at(
            fd.as_raw_fd(),
            c"".as_ptr(),
            (&raw mut raw).cast::<libc::file_handle>(),
            &raw mut mount_id,
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::result(result)?;
    let length = usize::try_from(raw.handle_bytes)
        .unwrap_or(HANDLE_BYTES)
        .min(HANDLE_BYTES);
    Ok(FileHandle {
        kind: raw.handle_type,
        bytes: raw.f_handle.iter().take(length).copied().collect(),
    })
}

/// What statfs(2) tells about a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilesystemStatus {
    /// Size of the whole filesystem.
    pub total_bytes: u64,
    /// Writing through this mount is refused, because the mount or the filesystem is read-only.
    pub read_only: bool,
    /// `f_fsid` as the kernel's 64-bit number. Whether it means anything depends on the type of filesystem.
    pub fsid: u64,
}

/// fstatfs(2) of the filesystem behind a descriptor, which may be an `O_PATH` one.
///
/// # Errors
/// That of the system call.
pub fn filesystem_status(fd: BorrowedFd<'_>) -> Result<FilesystemStatus> {
    let stat = nix::sys::statfs::fstatfs(fd)?;
    // SAFETY: fsid_t is two 32-bit numbers (statfs(2)), which libc keeps private.
    let [low, high] = unsafe { std::mem::transmute::<libc::fsid_t, [u32; 2]>(stat.filesystem_id()) };
    let block_bytes = u64::try_from(stat.block_size()).unwrap_or(0);
    Ok(FilesystemStatus {
        total_bytes: stat.blocks().saturating_mul(block_bytes),
        read_only: stat.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY),
        fsid: u64::from(high) << 32 | u64::from(low),
    })
}

/// 16 bytes as they are stored.
pub type Uuid = [u8; 16];

#[repr(C)]
struct FsUuid2 {
    length: u8,
    uuid: Uuid,
}

#[repr(C)]
struct Ext4FsUuid {
    length: u32,
    flags: u32,
    uuid: Uuid,
}

/// struct btrfs_ioctl_fs_info_args, of which only the UUID is of interest.
#[repr(C)]
struct BtrfsFsInfo {
    max_id: u64,
    num_devices: u64,
    fsid: Uuid,
    rest: [u8; 992],
}

/// struct xfs_fsop_geom_v1, of which only the UUID is of interest.
#[repr(C)]
struct XfsGeometryV1 {
    sizes: [u32; 8],
    counts: [u64; 4],
    uuid: Uuid,
    rest: [u32; 8],
}

/// struct loop_info64.
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// The ioctl number of EXT4_IOC_GETFSUUID, whose structure ends in an array of no length.
const EXT4_IOC_GETFSUUID: libc::c_ulong = nix::request_code_read!(b'f', 44, 8);
/// The block ioctls of old carry no size in their numbers.
const BLKROGET: libc::c_ulong = nix::request_code_none!(0x12, 94);
const BLKSSZGET: libc::c_ulong = nix::request_code_none!(0x12, 104);
const LOOP_GET_STATUS64: libc::c_ulong = 0x4c05;

mod ioctl {
    use super::{
        BLKROGET, BLKSSZGET, BtrfsFsInfo, EXT4_IOC_GETFSUUID, Ext4FsUuid, FsUuid2, LOOP_GET_STATUS64, LoopInfo64,
        XfsGeometryV1,
    };

    nix::ioctl_read!(fs_get_uuid, 0x15, 0, FsUuid2);
    nix::ioctl_read_bad!(ext4_get_uuid, EXT4_IOC_GETFSUUID, Ext4FsUuid);
    nix::ioctl_read!(btrfs_fs_info, 0x94, 31, BtrfsFsInfo);
    nix::ioctl_read!(xfs_geometry_v1, b'X', 100, XfsGeometryV1);
    nix::ioctl_read!(block_size64, 0x12, 114, libc::size_t);
    nix::ioctl_read!(block_diskseq, 0x12, 128, u64);
    // <linux/fs.h>: numbered with _IO although it takes a pointer.
    nix::ioctl_write_ptr_bad!(block_zero_out, nix::request_code_none!(0x12, 127), [u64; 2]);
    nix::ioctl_write_ptr_bad!(block_discard, nix::request_code_none!(0x12, 119), [u64; 2]);
    nix::ioctl_read_bad!(block_read_only, BLKROGET, libc::c_int);
    nix::ioctl_read_bad!(block_logical_size, BLKSSZGET, libc::c_int);
    nix::ioctl_read_bad!(loop_get_status64, LOOP_GET_STATUS64, LoopInfo64);
}

/// Calls an ioctl that fills in a structure.
///
/// # Safety
/// The call must write nothing but a `T`, and zeroed memory must be a valid `T` before and after.
unsafe fn filled<T>(
    fd: BorrowedFd<'_>,
    mut value: T,
    call: unsafe fn(libc::c_int, *mut T) -> Result<libc::c_int>,
) -> Result<T> {
    // SAFETY: the pointer is to a live T, which the caller promised to be what the call writes.
    unsafe { call(fd.as_raw_fd(), &raw mut value) }?;
    Ok(value)
}

/// FS_IOC_GETFSUUID (Linux 6.9): ext4, xfs, tmpfs, f2fs, bcachefs, overlay with a UUID of its own.
///
/// # Errors
/// ENOTTY where the kernel or the filesystem does not answer it.
pub fn filesystem_uuid(fd: BorrowedFd<'_>) -> Result<Uuid> {
    // SAFETY: the structure is the kernel's struct fsuuid2.
    let answer = unsafe {
        filled(
            fd,
            FsUuid2 {
                length: 0,
                uuid: [0; 16],
            },
            ioctl::fs_get_uuid,
        )
    }?;
    // A filesystem may have a shorter one (vfat's volume id), which is too little to identify anything.
    if usize::from(answer.length) == answer.uuid.len() {
        Ok(answer.uuid)
    } else {
        Err(Errno::ENOTTY)
    }
}

/// EXT4_IOC_GETFSUUID (Linux 6.0).
///
/// # Errors
/// ENOTTY where the kernel or the filesystem does not answer it.
pub fn ext4_uuid(fd: BorrowedFd<'_>) -> Result<Uuid> {
    // SAFETY: the structure is struct fsuuid with room for the 16 bytes that its length announces.
    let answer = unsafe {
        filled(
            fd,
            Ext4FsUuid {
                length: 16,
                flags: 0,
                uuid: [0; 16],
            },
            ioctl::ext4_get_uuid,
        )
    }?;
    Ok(answer.uuid)
}

/// BTRFS_IOC_FS_INFO.
///
/// # Errors
/// ENOTTY where the filesystem is no btrfs.
pub fn btrfs_uuid(fd: BorrowedFd<'_>) -> Result<Uuid> {
    let empty = BtrfsFsInfo {
        max_id: 0,
        num_devices: 0,
        fsid: [0; 16],
        rest: [0; 992],
    };
    // SAFETY: the structure has the 1024 bytes of the kernel's.
    Ok(unsafe { filled(fd, empty, ioctl::btrfs_fs_info) }?.fsid)
}

/// XFS_IOC_FSGEOMETRY_V1, which every xfs answers.
///
/// # Errors
/// ENOTTY where the filesystem is no xfs.
pub fn xfs_uuid(fd: BorrowedFd<'_>) -> Result<Uuid> {
    let empty = XfsGeometryV1 {
        sizes: [0; 8],
        counts: [0; 4],
        uuid: [0; 16],
        rest: [0; 8],
    };
    // SAFETY: the structure has the 112 bytes of the kernel's.
    Ok(unsafe { filled(fd, empty, ioctl::xfs_geometry_v1) }?.uuid)
}

/// BLKGETSIZE64: size of a block device in bytes.
///
/// # Errors
/// ENOTTY if it is none.
pub fn block_bytes(fd: BorrowedFd<'_>) -> Result<u64> {
    // SAFETY: BLKGETSIZE64 writes 64 bits, which size_t has on the 64-bit machines that this is built for.
    Ok(unsafe { filled(fd, 0, ioctl::block_size64) }? as u64)
}

/// BLKROGET: whether a block device is read-only.
///
/// # Errors
/// ENOTTY if it is none.
pub fn block_read_only(fd: BorrowedFd<'_>) -> Result<bool> {
    // SAFETY: BLKROGET writes an int.
    Ok(unsafe { filled(fd, 0, ioctl::block_read_only) }? != 0)
}

/// BLKSSZGET: size of a logical block in bytes, to which O_DIRECT transfers are aligned.
///
/// # Errors
/// ENOTTY if it is no block device.
pub fn logical_block_bytes(fd: BorrowedFd<'_>) -> Result<u32> {
    // SAFETY: BLKSSZGET writes an int.
    let bytes = unsafe { filled(fd, 0, ioctl::block_logical_size) }?;
    u32::try_from(bytes).map_err(|_| Errno::ERANGE)
}

/// BLKGETDISKSEQ (Linux 5.15): the sequence number of this attachment of the disk.
///
/// # Errors
/// ENOTTY where the kernel does not know it.
pub fn disk_sequence(fd: BorrowedFd<'_>) -> Result<u64> {
    // SAFETY: BLKGETDISKSEQ writes 64 bits.
    unsafe { filled(fd, 0, ioctl::block_diskseq) }
}

/// What a loop device is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopStatus {
    /// Device number of the filesystem that the backing file is in.
    pub dev: u64,
    /// Inode number of the backing file.
    pub inode: u64,
    /// Device number of the block device that the backing file stands for; 0 if it is a regular file.
    pub rdev: u64,
    /// Where in the backing file the loop device begins.
    pub offset_bytes: u64,
    /// Where it ends at the latest, counted from the offset; 0 if there is no limit.
    pub limit_bytes: u64,
    /// The name that was given for the backing file, cut off after 63 bytes.
    pub file_name: Vec<u8>,
}

/// LOOP_GET_STATUS64 of a loop device or a partition of one; see loop(4).
///
/// # Errors
/// ENXIO if nothing is attached, ENOTTY or EINVAL if it is no loop device.
pub fn loop_status(fd: BorrowedFd<'_>) -> Result<LoopStatus> {
    let empty = LoopInfo64 {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    // SAFETY: the structure is the kernel's struct loop_info64.
    let info = unsafe { filled(fd, empty, ioctl::loop_get_status64) }?;
    Ok(LoopStatus {
        dev: info.device,
        inode: info.inode,
        rdev: info.rdevice,
        offset_bytes: info.offset,
        limit_bytes: info.size_limit,
        file_name: info.file_name.iter().copied().take_while(|&byte| byte != 0).collect(),
    })
}

/// Makes a range of a block device read as zeros without giving the blocks back (BLKZEROOUT). Both ends must be
/// multiples of the logical block.
///
/// # Errors
/// EINVAL for a misaligned or too long range, EIO if the medium refused, ENOTTY if this is no block device.
pub fn zero_out(fd: BorrowedFd<'_>, range: &std::ops::Range<u64>) -> Result<()> {
    let request = [range.start, range.end.saturating_sub(range.start)];
    // SAFETY: the descriptor is open, and the kernel reads two u64 (start, length) from the pointer.
    unsafe { ioctl::block_zero_out(fd.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// Tells a block device that a range is of no use any more (BLKDISCARD). What it reads as afterwards is not defined.
/// Both ends must be multiples of the logical block.
///
/// # Errors
/// EOPNOTSUPP where the device cannot, EINVAL for a misaligned range, EIO if the medium refused, ENOTTY if this is no
/// block device.
pub fn discard(fd: BorrowedFd<'_>, range: &std::ops::Range<u64>) -> Result<()> {
    let request = [range.start, range.end.saturating_sub(range.start)];
    // SAFETY: the descriptor is open, and the kernel reads two u64 (start, length) from the pointer.
    unsafe { ioctl::block_discard(fd.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// 32 bytes from the kernel's random number generator (getrandom(2)), as a seed.
///
/// # Errors
/// ENOSYS where a seccomp profile forbids the call.
pub fn random_seed() -> Result<[u8; 32]> {
    let mut seed = [0; 32];
    // SAFETY: the kernel writes at most as many bytes as the buffer has, and up to 256 at once.
    let written = Errno::result(unsafe { libc::getrandom(seed.as_mut_ptr().cast(), seed.len(), 0) })?;
    if usize::try_from(written) == Ok(seed.len()) {
        Ok(seed)
    } else {
        Err(Errno::EINTR)
    }
}

/// An I/O priority as the kernel keeps it: class and level (ioprio_set(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoPriority(libc::c_int);

impl IoPriority {
    /// IOPRIO_CLASS_IDLE: served when nobody else wants the disk, by schedulers that know priorities (bfq, mq-deadline).
    pub const IDLE: Self = Self(3 << 13);
}

/// IOPRIO_WHO_PROCESS; with 0 it means the calling thread.
const IOPRIO_WHO_PROCESS: libc::c_int = 1;

/// The calling thread's I/O priority.
///
/// # Errors
/// That of ioprio_get(2).
pub fn io_priority() -> Result<IoPriority> {
    // SAFETY: ioprio_get(2) takes two numbers and touches no memory.
    let value = Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) })?;
    libc::c_int::try_from(value).map(IoPriority).map_err(|_| Errno::ERANGE)
}

/// Sets the calling thread's I/O priority, which the processes that it starts inherit.
///
/// # Errors
/// That of ioprio_set(2).
pub fn set_io_priority(priority: IoPriority) -> Result<()> {
    // SAFETY: ioprio_set(2) takes three numbers and touches no memory.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority.0) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_structures_have_the_sizes_of_the_kernel() {
        assert_eq!(size_of::<FsUuid2>(), 17);
        assert_eq!(size_of::<BtrfsFsInfo>(), 1024);
        assert_eq!(size_of::<XfsGeometryV1>(), 112);
        assert_eq!(size_of::<LoopInfo64>(), 232);
    }

    #[test]
    fn statx_agrees_with_stat_and_with_fdinfo() {
        let directory = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(directory.path()).unwrap();
        let status = status(fd.as_fd()).unwrap();
        let stat = nix::sys::stat::fstat(&fd).unwrap();
        assert_eq!(
            (status.dev, status.inode, status.mode),
            (stat.st_dev, stat.st_ino, stat.st_mode)
        );
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
        assert_eq!(mount_id_of_fdinfo(&info), Some(mount_id(fd.as_fd()).unwrap()));
        std::fs::create_dir(directory.path().join("sub")).unwrap();
        let below = status_at(fd.as_fd(), Path::new("sub")).unwrap();
        assert_eq!((below.dev, below.file_type()), (stat.st_dev, libc::S_IFDIR));
        assert_eq!(status_at(fd.as_fd(), Path::new("none")), Err(Errno::ENOENT));
    }

    #[test]
    fn a_deleted_directory_has_no_links() {
        let directory = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(directory.path()).unwrap();
        std::fs::remove_dir(directory.path()).unwrap();
        assert_eq!(status(fd.as_fd()).unwrap().nlink, 0);
    }

    #[test]
    fn the_io_priority_is_of_the_thread() {
        std::thread::spawn(|| {
            let before = io_priority().unwrap();
            assert_ne!(before, IoPriority::IDLE);
            set_io_priority(IoPriority::IDLE).unwrap();
            assert_eq!(io_priority(), Ok(IoPriority::IDLE));
            set_io_priority(before).unwrap();
            assert_eq!(io_priority(), Ok(before));
        })
        .join()
        .unwrap();
        assert_ne!(io_priority(), Ok(IoPriority::IDLE));
    }

    #[test]
    fn seeds_differ() {
        assert_ne!(random_seed().unwrap(), random_seed().unwrap());
    }

    #[test]
    fn ioctls_refuse_what_they_are_not_for() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(block_bytes(file.as_fd()), Err(Errno::ENOTTY));
        assert!(block_read_only(file.as_fd()).is_err());
        assert!(loop_status(file.as_fd()).is_err());
        assert!(disk_sequence(file.as_fd()).is_err());
        assert!(logical_block_bytes(file.as_fd()).is_err());
        assert_eq!(discard(file.as_fd(), &(0..512)), Err(Errno::ENOTTY));
    }
}
