//! Wipes that are interrupted, and go on where they were.

use super::support::{Loop, in_namespace};
use super::{MIB, claim, fill, first_other};
use local_volume_provisioner::config::Cleaner;
use local_volume_provisioner::scrub::ScrubError;
use local_volume_provisioner::scrub::block::{Marks, is_wiped_before, wipe_from};
use local_volume_provisioner::scrub::checkpoint::{Cadence, Position};
use local_volume_provisioner::scrub::limits::Steering;
use local_volume_provisioner::scrub::progress::{Cancel, Progress, Snapshot, Unit};
use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

const AT_ONCE: Cadence = Cadence {
    period: Duration::ZERO,
    bytes: 0,
};

fn place(pass: u32, offset: u64) -> Position {
    Position { pass, offset }
}

/// Wipes from a place; `note` is told how far it is, and stops the wipe by answering false.
fn wiped_from(
    device: &File,
    cleaner: &Cleaner,
    size_bytes: u64,
    from: Position,
    cadence: Cadence,
    note: &dyn Fn(Position) -> bool,
) -> (Result<(), ScrubError>, Snapshot) {
    let (progress, cancel) = (Progress::new(Unit::Bytes, 0), Cancel::new());
    let steering = Steering::new(&progress, &cancel, None);
    let note = |position| {
        if !note(position) {
            cancel.cancel();
        }
    };
    let marks = Marks { cadence, note: &note };
    let result = wipe_from(cleaner, device, size_bytes, &mut || Ok(from), Some(marks), &steering);
    (result, progress.snapshot())
}

/// How many bytes of a file are allocated below an offset.
fn allocated_before(file: &Path, offset: u64) -> u64 {
    use nix::unistd::{Whence, lseek};
    let file = File::open(file).unwrap();
    let offset = i64::try_from(offset).unwrap();
    let (mut at, mut sum) = (0, 0);
    while at < offset {
        let Ok(data) = lseek(&file, at, Whence::SeekData) else {
            break;
        };
        let hole = lseek(&file, data, Whence::SeekHole).unwrap();
        sum += (hole.min(offset) - data.min(offset)).unsigned_abs();
        at = hole;
    }
    sum
}

#[test]
fn what_lies_before_the_place_is_not_wiped_again_and_all_else_is() {
    in_namespace(|dir| {
        let (file, size, at) = (dir.join("disk"), 300 * MIB + 512, 128 * MIB);
        fill(&file, 0xaa, size);
        // Wiped by an earlier try, which wrote zeros: a wipe that comes by here leaves a hole.
        let backing = File::options().write(true).open(&file).unwrap();
        (0..128).for_each(|mib| backing.write_all_at(&[0; 1 << 20], mib * MIB).unwrap());
        let device = Loop::on(&file, &[]);
        let held = claim(&device.path).unwrap().file;
        is_wiped_before(&held, &Cleaner::Zero, place(1, at)).unwrap();
        let (result, progress) = wiped_from(&held, &Cleaner::Zero, size, place(1, at), AT_ONCE, &|_| true);
        result.unwrap();
        assert_eq!((progress.done, progress.inherited), (size, at));
        assert_eq!(progress.total, Some(size));
        assert_eq!(first_other(&file, 0, 0..size), None);
        assert_eq!(allocated_before(&file, at), at, "wiped again");
        assert!(allocated_before(&file, size) < at + MIB, "not wiped by a hole");
    });
}

#[test]
fn a_place_is_noted_when_everything_before_it_is_wiped() {
    in_namespace(|dir| {
        let file = dir.join("disk");
        for (cleaner, passes, size) in [
            (Cleaner::Zero, 1, 200 * MIB + 512),
            (Cleaner::Discard, 2, 200 * MIB + 512),
            (Cleaner::Shred { passes: 2 }, 3, 65 * MIB),
        ] {
            fill(&file, 0xaa, size);
            let device = Loop::on(&file, &[]);
            let held = claim(&device.path).unwrap().file;
            let noted = RefCell::new(vec![Position::START]);
            let note = |position: Position| {
                assert!(*noted.borrow().last().unwrap() < position, "{cleaner}: {position:?}");
                assert!(
                    position.offset.is_multiple_of(64 << 10) && position.offset < size,
                    "{position:?}"
                );
                let is_zeros = position.pass == passes || cleaner == Cleaner::Discard;
                if is_zeros {
                    assert_eq!(first_other(&file, 0, 0..position.offset), None, "{cleaner}");
                }
                if position.pass == 1 {
                    assert_eq!(first_other(&file, 0xaa, position.offset..size), None, "{cleaner}");
                }
                noted.borrow_mut().push(position);
                true
            };
            wiped_from(&held, &cleaner, size, Position::START, AT_ONCE, &note)
                .0
                .unwrap();
            let noted = noted.into_inner();
            for pass in 1..=passes {
                assert!(
                    noted
                        .iter()
                        .any(|position| position.pass == pass && position.offset > 0),
                    "{cleaner}: {noted:?}"
                );
            }
        }
    });
}

