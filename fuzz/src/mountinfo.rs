//! The mount table. The input is the contents of a mountinfo file, and for good measure of /proc/swaps.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use local_volume_provisioner::devices::users::parse_swaps;
use local_volume_provisioner::mounts::{self, Mount};
use nix::sys::stat::{major, minor};

pub(crate) fn target(data: &[u8]) {
    let (mounts, skipped) = mounts::parse_counting(data);
    let lines: Vec<&[u8]> = data
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .collect();
    assert_eq!(
        mounts.len() + skipped,
        lines.len(),
        "a line is either understood or counted"
    );
    by_line(&mounts, &lines);
    let printed: Vec<u8> = mounts.iter().flat_map(print).collect();
    assert_eq!(
        mounts::parse_counting(&printed),
        (mounts.clone(), 0),
        "as the kernel would write them:\n{}",
        String::from_utf8_lossy(&printed)
    );
    pods(&mounts);
    nesting(&mounts);
    for path in parse_swaps(data) {
        assert!(!path.as_os_str().is_empty());
    }
}

/// No line depends on another one, and the numbers are those that are written.
fn by_line(mounts: &[Mount], lines: &[&[u8]]) {
    let mut rest = mounts.iter();
    for line in lines {
        let alone = mounts::parse(line);
        let Some(mount) = alone.first() else {
            continue;
        };
        assert_eq!(Some(mount), rest.next());
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u128>().ok();
        let (left, right) = fields[2].split_at(fields[2].iter().position(|byte| *byte == b':').unwrap_or(0));
        assert_eq!(number(fields[0]), Some(u128::from(mount.mount_id)));
        assert_eq!(number(fields[1]), Some(u128::from(mount.parent_id)));
        assert_eq!(
            number(left),
            Some(u128::from(major(mount.dev))),
            "major of {:?}",
            fields[2]
        );
        assert_eq!(
            number(&right[1..]),
            Some(u128::from(minor(mount.dev))),
            "minor of {:?}",
            fields[2]
        );
        assert_eq!(
            mount.mount_read_only,
            fields[5].split(|byte| *byte == b',').any(|option| option == b"ro")
        );
    }
    assert_eq!(rest.next(), None);
}

/// A line of mountinfo as the kernel's seq_file functions write it.
fn print(mount: &Mount) -> Vec<u8> {
    let escape = |bytes: &[u8]| -> Vec<u8> {
        let one = |byte: &u8| match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
            _ => vec![*byte],
        };
        bytes.iter().flat_map(one).collect()
    };
    let mode = |read_only| if read_only { "ro" } else { "rw" };
    let (dev, point) = (mount.dev, escape(mount.mount_point.as_os_str().as_bytes()));
    let ids = format!("{} {} {}:{} ", mount.mount_id, mount.parent_id, major(dev), minor(dev));
    [
        ids.as_bytes(),
        &escape(mount.root.as_os_str().as_bytes()),
        b" ",
        &point,
        b" ",
        mode(mount.mount_read_only).as_bytes(),
        b",relatime shared:1 - ",
        &escape(mount.fs_type.as_bytes()),
        b" ",
        &escape(mount.source.as_bytes()),
        b" ",
        mode(mount.filesystem_read_only).as_bytes(),
        b"\n",
    ]
    .concat()
}

/// Whose mount it is stands in the mount point.
fn pods(mounts: &[Mount]) {
    for pod in mounts::pod_mounts(mounts) {
        assert!(!pod.pod_uid.is_empty() && !pod.pod_uid.contains('/'), "{pod:?}");
        assert!(!pod.pv.is_empty() && !pod.pv.contains('/'), "{pod:?}");
        let parts = [format!("pods/{}/volume", pod.pod_uid), pod.pv.clone()];
        let named = |mount: &Mount| {
            let point = mount.mount_point.to_string_lossy().into_owned();
            mount.dev == pod.dev && mount.root == pod.subtree && parts.iter().all(|part| point.contains(part))
        };
        assert!(mounts.iter().any(named), "{pod:?}");
    }
}

/// What is below a directory is below its parents, too, and is a mount of the table.
fn nesting(mounts: &[Mount]) {
    let points: HashSet<&Path> = mounts.iter().map(|mount| mount.mount_point.as_path()).collect();
    let nesting = mounts::Nesting::new(mounts);
    for mount in mounts.iter().take(16) {
        let below = nesting.below(mount.dev, &mount.root);
        assert!(below.iter().all(|point| points.contains(point.as_path())));
        assert!(below.is_sorted());
        if let Some(parent) = mount.root.parent() {
            let all = nesting.below(mount.dev, parent);
            assert!(below.iter().all(|point| all.contains(point)), "below {:?}", mount.root);
        }
        assert!(mounts::by_id(mounts, mount.mount_id).is_some_and(|found| found.mount_id == mount.mount_id));
    }
}
