#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn id(text: &str) -> VolumeId {
    text.parse().unwrap()
}

#[test]
fn it_reads_well() {
    let volume = VolumeId::new(IdKind::Filesystem)
        .with(part::UUID, "0b3cdb27-5a2f-4a7e-9e4e-1f2d3c4b5a69")
        .with(part::SUBTREE, "/data/für % a=b\n");
    assert_eq!(
        volume.to_string(),
        "filesystem subtree=/data/f%C3%BCr%20%25%20a=b%0A uuid=0b3cdb27-5a2f-4a7e-9e4e-1f2d3c4b5a69"
    );
}

#[test]
fn what_is_no_id_is_refused_with_the_reason() {
    for (text, reason) in [
        ("", "first word"),
        ("disk wwn=1", "first word"),
        ("Device wwn=1", "first word"),
        ("device wwn", "lacks the ="),
        ("device =1", "key is malformed"),
        ("device wwn=%4", "value is malformed"),
        ("device wwn=%zz", "value is malformed"),
        ("device wwn=%FF", "value is malformed"),
        ("device wwn=1 wwn=1", "twice"),
    ] {
        let error = text.parse::<VolumeId>().unwrap_err().to_string();
        assert!(
            error.contains(reason) && error.contains(&format!("{text:?}")),
            "{text}: {error}"
        );
    }
}

