//! What a pass costs follows the number of volumes, not its square.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

#[path = "support/many.rs"]
mod many;

use many::{Many, STORAGE, Storage};

/// What this thread has spent, whatever else the machine does.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// The least that a pass takes, of some.
fn pass(mut many: Many) -> Duration {
    let once = |_| {
        let began = cpu_time();
        assert!(!many.pass().volumes.is_empty());
        cpu_time() - began
    };
    (0..5).map(once).min().unwrap_or_default()
}

type Make = fn(Storage, u32) -> Many;

#[test]
fn ten_times_the_volumes_cost_ten_times_as_much() {
    let publishing = |storage, count| Many::new(storage, count).publishing();
    let cases: [(&str, Make); 4] = [
        ("unchanged", Many::published),
        ("new", Many::new),
        ("being published", publishing),
        ("released", Many::released),
    ];
    for storage in STORAGE {
        for (what, make) in cases {
            let (few, many) = (pass(make(storage, 200)), pass(make(storage, 2_000)));
            // By the square it would be a hundred times.
            assert!(
                many < few * 30,
                "{what} {storage:?}: 200 take {few:?}, 2,000 take {many:?}"
            );
        }
    }
}

#[test]
fn the_volumes_are_what_they_are_said_to_be() {
    for storage in STORAGE {
        assert_eq!(
            Many::new(storage, 50).pass().actions.len(),
            50,
            "{storage:?}: all are new"
        );
        let unchanged = Many::published(storage, 50).pass();
        assert_eq!(
            (unchanged.volumes.len(), unchanged.actions.len()),
            (50, 0),
            "{storage:?}"
        );
        let under_way = Many::new(storage, 50).publishing().pass();
        assert_eq!(
            (under_way.volumes.len(), under_way.actions.len()),
            (50, 0),
            "{storage:?}"
        );
        assert_eq!(
            Many::released(storage, 50).pass().actions.len(),
            4,
            "{storage:?}: four scrubs at once"
        );
    }
}
