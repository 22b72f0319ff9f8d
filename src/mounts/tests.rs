#![allow(clippy::unwrap_used)]

use nix::sys::stat::makedev;
use proptest::prelude::*;

use super::*;

fn line(text: &str) -> Mount {
    let (mut mounts, skipped) = parse_counting(text.as_bytes());
    assert_eq!((mounts.len(), skipped), (1, 0), "{text}");
    mounts.remove(0)
}

#[test]
fn a_line_of_the_manual_page() {
    let mount = line("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n");
    assert_eq!(
        mount,
        Mount {
            mount_id: 36,
            parent_id: 35,
            dev: makedev(98, 0),
            root: "/mnt1".into(),
            mount_point: "/mnt2".into(),
            mount_read_only: false,
            filesystem_read_only: false,
            gave_up: false,
            fs_type: "ext3".into(),
            source: "/dev/root".into(),
        }
    );
}

#[test]
fn read_only_is_told_for_the_mount_and_for_the_filesystem() {
    let of = |text| {
        let mount = line(text);
        (mount.mount_read_only, mount.filesystem_read_only, mount.read_only())
    };
    assert_eq!(
        of("1 2 0:3 / /a rw,noatime - tmpfs tmpfs rw,size=4k"),
        (false, false, false)
    );
    assert_eq!(
        of("1 2 0:3 / /a ro,noatime - tmpfs tmpfs rw,size=4k"),
        (true, false, true)
    );
    assert_eq!(of("1 2 0:3 / /a rw - tmpfs tmpfs size=4k,ro"), (false, true, true));
    assert_eq!(
        of("1 2 0:3 / /a rw,errors=remount-ro - tmpfs tmpfs rw,errors=remount-ro"),
        (false, false, false)
    );
}

