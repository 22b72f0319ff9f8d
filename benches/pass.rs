//! What passes over many volumes cost, without system calls: `cargo bench`.
#![allow(missing_docs)]

use std::fmt::Write as _;
use std::time::Duration;

use divan::{Bencher, black_box, counter::BytesCount};
use local_volume_provisioner::mounts;
use local_volume_provisioner::probe::{Prober, Work};

#[path = "../tests/support/many.rs"]
mod many;

use many::{Many, STORAGE, Storage};

fn main() {
    divan::main();
}

/// The mount table of a node with this many mounts, of which one in ten is a pod's.
fn mount_table(lines: u32) -> String {
    let mut text = String::new();
    for n in 0..lines {
        let point = if n % 10 == 0 {
            format!("/var/lib/kubelet/pods/{n:08}-1111-2222-3333-444444444444/volumes/kubernetes.io~local-volume/pv{n}")
        } else {
            format!("/mnt/fast/disk{n}")
        };
        let (id, minor) = (n + 100, n % 4096);
        let _ = writeln!(
            text,
            "{id} 28 8:{minor} / {point} rw,relatime shared:{n} - ext4 /dev/sd{n} rw,errors=continue"
        );
    }
    text
}

#[divan::bench(args = [500, 5_000])]
fn mountinfo(bencher: Bencher<'_, '_>, lines: u32) {
    let text = mount_table(lines);
    bencher
        .counter(BytesCount::of_str(&text))
        .bench(|| mounts::parse_counting(black_box(text.as_bytes())));
}

/// All that is asked of a mount table in a pass: pods' mounts, and what is mounted below each volume.
#[divan::bench(args = [500, 5_000])]
fn mount_table_questions(bencher: Bencher<'_, '_>, lines: u32) {
    let mounts = mounts::parse(mount_table(lines).as_bytes());
    bencher.bench(|| {
        let nesting = mounts::Nesting::new(black_box(&mounts));
        let below = mounts.iter().map(|mount| nesting.below(mount.dev, &mount.root).len());
        (mounts::pod_mounts(&mounts), below.sum::<usize>())
    });
}

/// What it costs to have a deadline for each of 1,000 looks, beside the looks.
#[divan::bench]
fn deadlines_1000(bencher: Bencher<'_, '_>) {
    let mut prober = Prober::new(Duration::from_secs(5));
    bencher.bench_local(|| {
        let items = (0..1_000_u32).map(|number| {
            let work: Work<u32> = Box::new(move || number);
            (number, work)
        });
        prober.run(items.collect())
    });
}

#[divan::bench(args = STORAGE)]
fn unchanged_1000(bencher: Bencher<'_, '_>, storage: Storage) {
    let mut many = Many::published(storage, 1_000);
    bencher.bench_local(|| many.pass());
}

#[divan::bench(args = STORAGE)]
fn new_1000(bencher: Bencher<'_, '_>, storage: Storage) {
    let mut many = Many::new(storage, 1_000);
    bencher.bench_local(|| many.pass());
}

/// While the calls for all of them are under way.
#[divan::bench(args = STORAGE)]
fn publishing_1000(bencher: Bencher<'_, '_>, storage: Storage) {
    let mut many = Many::new(storage, 1_000).publishing();
    bencher.bench_local(|| many.pass());
}

#[divan::bench(args = STORAGE)]
fn released_1000(bencher: Bencher<'_, '_>, storage: Storage) {
    let mut many = Many::released(storage, 1_000);
    bencher.bench_local(|| many.pass());
}
