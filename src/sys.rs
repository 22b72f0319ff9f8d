//! The ioctls that neither nix nor rustix offers as safe functions.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

mod raw {
    // linux/fs.h. BLKROGET and BLKZEROOUT are numbered with _IO although they take a pointer.
    nix::ioctl_read_bad!(blkroget, nix::request_code_none!(0x12, 94), libc::c_int);
    nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
    nix::ioctl_write_ptr_bad!(blkzeroout, nix::request_code_none!(0x12, 127), [u64; 2]);
}

/// Whether a block device is read-only (BLKROGET).
///
/// # Errors
///
/// What the ioctl answers: ENOTTY if this is no block device.
pub fn device_is_read_only(device: &File) -> io::Result<bool> {
    let mut read_only: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the kernel writes one int to the pointer.
    unsafe { raw::blkroget(device.as_raw_fd(), &raw mut read_only) }?;
    Ok(read_only != 0)
}

/// The size of a block device in bytes (BLKGETSIZE64).
///
/// # Errors
///
/// What the ioctl answers: ENOTTY if this is no block device.
pub fn device_size_bytes(device: &File) -> io::Result<u64> {
    let mut size_bytes: u64 = 0;
    // SAFETY: the descriptor is open, and the kernel writes one u64 to the pointer (a size_t in the header's number,
    // which is the same on the 64-bit machines that this is built for).
    unsafe { raw::blkgetsize64(device.as_raw_fd(), &raw mut size_bytes) }?;
    Ok(size_bytes)
}

/// Makes the bytes of the range read as zeros without giving the blocks back (BLKZEROOUT); both ends must be multiples
/// of the logical block.
///
/// # Errors
///
/// What the ioctl answers: EINVAL for a misaligned or too long range, EIO if the medium refused.
pub fn zero_out(device: &File, range: &Range<u64>) -> io::Result<()> {
    let request = [range.start, range.end.saturating_sub(range.start)];
    // SAFETY: the descriptor is open, and the kernel reads two u64 (start, length) from the pointer.
    unsafe { raw::blkzeroout(device.as_raw_fd(), &raw const request) }?;
    Ok(())
}