#[test]
fn escapes_become_bytes_again() {
    let cases: &[(&[u8], &[u8])] = &[
        (br"/a\040b", b"/a b"),
        (br"/a\011b\012c", b"/a\tb\nc"),
        (br"/a\134040", br"/a\040"),
        (br"/\043a", b"/#a"),
        (br"/\377\303\274", b"/\xff\xc3\xbc"),
        (br"/a\04", br"/a\04"),
        (br"/a\088b\", br"/a\088b\"),
        (br"/a\477", br"/a\477"),
        (b"/\xfe\xff", b"/\xfe\xff"),
    ];
    for (escaped, expected) in cases {
        let mut text = b"1 2 0:3 / ".to_vec();
        text.extend_from_slice(escaped);
        text.extend_from_slice(b" rw - ext4 /dev/sda rw");
        let mounts = parse(&text);
        assert_eq!(
            mounts[0].mount_point.as_os_str().as_bytes(),
            *expected,
            "{}",
            String::from_utf8_lossy(escaped)
        );
    }
}

#[test]
fn what_is_not_understood_is_skipped_and_counted() {
    let text =
        b"garbage\n1 2 0:3 / /a rw - tmpfs tmpfs rw\n1 2 x:3 / /a rw - tmpfs tmpfs rw\n9 2 0:3 / /a rw tmpfs\n\n\
        4 2 0:3 / /b rw - tmpfs  rw\n5 2 0:3  /b rw - tmpfs none rw\n";
    let (mounts, skipped) = parse_counting(text);
    let points: Vec<_> = mounts.iter().map(|mount| mount.mount_point.to_str().unwrap()).collect();
    assert_eq!(points, ["/a", "/b"], "an empty source is legal, an empty root is not");
    assert_eq!(skipped, 4);
}

#[test]
fn a_deleted_source_is_recognised() {
    assert!(line(r"1 2 8:1 /src//deleted /mnt/a rw - ext4 /dev/sda1 rw").deleted());
    assert!(!line(r"1 2 8:1 /src/deleted /mnt/a rw - ext4 /dev/sda1 rw").deleted());
    assert!(!line(r"1 2 8:1 / /mnt//deleted rw - ext4 /dev/sda1 rw").deleted());
}

#[test]
fn large_device_numbers_are_those_of_stat() {
    assert_eq!(line("1 2 259:70000 / /a rw - ext4 x rw").dev, makedev(259, 70_000));
    assert_eq!(
        parse_counting(b"1 2 4294967304:1 / /a rw - ext4 x rw"),
        (Vec::new(), 1),
        "no device number, and not 8:1"
    );
}

#[test]
fn pod_mounts_are_found_wherever_kubelet_keeps_its_pods() {
    let table = parse(
        br"1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 8:2 /sub /var/lib/kubelet/pods/u-1/volumes/kubernetes.io~local-volume/local-pv-a rw - ext4 x rw
3 1 8:3 / /data/k\040s/pods/u-2/volumes/kubernetes.io~local-volume/local-pv-b/deeper/down rw - ext4 x rw
4 1 8:4 /x /var/lib/kubelet/pods/u-3/volume-subpaths/local-pv-c/main/0 rw - ext4 x rw
5 1 8:5 / /var/lib/kubelet/pods/u-4/volumes/kubernetes.io~csi/local-pv-d/mount rw - ext4 x rw
6 1 8:5 / /var/lib/kubelet/pods/u-5/volumes/kubernetes.io~local-volume rw - ext4 x rw
7 1 8:6 / /pods/u-6/volumes/kubernetes.io~local-volume/pv/pods/no/volumes/kubernetes.io~local-volume/other rw - ext4 x rw
",
    );
    let found: Vec<_> = pod_mounts(&table)
        .into_iter()
        .map(|m| (m.pod_uid, m.pv, m.dev, m.subtree))
        .collect();
    let expected = |uid: &str, pv: &str, minor, subtree: &str| {
        (uid.to_owned(), pv.to_owned(), makedev(8, minor), PathBuf::from(subtree))
    };
    assert_eq!(
        found,
        [
            expected("u-1", "local-pv-a", 2, "/sub"),
            expected("u-2", "local-pv-b", 3, "/"),
            expected("u-3", "local-pv-c", 4, "/x"),
            expected("u-6", "pv", 6, "/"),
        ]
    );
}

/// A disk at /mnt/disks/a, its directory `sub` bound at /mnt/disks/b, and mounts inside of both.
const NESTED: &[u8] = b"1 0 8:1 / / rw - ext4 /dev/sda1 rw
10 1 8:2 / /mnt/disks/a rw - ext4 /dev/sdb rw
11 1 8:2 /sub /mnt/disks/b rw - ext4 /dev/sdb rw
12 10 0:40 / /mnt/disks/a/deep/er rw - tmpfs t rw
13 11 8:2 /elsewhere /mnt/disks/b/bind rw - ext4 /dev/sdb rw
14 10 0:41 / /mnt/disks/a/subway rw - tmpfs t rw
15 10 0:42 / /mnt/disks/a rw - tmpfs t rw
16 99 0:43 / /mnt/disks/a/orphan rw - tmpfs t rw
";

#[test]
fn nested_mounts_are_found_by_their_place_in_the_filesystem() {
    let table = parse(NESTED);
    let below = |dev, subtree: &str| {
        let found = nested(&table, dev, Path::new(subtree));
        found
            .iter()
            .map(|path| path.to_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let disk = makedev(8, 2);
    assert_eq!(
        below(disk, "/"),
        ["/mnt/disks/a/deep/er", "/mnt/disks/a/subway", "/mnt/disks/b/bind"]
    );
    assert_eq!(
        below(disk, "/sub"),
        ["/mnt/disks/b/bind"],
        "subway is a sibling of sub, not below it"
    );
    assert_eq!(
        below(disk, "/sub/bind"),
        Vec::<String>::new(),
        "the place itself is not inside of itself"
    );
    assert_eq!(below(disk, "/deep"), ["/mnt/disks/a/deep/er"]);
    assert_eq!(below(makedev(8, 1), "/mnt/disks"), ["/mnt/disks/a", "/mnt/disks/b"]);
    assert_eq!(below(makedev(8, 9), "/"), Vec::<String>::new());
}

#[test]
fn by_id_finds_the_mount() {
    let table = parse(NESTED);
    assert_eq!(by_id(&table, 11).unwrap().root, Path::new("/sub"));
    assert_eq!(by_id(&table, 98), None);
}

#[test]
fn containment_goes_by_components() {
    let check = |outer: &str, inner: &str| contains(Path::new(outer), Path::new(inner));
    assert!(check("/", "/a"));
    assert!(check("/a", "/a"));
    assert!(check("/a", "/a/b"));
    assert!(!check("/a", "/ab"));
    assert!(!check("/a/b", "/a"));
    assert!(!check("/a", "/a/../b"));
}

/// What the kernel's seq_path does to a path.
fn escape(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for &byte in bytes {
        if b" \t\n\\#".contains(&byte) {
            out.extend_from_slice(format!("\\{byte:03o}").as_bytes());
        } else {
            out.push(byte);
        }
    }
    out
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (mounts, _) = parse_counting(&bytes);
        let _ = pod_mounts(&mounts);
        let _ = nested(&mounts, 1, Path::new("/"));
    }

    #[test]
    fn nearly_right_lines_do_not_make_it_panic(
        lines in proptest::collection::vec("[0-9]{1,3} [0-9]{1,20} [0-9]{1,3}:[0-9]{1,20} /[a\\\\0-7]{0,9} /[a\\\\0-7/]{0,9} r[wo] (- )?ext4 x", 0..9),
    ) {
        let (mounts, skipped) = parse_counting(lines.join("\n").as_bytes());
        prop_assert_eq!(mounts.len() + skipped, lines.len());
        let _ = Nesting::new(&mounts).below(makedev(1, 1), Path::new("/"));
    }

    #[test]
    fn any_name_survives(name in proptest::collection::vec(1u8..=255, 1..80)) {
        let mut path = b"/".to_vec();
        path.extend_from_slice(&name);
        let mut text = b"1 2 0:3 ".to_vec();
        text.extend_from_slice(&escape(&path));
        text.push(b' ');
        text.extend_from_slice(&escape(&path));
        text.extend_from_slice(b" rw - ext4 /dev/sda rw\n");
        let (mounts, skipped) = parse_counting(&text);
        prop_assert_eq!(skipped, 0);
        prop_assert_eq!(mounts[0].mount_point.as_os_str().as_bytes(), path.as_slice());
        prop_assert_eq!(mounts[0].root.as_os_str().as_bytes(), path.as_slice());
    }
}