#[test]
fn places_are_noted_no_oftener_than_both_time_and_bytes_have_passed() {
    in_namespace(|dir| {
        let (file, size) = (dir.join("disk"), 1024 * MIB);
        let device = Loop::new(&file, size, &[]);
        let held = claim(&device.path).unwrap().file;
        let noted = |period, bytes| {
            let noted = RefCell::new(Vec::new());
            let note = |position: Position| {
                noted.borrow_mut().push(position.offset);
                true
            };
            let cadence = Cadence { period, bytes };
            wiped_from(&held, &Cleaner::Zero, size, Position::START, cadence, &note)
                .0
                .unwrap();
            noted.into_inner()
        };
        assert_eq!(noted(Duration::ZERO, 256 * MIB), [256 * MIB, 512 * MIB, 768 * MIB]);
        assert_eq!(noted(Duration::from_secs(3600), 0), Vec::<u64>::new());
        assert_eq!(noted(Duration::ZERO, size), Vec::<u64>::new());
    });
}

#[test]
fn a_wipe_that_is_interrupted_again_and_again_covers_everything() {
    in_namespace(|dir| {
        let file = dir.join("disk");
        for (cleaner, passes, size) in [
            (Cleaner::Zero, 1, 200 * MIB + 512),
            (Cleaner::Discard, 2, 200 * MIB + 512),
            (Cleaner::Shred { passes: 1 }, 2, 65 * MIB),
        ] {
            fill(&file, 0xaa, size);
            let device = Loop::on(&file, &[]);
            let held = claim(&device.path).unwrap().file;
            let mut from = Position::START;
            let mut tries = 0;
            loop {
                tries += 1;
                assert!(tries < 1000, "it does not get on");
                is_wiped_before(&held, &cleaner, from).unwrap();
                let noted = RefCell::new(from);
                let note = |position| {
                    *noted.borrow_mut() = position;
                    false
                };
                let (result, progress) = wiped_from(&held, &cleaner, size, from, AT_ONCE, &note);
                match result {
                    Ok(()) => {
                        assert_eq!(Some(progress.done), progress.total, "{cleaner}");
                        assert_eq!(progress.inherited, from.done_bytes(size));
                        break;
                    }
                    Err(error) => assert!(matches!(error, ScrubError::Cancelled), "{cleaner}: {error}"),
                }
                from = noted.into_inner();
            }
            assert!(tries > 2 * passes, "{cleaner} was interrupted {tries} times only");
            assert_eq!(first_other(&file, 0, 0..size), None, "{cleaner}");
        }
    });
}

#[test]
fn data_in_what_would_be_skipped_is_found_before_the_wipe_goes_on_and_at_its_end() {
    in_namespace(|dir| {
        let (file, size, at) = (dir.join("disk"), 1024 * MIB, 768 * MIB);
        let device = Loop::new(&file, size, &[]);
        let held = claim(&device.path).unwrap().file;
        let last = place(1, at);
        is_wiped_before(&held, &Cleaner::Zero, last).unwrap();
        // At its start, where a copy of a superblock lies, and anywhere in its last part.
        for offset in [0, 128 * MIB, at - 64 * MIB, at - 33 * MIB + 5, at - 1] {
            held.write_all_at(&[1], offset).unwrap(); // not flushed
            let error = is_wiped_before(&held, &Cleaner::Zero, last).unwrap_err();
            assert!(error.to_string().ends_with(&format!("at offset {offset}")), "{error}");
            // Only zeros can be looked for.
            is_wiped_before(&held, &Cleaner::Shred { passes: 1 }, last).unwrap();
            is_wiped_before(&held, &Cleaner::Shred { passes: 1 }, place(2, at)).unwrap_err();
            is_wiped_before(&held, &Cleaner::Discard, place(2, at)).unwrap_err();
            held.write_all_at(&[0], offset).unwrap();
        }
        // What lies behind is none of it.
        held.write_all_at(&[1], at).unwrap();
        is_wiped_before(&held, &Cleaner::Zero, last).unwrap();
        // A file of 8 MiB in the middle.
        (300..308).for_each(|mib| held.write_all_at(&[1; 1 << 20], mib * MIB).unwrap());
        is_wiped_before(&held, &Cleaner::Zero, last).unwrap_err();
        held.write_all_at(&[1; 1 << 20], 0).unwrap();
        let (result, _) = wiped_from(&held, &Cleaner::Zero, size, last, AT_ONCE, &|_| true);
        let error = result.unwrap_err();
        assert!(
            error.to_string().contains("did not reach the medium at offset 0"),
            "{error}"
        );
    });
}