#[test]
fn the_same_storage_and_other_storage() {
    use Comparison::{Different, LostWithReboot, Same};
    let cases = [
        // noted, now, expected
        ("filesystem uuid=a", "filesystem uuid=a", Same),
        ("filesystem uuid=a", "filesystem uuid=b", Different),
        ("filesystem uuid=a", "filesystem", Different),
        ("filesystem", "filesystem", Different),
        ("device boot=1 diskseq=4", "device boot=1 diskseq=4", Different),
        ("filesystem uuid=a", "device uuid=a", Different),
        ("filesystem uuid=a", "volatile uuid=a boot=1", Different),
        // A cloned disk; a WWN that nobody could tell at first; one that nobody can tell any more.
        ("filesystem uuid=a wwn=1", "filesystem uuid=a wwn=2", Different),
        ("filesystem uuid=a", "filesystem uuid=a wwn=2", Same),
        ("filesystem uuid=a wwn=1", "filesystem uuid=a", Different),
        ("filesystem uuid=a wwn=1", "filesystem uuid=a serial=1", Different),
        // Bind mounts.
        ("filesystem uuid=a", "filesystem uuid=a subtree=/x handle=1", Different),
        ("filesystem uuid=a subtree=/x handle=1", "filesystem uuid=a", Different),
        (
            "filesystem uuid=a subtree=/x handle=1",
            "filesystem uuid=a subtree=/y handle=1",
            Different,
        ),
        (
            "filesystem uuid=a subtree=/x handle=1",
            "filesystem uuid=a subtree=/x handle=2",
            Different,
        ),
        (
            "filesystem uuid=a subtree=/x handle=1 inode=5 btime=6",
            "filesystem uuid=a subtree=/x handle=1 inode=7",
            Same,
        ),
        (
            "filesystem uuid=a subtree=/x handle=1 inode=5 btime=6",
            "filesystem uuid=a subtree=/x inode=5 btime=6",
            Same,
        ),
        (
            "filesystem uuid=a subtree=/x inode=5 btime=6",
            "filesystem uuid=a subtree=/x handle=1 inode=5 btime=6",
            Same,
        ),
        (
            "filesystem uuid=a subtree=/x handle=1 inode=5 btime=6",
            "filesystem uuid=a subtree=/x inode=5 btime=7",
            Different,
        ),
        (
            "filesystem uuid=a subtree=/x handle=1 inode=5 btime=6",
            "filesystem uuid=a subtree=/x inode=5",
            Different,
        ),
        (
            "filesystem uuid=a subtree=/x handle=1",
            "filesystem uuid=a subtree=/x",
            Different,
        ),
        (
            "filesystem uuid=a subtree=/x handle=1 inode=5",
            "filesystem uuid=a subtree=/x inode=5",
            Different,
        ),
        // Volatile storage.
        ("volatile uuid=a boot=1", "volatile uuid=a boot=1", Same),
        ("volatile uuid=a boot=1", "volatile uuid=b boot=1", Different),
        ("volatile uuid=a boot=1", "volatile uuid=b boot=2", LostWithReboot),
        ("volatile uuid=a boot=1", "volatile uuid=a boot=2", LostWithReboot),
        ("volatile uuid=a boot=1", "filesystem uuid=b boot=2", LostWithReboot),
        ("volatile uuid=a boot=1", "device wwn=b boot=2", LostWithReboot),
        ("volatile uuid=a boot=1", "filesystem uuid=b boot=1", Different),
        ("volatile uuid=a boot=1", "filesystem uuid=b", Different),
        ("filesystem uuid=a boot=1", "filesystem uuid=a boot=2", Same),
        // Disks.
        ("device wwn=a boot=1 diskseq=3", "device wwn=a boot=1 diskseq=3", Same),
        (
            // Plugged in again.
            "device wwn=a boot=1 diskseq=3",
            "device wwn=a boot=1 diskseq=4",
            Same,
        ),
        (
            // Only the slot is known.
            "device bus=a boot=1 diskseq=3",
            "device bus=a boot=1 diskseq=4",
            Different,
        ),
        ("device wwn=a boot=1 diskseq=3", "device wwn=a boot=2 diskseq=4", Same),
        (
            "device wwn=a boot=1 diskseq=3",
            "device wwn=b boot=2 diskseq=3",
            Different,
        ),
        ("device wwn=a boot=1", "device wwn=a boot=1 diskseq=4", Same),
        ("device bus=a", "device serial=s bus=a", Same),
        ("device serial=s", "device bus=a", Different),
        // Partitions.
        ("device wwn=a", "device wwn=a partition=1 start=2048", Different),
        ("device wwn=a partition=1 start=2048", "device wwn=a", Different),
        (
            "device wwn=a partition=1 start=2048",
            "device wwn=a partition=1 start=4096",
            Different,
        ),
        (
            "device wwn=a partition=1 start=2048 partuuid=p",
            "device wwn=a partition=1 start=2048",
            Same,
        ),
        (
            "device wwn=a partition=1 start=2048 partuuid=p",
            "device wwn=a partition=1 start=2048 partuuid=q",
            Different,
        ),
        // Device mapper and md.
        ("device dm=LVM-x", "device dm=LVM-x", Same),
        ("device dm=LVM-x", "device dm=LVM-y", Different),
        ("device md=x", "device md=y", Different),
        ("device md=x", "device dm=x", Different),
        // Loop devices.
        (
            "device loop-inode=1 loop-device=8:1 loop-path=/a loop-offset=0 boot=1",
            "device loop-inode=1 loop-device=8:1 loop-path=/b loop-offset=0 boot=1",
            Same,
        ),
        (
            "device loop-inode=1 loop-device=8:1 loop-path=/a loop-offset=0 boot=1",
            "device loop-inode=1 loop-device=8:2 loop-path=/a loop-offset=0 boot=1",
            Different,
        ),
        (
            "device loop-inode=1 loop-device=8:1 loop-path=/a loop-offset=0 boot=1",
            "device loop-inode=1 loop-device=8:2 loop-path=/a loop-offset=0 boot=2",
            Same,
        ),
        (
            "device loop-inode=1 loop-device=8:1 loop-path=/a loop-offset=0 boot=1",
            "device loop-inode=1 loop-device=8:2 loop-path=/b loop-offset=0 boot=2",
            Different,
        ),
        (
            "device loop-inode=1 loop-device=8:1 loop-path=/a loop-offset=0 boot=1",
            "device loop-inode=2 loop-device=8:1 loop-path=/a loop-offset=0 boot=2",
            Different,
        ),
        (
            "device loop-inode=1 loop-device=8:1 loop-path=/a loop-offset=0 boot=1",
            "device loop-inode=1 loop-device=8:1 loop-path=/a loop-offset=512 boot=1",
            Different,
        ),
        // Something that a later release may note.
        ("filesystem uuid=a future=1", "filesystem uuid=a", Different),
        ("filesystem uuid=a", "filesystem uuid=a future=1", Different),
    ];
    for (noted, now, expected) in cases {
        assert_eq!(id(noted).compare(&id(now)), expected, "noted {noted}, now {now}");
    }
}

