//! What passes over many volumes cost, without a cluster and without disks: `cargo bench`.
#![allow(missing_docs)]

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use local_volume_provisioner::mounts;
use local_volume_provisioner::probe::{Prober, Work};

#[path = "../tests/support/many.rs"]
mod many;

use many::{Many, STORAGE, Storage};

/// Lines of a mount table: a usual node, and one with very many mounts.
const LINES: [u32; 2] = [500, 5_000];

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

fn mountinfo(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mountinfo");
    for lines in LINES {
        let text = mount_table(lines);
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(BenchmarkId::new("parse", lines), |bencher| {
            bencher.iter(|| mounts::parse_counting(black_box(text.as_bytes())));
        });
    }
    for lines in LINES {
        // All that is asked of a mount table in a pass: pods' mounts, and what is mounted below each volume.
        let mounts = mounts::parse(mount_table(lines).as_bytes());
        group.throughput(Throughput::Elements(lines.into()));
        group.bench_function(BenchmarkId::new("questions", lines), |bencher| {
            bencher.iter(|| {
                let nesting = mounts::Nesting::new(black_box(&mounts));
                let below = mounts.iter().map(|mount| nesting.below(mount.dev, &mount.root).len());
                (mounts::pod_mounts(&mounts), below.sum::<usize>())
            });
        });
    }
    group.finish();
}

/// What it costs to have a deadline for each of 1,000 looks, beside the looks.
fn deadlines(criterion: &mut Criterion) {
    let mut prober = Prober::new(Duration::from_secs(5));
    criterion.bench_function("deadlines/1000", |bencher| {
        bencher.iter(|| {
            let items = (0..1_000_u32).map(|number| {
                let work: Work<u32> = Box::new(move || number);
                (number, work)
            });
            prober.run(items.collect())
        });
    });
}

type Make = fn(Storage) -> Many;

/// The planner, and what is remembered before and after it.
fn plan(criterion: &mut Criterion) {
    const CASES: [(&str, Make); 4] = [
        ("unchanged", |storage| Many::published(storage, 1_000)),
        ("new", |storage| Many::new(storage, 1_000)),
        // While the calls for all of them are under way.
        ("publishing", |storage| Many::new(storage, 1_000).publishing()),
        ("released", |storage| Many::released(storage, 1_000)),
    ];
    let mut group = criterion.benchmark_group("plan of 1000");
    for (what, make) in CASES {
        for storage in STORAGE {
            let mut many = make(storage);
            group.bench_function(BenchmarkId::new(what, format!("{storage:?}")), |bencher| {
                bencher.iter(|| many.pass());
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    // Two minutes in all. Short, for only differences of several per cent are of interest.
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    targets = mountinfo, deadlines, plan
}
criterion_main!(benches);
