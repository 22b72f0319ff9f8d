//! Places where a test can end or hold this process: at every step after which a volume is in another state.
//!
//! They are there with the feature `failpoints` only, which nothing but tests is built with; without it `hit!` is
//! nothing, not even a name in the binary. The crate `fail` knows neither of the two things that are needed from outside
//! a process: ending as by `kill -9`, without any code of ours running after it, and being let go on by another process.
//!
//! The environment variable `FAILPOINTS` says what happens where: `<point>=kill` or `<point>=pause`, separated by
//! commas; `<point>@3=kill` is the third time that the point is reached. A thread that is held makes the file
//! `<point>` in the directory `FAILPOINTS_DIR`, and goes on when that is removed.

#[cfg(feature = "failpoints")]
pub use enabled::{HELD_DIRECTORY, POINTS, VARIABLE, patch, reached};

/// Does here what the environment asks for.
#[cfg(feature = "failpoints")]
macro_rules! hit {
    ($point:expr) => {
        $crate::failpoint::reached($point)
    };
}

/// Does nothing.
#[cfg(not(feature = "failpoints"))]
macro_rules! hit {
    ($point:expr) => {};
}

pub(crate) use hit;

#[cfg(feature = "failpoints")]
mod enabled {
    use std::collections::HashMap;
    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, OnceLock, PoisonError};
    use std::time::Duration;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use crate::names;
    use crate::plan::PvPatch;

    /// What happens where.
    pub const VARIABLE: &str = "FAILPOINTS";
    /// Where held threads say that they are.
    pub const HELD_DIRECTORY: &str = "FAILPOINTS_DIR";

    /// All that there are. `before` and `after` are: before a request was sent, after its answer has come.
    pub const POINTS: &[&str] = &[
        "start.connected",
        "pass.looked",
        "pass.planned",
        "create.before",
        "create.after",
        "patch.used.before",
        "patch.used.after",
        "patch.upkeep.before",
        "patch.upkeep.after",
        "patch.capacity.before",
        "patch.capacity.after",
        "patch.finalizer.before",
        "patch.finalizer.after",
        "patch.resolve.before",
        "patch.resolve.after",
        "patch.let-go.before",
        "patch.let-go.after",
        "delete.before",
        "delete.after",
        "claim.read",
        "event.before",
        "event.after",
        "job.create.before",
        "job.create.after",
        "job.delete.before",
        "job.delete.after",
        "scrub.ordered",
        "scrub.begin",
        "scrub.filesystem.checked",
        "scrub.filesystem.entry",
        "scrub.filesystem.emptied",
        "scrub.filesystem.synced",
        "scrub.block.checked",
        "scrub.block.chunk",
        "scrub.block.wiped",
        "scrub.block.verified",
        "scrub.command.before",
        "scrub.command.after",
        "scrub.end",
        "settle.scrubbed",
    ];

    /// How often a held thread looks whether it may go on.
    const NAP: Duration = Duration::from_millis(2);

    #[derive(Clone, Copy)]
    enum Action {
        Kill,
        Pause,
    }

    /// What is asked for: the point, the how manieth time, and what happens then.
    struct Armed {
        point: String,
        time: u32,
        action: Action,
    }

    /// The point of a patch of a PV, by the weightiest of what it changes.
    #[must_use]
    pub fn patch(patch: &PvPatch, when: &str) -> String {
        let keeps = |finalizers: &Vec<String>| finalizers.iter().any(|name| name == names::FINALIZER);
        let kind = match &patch.finalizers {
            Some(finalizers) if keeps(finalizers) => "finalizer",
            Some(_) => "let-go",
            None if patch.annotations.get(names::RESOLVE) == Some(&None) => "resolve",
            None if patch.annotations.contains_key(names::USED) => "used",
            None if patch.capacity.is_some() => "capacity",
            None => "upkeep",
        };
        format!("patch.{kind}.{when}")
    }

    /// A point was reached.
    ///
    /// # Panics
    /// It is not in [`POINTS`], or what is asked for cannot be understood: a mistake in a test.
    pub fn reached(point: impl AsRef<str>) {
        static ARMED: OnceLock<Vec<Armed>> = OnceLock::new();
        static TIMES: Mutex<Option<HashMap<String, u32>>> = Mutex::new(None);
        let point = point.as_ref();
        assert!(POINTS.contains(&point), "{point} is not in failpoint::POINTS");
        let armed = ARMED.get_or_init(|| parse(&std::env::var(VARIABLE).unwrap_or_default()));
        if armed.is_empty() {
            return;
        }
        let time = {
            let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
            let time = times.get_or_insert_default().entry(point.to_owned()).or_default();
            *time += 1;
            *time
        };
        match armed.iter().find(|armed| armed.point == point && armed.time == time) {
            None => {}
            Some(Armed {
                action: Action::Kill, ..
            }) => end(),
            Some(Armed {
                action: Action::Pause, ..
            }) => hold(point),
        }
    }

    fn parse(text: &str) -> Vec<Armed> {
        let words = text.split(',').filter(|word| !word.is_empty());
        words
            .map(|word| {
                let (point, action) = word.split_once('=').unwrap_or((word, ""));
                let (point, time) = point.split_once('@').unwrap_or((point, "1"));
                let action = match action {
                    "kill" => Action::Kill,
                    "pause" => Action::Pause,
                    _ => panic!("{VARIABLE}: {word:?} is not <point>=kill or <point>=pause"),
                };
                assert!(POINTS.contains(&point), "{VARIABLE}: there is no point {point:?}");
                let time = time.parse();
                Armed {
                    point: point.to_owned(),
                    time: time.unwrap_or_else(|_| panic!("{VARIABLE}: {word:?} has no number after the @")),
                    action,
                }
            })
            .collect()
    }

    fn end() -> ! {
        let sent = kill(Pid::this(), Signal::SIGKILL);
        panic!("the process lives on after SIGKILL: {sent:?}");
    }

    fn hold(point: &str) {
        let directory = std::env::var_os(HELD_DIRECTORY).map(PathBuf::from);
        let directory = directory.unwrap_or_else(|| panic!("{HELD_DIRECTORY} is not set"));
        let file: &Path = &directory.join(point);
        std::fs::write(file, "").unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
        while file.exists() {
            std::thread::sleep(NAP);
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn arms_are_read() {
            let armed = parse("create.after=kill,scrub.begin@3=pause");
            assert_eq!((armed[0].point.as_str(), armed[0].time), ("create.after", 1));
            assert!(matches!(armed[0].action, Action::Kill));
            assert_eq!((armed[1].point.as_str(), armed[1].time), ("scrub.begin", 3));
            assert!(matches!(armed[1].action, Action::Pause));
            assert!(parse("").is_empty());
        }

        #[test]
        fn every_kind_of_patch_is_a_point() {
            let annotated = |key: &str, value: Option<&str>| PvPatch {
                annotations: [(key.to_owned(), value.map(str::to_owned))].into(),
                ..Default::default()
            };
            let finalizers = |names: &[&str]| PvPatch {
                finalizers: Some(names.iter().map(|&name| name.to_owned()).collect()),
                ..Default::default()
            };
            let capacity = PvPatch {
                capacity: Some("1Gi".into()),
                ..Default::default()
            };
            for (changes, kind) in [
                (annotated(names::USED, Some("u")), "used"),
                (annotated(names::RESOLVE, None), "resolve"),
                (annotated(names::VOLUME_ID, Some("i")), "upkeep"),
                (finalizers(&["other", names::FINALIZER]), "finalizer"),
                (finalizers(&["other"]), "let-go"),
                (capacity, "capacity"),
            ] {
                for when in ["before", "after"] {
                    let point = patch(&changes, when);
                    assert_eq!(point, format!("patch.{kind}.{when}"));
                    assert!(POINTS.contains(&point.as_str()), "{point}");
                }
            }
        }
    }
}
