#![allow(clippy::unwrap_used)]

use super::super::{AlignedBuffer, PAGE_BYTES};
use super::*;
use crate::scrub::progress::{Cancel, Progress, Unit};
use rustix::fs::OFlags;
use std::path::Path;

/// A chunk that was written, and how.
type Done = (Method, Range<u64>);

fn os(error: Errno) -> io::Error {
    error.into()
}

/// Wipes with an attempt that answers as told, and returns what was tried and what was done.
fn run(
    range: Range<u64>,
    answer: impl Fn(Method, &Range<u64>) -> Result<(), Errno>,
) -> (Vec<Done>, Result<(), ScrubError>, u64) {
    let progress = Progress::new(Unit::Bytes, 0);
    let mut done = Vec::new();
    let cancel = Cancel::new();
    let steering = Steering::new(&progress, &cancel, None);
    let mut at = range.start;
    let mut attempt = |method, chunk: &Range<u64>| {
        answer(method, chunk).map_err(os)?;
        done.push((method, chunk.clone()));
        Ok(())
    };
    let result = step_through(range, &steering, &mut attempt, &mut |reached| {
        assert!(reached > at, "{reached} was reached before");
        at = reached;
        Ok(())
    });
    assert_eq!(at, done.last().map_or(at, |(_, chunk)| chunk.end));
    let counted = progress.snapshot().done;
    (done, result, counted)
}

/// The chunks follow each other without a gap and cover the range.
fn assert_covers(done: &[Done], range: Range<u64>) {
    let mut at = range.start;
    for (_, chunk) in done {
        assert_eq!(chunk.start, at);
        at = chunk.end;
    }
    assert_eq!(at, range.end);
}

#[test]
fn chunks_end_at_multiples_and_cover_the_range() {
    let range = 3 * MIB + 512..200 * MIB + 1024;
    let (done, result, counted) = run(range.clone(), |_, _| Ok(()));
    result.unwrap();
    assert_covers(&done, range.clone());
    assert_eq!(counted, range.end - range.start);
    assert_eq!(done[0].1.end, 64 * MIB);
    assert!(
        done.iter()
            .all(|(method, chunk)| *method == Method::PunchHole && chunk.end - chunk.start <= 64 * MIB)
    );
    let (done, result, _) = run(512..512, |_, _| Err(Errno::IO));
    result.unwrap();
    assert!(done.is_empty());
}

#[test]
fn what_a_device_does_not_know_is_not_tried_again() {
    let tried = std::cell::RefCell::new(Vec::new());
    let (done, result, _) = run(0..200 * MIB, |method, _| {
        tried.borrow_mut().push(method);
        if method == Method::DirectWrite {
            Ok(())
        } else {
            Err(Errno::OPNOTSUPP)
        }
    });
    result.unwrap();
    assert_covers(&done, 0..200 * MIB);
    let commands = tried
        .borrow()
        .iter()
        .filter(|method| **method != Method::DirectWrite)
        .count();
    assert_eq!(commands, 2);
    assert!(done.iter().all(|(_, chunk)| chunk.end - chunk.start <= 4 * MIB));
}

#[test]
fn an_input_output_error_costs_the_chunk_only() {
    let bad = 64 * MIB..128 * MIB;
    let (done, result, counted) = run(0..256 * MIB, |method, chunk| {
        if method != Method::DirectWrite && *chunk == bad {
            Err(Errno::IO)
        } else {
            Ok(())
        }
    });
    result.unwrap();
    assert_covers(&done, 0..256 * MIB);
    assert_eq!(counted, 256 * MIB);
    for (method, chunk) in &done {
        let expected = if bad.contains(&chunk.start) {
            Method::DirectWrite
        } else {
            Method::PunchHole
        };
        assert_eq!(*method, expected, "{chunk:?}");
    }
}

#[test]
fn an_error_within_a_detour_does_not_end_the_better_method() {
    // The first chunk fails, and the device does not know BLKZEROOUT: the second is punched all the same.
    let (done, result, _) = run(0..128 * MIB, |method, chunk| match method {
        Method::PunchHole if chunk.start == 0 => Err(Errno::IO),
        Method::ZeroOut => Err(Errno::OPNOTSUPP),
        _ => Ok(()),
    });
    result.unwrap();
    assert_covers(&done, 0..128 * MIB);
    assert_eq!(done.last().unwrap(), &(Method::PunchHole, 64 * MIB..128 * MIB));
    assert_eq!(done.len(), 17);
}

#[test]
fn what_no_method_can_write_is_a_failure_with_its_offset() {
    let (done, result, _) = run(0..128 * MIB, |_, chunk| {
        if chunk.contains(&(70 * MIB)) {
            Err(Errno::IO)
        } else {
            Ok(())
        }
    });
    let error = result.unwrap_err();
    assert!(error.to_string().contains(&format!("offset {}", 68 * MIB)), "{error}");
    assert_covers(&done, 0..68 * MIB);
    let (_, result, _) = run(0..MIB, |_, _| Err(Errno::NOSPC));
    assert!(matches!(result, Err(ScrubError::Failed(_))));
}

#[test]
fn the_buffer_is_aligned_and_zero() {
    let buffer = AlignedBuffer::new(12_345);
    assert_eq!(buffer.bytes().len(), 12_345);
    assert_eq!(buffer.bytes().as_ptr().align_offset(PAGE_BYTES), 0);
    assert!(buffer.bytes().iter().all(|byte| *byte == 0));
}

/// Each method alone on a real device.
#[test]
fn every_method_writes_zeros() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: needs root for a loop device");
        return;
    }
    struct Loop(String);
    impl Drop for Loop {
        fn drop(&mut self) {
            std::process::Command::new("losetup")
                .args(["-d", &self.0])
                .status()
                .ok();
        }
    }
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("disk");
    for method in [Method::PunchHole, Method::ZeroOut, Method::DirectWrite] {
        std::fs::write(&file, vec![0xaa; 6 * 1024 * 1024]).unwrap();
        let output = std::process::Command::new("losetup")
            .args(["-f", "--show"])
            .arg(&file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let device = Loop(String::from_utf8(output.stdout).unwrap().trim().to_owned());
        let held = crate::devices::claim_exclusive(Path::new(&device.0)).unwrap().file;
        let range = 4096..5 * MIB + 512;
        if let Err(error) = apply(method, &held, &range, &mut None) {
            assert_eq!(method, Method::PunchHole, "{error}");
            println!("SKIPPED: {method:?} is not supported on this loop device: {error}");
            continue;
        }
        rustix::fs::fsync(&held).unwrap();
        assert!(!rustix::fs::fcntl_getfl(&held).unwrap().contains(OFlags::DIRECT));
        let bytes = std::fs::read(&file).unwrap();
        for (index, byte) in bytes.iter().enumerate() {
            let expected = if range.contains(&(index as u64)) { 0 } else { 0xaa };
            assert_eq!(*byte, expected, "{method:?} at {index}");
        }
    }
}