#[test]
fn an_fsid_stands_for_its_uuid() {
    let uuid = "00112233-4455-6677-8899-aabbccddeeff";
    let fsid = fsid_text(fsid_of_uuid(uuid).unwrap());
    assert_eq!(fsid, "8888888888888888");
    let by_uuid = id(&format!("filesystem uuid={uuid}"));
    let by_fsid = id(&format!("filesystem fsid={fsid}"));
    let other = id("filesystem fsid=8888888888888889");
    assert_eq!(by_fsid.compare(&by_uuid), Comparison::Same);
    assert_eq!(by_uuid.compare(&by_fsid), Comparison::Same);
    assert_eq!(by_fsid.compare(&by_fsid.clone()), Comparison::Same);
    assert_eq!(other.compare(&by_uuid), Comparison::Different);
    assert_eq!(by_uuid.compare(&other), Comparison::Different);
    assert_eq!(other.compare(&by_fsid), Comparison::Different);
    assert_eq!(fsid_of_uuid("0011"), None);
}

#[test]
fn only_volatile_storage_is_lost_with_a_reboot() {
    assert!(id("volatile boot=1 uuid=a").lost_with_reboot("2"));
    assert!(!id("volatile boot=1 uuid=a").lost_with_reboot("1"));
    assert!(!id("device boot=1 wwn=a").lost_with_reboot("2"));
    assert!(!id("volatile uuid=a").lost_with_reboot("2"));
}

fn any_id() -> impl Strategy<Value = VolumeId> {
    let kind = prop_oneof![Just(IdKind::Filesystem), Just(IdKind::Volatile), Just(IdKind::Device)];
    (
        kind,
        proptest::collection::btree_map("\\PC{1,8}|[a-z=% -]{1,8}", any::<String>(), 0..5),
    )
        .prop_map(|(kind, parts)| {
            let parts = parts
                .into_iter()
                .map(|(key, value)| (key.into(), value.into()))
                .collect();
            let parts = std::sync::Arc::new(parts);
            VolumeId { kind, parts }
        })
}

/// Ids of few parts with few values, so that many overlap.
fn alike() -> impl Strategy<Value = VolumeId> {
    use part::{BOOT, BTIME, DISKSEQ, FSID, HANDLE, INODE, LOOP_INODE, PARTITION, SERIAL, START, SUBTREE, UUID, WWN};
    const ID: &str = "12345678-1234-1234-1234-123456789abc";
    let derived = fsid_text(fsid_of_uuid(ID).unwrap());
    let of = |key: &'static str, values: &[&str]| {
        let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        let one = proptest::sample::select(values);
        proptest::option::weighted(0.3, one.prop_map(move |value| (key, value)))
    };
    let kind = prop_oneof![3 => Just(IdKind::Filesystem), 1 => Just(IdKind::Volatile), 2 => Just(IdKind::Device)];
    let names = (
        of(UUID, &[ID, "odd"]),
        of(FSID, &[&derived, "1"]),
        of(WWN, &["1", "2"]),
        of(SERIAL, &["1"]),
    );
    let directory = (
        of(SUBTREE, &["/", "/a", "/a/b", "/ab"]),
        of(HANDLE, &["1", "2"]),
        of(INODE, &["1"]),
        of(BTIME, &["1"]),
    );
    let device = (
        of(PARTITION, &["1", "2"]),
        of(START, &["1"]),
        of(LOOP_INODE, &["1"]),
        of(DISKSEQ, &["1"]),
        of(BOOT, &["1"]),
    );
    (kind, names, directory, device).prop_map(|(kind, (a, b, c, d), (e, f, g, h), (i, j, k, l, m))| {
        let parts = [a, b, c, d, e, f, g, h, i, j, k, l, m].into_iter().flatten();
        parts.fold(VolumeId::new(kind), |id, (key, value)| id.with(key, value))
    })
}

