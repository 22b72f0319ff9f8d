#![allow(clippy::unwrap_used)]

use super::*;

const GIB: u64 = 1 << 30;

fn id(parts: &[(&'static str, &str)]) -> VolumeId {
    parts
        .iter()
        .fold(VolumeId::new(IdKind::Device), |id, (key, value)| id.with(key, *value))
}

/// A disk that tells what it is.
fn disk(boot: &str, diskseq: &str) -> VolumeId {
    id(&[(part::BOOT, boot), (part::WWN, "0x5000"), (part::DISKSEQ, diskseq)])
}

fn wipe() -> Wipe {
    Wipe {
        method: Cleaner::Shred { passes: 2 },
        command: vec!["shred".into(), "2".into()],
        size_bytes: 10 * GIB + 512,
        volume: disk("boot-1", "7"),
        pv_uid: "pv-1".into(),
        claim_uid: "claim-1".into(),
    }
}

fn noted(wipe: &Wipe, pass: u32, offset: u64) -> String {
    let position = Position { pass, offset };
    let wipe = wipe.clone();
    Checkpoint { wipe, position }.to_string()
}

#[test]
fn what_is_written_is_read_again() {
    for (pass, offset) in [(1, ALIGN_BYTES), (2, 4 * GIB), (3, 10 * GIB)] {
        let text = noted(&wipe(), pass, offset);
        assert_eq!(wipe().resume(&text), Ok(Position { pass, offset }), "{text}");
    }
    let text = noted(&wipe(), 2, 4 * GIB);
    let expected = serde_json::json!({"method": "shred 2", "command": ["shred", "2"], "pass": 2, "offset": 4 * GIB,
        "size": 10 * GIB + 512, "volume": "device boot=boot-1 diskseq=7 wwn=0x5000", "pv": "pv-1", "claim": "claim-1"});
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), expected);
}

#[test]
fn a_checkpoint_of_anything_else_does_not_count() {
    let text = noted(&wipe(), 2, 4 * GIB);
    type Change = fn(&mut Wipe);
    let changes: [(&str, Change); 9] = [
        ("another PersistentVolume", |wipe| wipe.pv_uid = "pv-2".into()),
        ("an earlier release", |wipe| wipe.claim_uid = "claim-2".into()),
        ("another cleaner", |wipe| wipe.method = Cleaner::Zero),
        ("another cleaner", |wipe| wipe.method = Cleaner::Shred { passes: 3 }),
        ("another cleaner", |wipe| {
            wipe.command = vec!["/scripts/shred.sh".into(), "2".into()];
        }),
        ("another size", |wipe| wipe.size_bytes += 512),
        ("another device", |wipe| wipe.volume = disk("boot-1", "8")),
        ("another device", |wipe| {
            wipe.volume = wipe.volume.clone().with(part::WWN, "0x5001");
        }),
        ("another device", |wipe| {
            wipe.volume = wipe.volume.clone().with(part::PARTITION, "1");
        }),
    ];
    for (why, change) in changes {
        let mut other = wipe();
        change(&mut other);
        let error = other.resume(&text).unwrap_err();
        assert!(error.contains(why), "{error} is not {why}");
    }
}

#[test]
fn a_release_without_a_claim_is_none() {
    let nobodys = Wipe {
        claim_uid: String::new(),
        ..wipe()
    };
    nobodys.resume(&noted(&nobodys, 1, GIB)).unwrap_err();
}