/// An id, and what becomes of it where some parts go and others come.
fn pair() -> impl Strategy<Value = (VolumeId, VolumeId)> {
    let stays = proptest::collection::vec(proptest::bool::weighted(0.85), 13);
    let comes = proptest::collection::vec(proptest::bool::weighted(0.2), 13);
    (alike(), alike(), stays, comes).prop_map(|(one, new, stays, comes)| {
        let pick = |id: &VolumeId, picks: &[bool]| {
            let parts = id.parts.iter().zip(picks).filter(|(_, picked)| **picked);
            parts
                .map(|((key, value), _)| (key.clone(), value.clone()))
                .collect::<Vec<_>>()
        };
        let mut other = VolumeId::new(one.kind);
        let parts = std::sync::Arc::make_mut(&mut other.parts);
        parts.extend(pick(&one, &stays));
        parts.extend(pick(&new, &comes));
        (one, other)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_overlaps_is_found_by_a_key_and_a_directory((one, other) in pair()) {
        if one.overlaps(&other) {
            let others: Vec<Key<'_>> = other.keys().collect();
            prop_assert!(one.keys().any(|key| others.contains(&key)), "{} {}", one, other);
            let (at, there) = (one.subtree(), other.subtree());
            prop_assert!(at.starts_with(there) || there.starts_with(at), "{} {}", one, other);
        }
    }
}

proptest! {
    #[test]
    fn text_and_id_go_back_and_forth(id in any_id()) {
        let text = id.to_string();
        let longer = format!("{text}x");
        prop_assert_eq!([&text, &text[1..], &longer].map(|text| id.is_written(text)), [true, false, false]);
        prop_assert!(text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{}", text);
        prop_assert_eq!(text.parse::<VolumeId>(), Ok(id));
    }

    #[test]
    fn parsing_never_panics(text in any::<String>()) {
        let _ = text.parse::<VolumeId>();
    }

    #[test]
    fn what_parses_has_one_spelling(text in "(device|filesystem)( [a-z%0-9]{1,4}=[a-zA-Z%0-9]{0,6}){0,3}") {
        if let Ok(id) = text.parse::<VolumeId>() {
            prop_assert_eq!(id.to_string().parse::<VolumeId>(), Ok(id));
        }
    }
}

#[test]
fn a_part_and_its_whole_overlap() {
    let filesystem = |subtree: Option<&str>, handle: &str| {
        let id = VolumeId::new(IdKind::Filesystem).with(part::UUID, "u1");
        match subtree {
            Some(subtree) => id.with(part::SUBTREE, subtree).with(part::HANDLE, handle),
            None => id,
        }
    };
    let (whole, a, below) = (
        filesystem(None, ""),
        filesystem(Some("/a"), "1"),
        filesystem(Some("/a/b"), "2"),
    );
    for (one, other) in [(&whole, &a), (&whole, &below), (&a, &below), (&a, &a)] {
        assert!(one.overlaps(other) && other.overlaps(one), "{one} {other}");
    }
    // A directory that was deleted and made again; its neighbour; another filesystem.
    let other = VolumeId::new(IdKind::Filesystem).with(part::UUID, "u2");
    for (one, other) in [
        (&a, &filesystem(Some("/a"), "3")),
        (&a, &filesystem(Some("/ab"), "4")),
        (&whole, &other),
        (&a, &other),
    ] {
        assert!(!one.overlaps(other) && !other.overlaps(one), "{one} {other}");
    }
    let disk = VolumeId::new(IdKind::Device).with(part::WWN, "w1");
    let partition = |number: &str| disk.clone().with(part::PARTITION, number).with(part::START, number);
    assert!(disk.overlaps(&partition("1")) && partition("1").overlaps(&disk));
    assert!(!partition("1").overlaps(&partition("2")));
}