#[test]
fn attachments_are_compared_within_a_boot_and_hardware_across_boots() {
    let resumes = |before: &VolumeId, now: &VolumeId| {
        let with = |volume: &VolumeId| Wipe {
            volume: volume.clone(),
            ..wipe()
        };
        with(now).resume(&noted(&with(before), 1, GIB)).is_ok()
    };
    let on = |boot, key, value, diskseq| {
        let parts = [(part::BOOT, boot), (key, value), (part::DISKSEQ, diskseq)];
        id(&parts)
    };
    for key in [part::WWN, part::SERIAL] {
        assert!(resumes(&on("a", key, "1", "7"), &on("a", key, "1", "7")), "{key}");
        assert!(!resumes(&on("a", key, "1", "7"), &on("a", key, "1", "9")), "{key}");
        assert!(resumes(&on("a", key, "1", "7"), &on("b", key, "1", "9")), "{key}");
        assert!(!resumes(&on("a", key, "1", "7"), &on("b", key, "2", "7")), "{key}");
    }
    for key in [part::BUS, part::DM, part::MD, part::LOOP_INODE, part::PARTUUID] {
        assert!(resumes(&on("a", key, "1", "7"), &on("a", key, "1", "7")), "{key}");
        assert!(!resumes(&on("a", key, "1", "7"), &on("a", key, "1", "9")), "{key}");
        // Another disk in the slot, an array of the other half of a mirror, a new file of that name.
        assert!(!resumes(&on("a", key, "1", "7"), &on("b", key, "1", "7")), "{key}");
        // The boot is not known.
        assert!(!resumes(&on("", key, "1", "7"), &on("", key, "1", "7")), "{key}");
    }
    // An older kernel.
    let old = |key| id(&[(part::BOOT, "a"), (key, "1")]);
    assert!(resumes(&old(part::WWN), &old(part::WWN)));
    assert!(!resumes(&old(part::BUS), &old(part::BUS)));
    let ram = VolumeId::new(IdKind::Volatile)
        .with(part::BOOT, "a")
        .with(part::RAM, "ram0")
        .with(part::DISKSEQ, "7");
    assert!(!resumes(&ram, &ram));
}

#[test]
fn places_that_do_not_exist_are_not_gone_to() {
    let size = wipe().size_bytes;
    for (pass, offset) in [(0, GIB), (4, 0), (u32::MAX, GIB), (1, size), (1, u64::MAX), (3, 512)] {
        let error = wipe().resume(&noted(&wipe(), pass, offset)).unwrap_err();
        assert!(error.contains("no such place"), "{pass} {offset}: {error}");
    }
    // Methods that keep no place.
    for method in [Cleaner::Quick, Cleaner::Command(vec!["mkfs".into()])] {
        let wipe = Wipe { method, ..wipe() };
        wipe.resume(&noted(&wipe, 1, GIB)).unwrap_err();
    }
}

#[test]
fn what_cannot_be_understood_does_not_count() {
    let good = noted(&wipe(), 1, GIB);
    let newer = good.replace('}', ",\"skipped\":[]}");
    let partial = good.replace("\"size\"", "\"length\"");
    let no_id = good.replace("device boot", "thing boot");
    let negative = good.replace("\"pass\":1", "\"pass\":-1");
    for text in ["", "{}", "5", &newer, &partial, &no_id, &negative] {
        wipe().resume(text).unwrap_err();
    }
}

#[test]
fn whatever_may_have_come_to_the_device_ends_its_checkpoint() {
    for state in [
        State::Released,
        State::Scrubbing(None),
        State::Unresponsive("open".into()),
        State::Held(Held::Unreadable("EIO".into())),
    ] {
        assert!(outlives(&state), "{state:?}");
    }
    for state in [
        State::Available,
        State::Bound,
        State::Vanished("gone".into()),
        State::Held(Held::InUse("mounted".into())),
        State::Held(Held::NotMounted("the entry is gone".into())),
        State::Held(Held::JobRunning("cleanup".into())),
        State::Held(Held::RetainDeleting),
        State::Held(Held::WrongStorage {
            expected: "a".into(),
            found: "b".into(),
        }),
        State::Held(Held::ScrubFailed {
            error: "EIO".into(),
            failures: 1,
        }),
    ] {
        assert!(!outlives(&state), "{state:?}");
    }
}

#[test]
fn only_the_newest_note_is_taken() {
    let notes = Notes::new(Arc::default());
    assert_eq!(notes.take(), None);
    for offset in [GIB, 2 * GIB] {
        let position = Position { pass: 1, offset };
        notes.clone().put(Checkpoint { wipe: wipe(), position });
    }
    assert_eq!(notes.take().unwrap().position.offset, 2 * GIB);
    assert_eq!(notes.take(), None);
}
