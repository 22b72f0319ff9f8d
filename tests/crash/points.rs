//! Which point is reached in which history.

use std::collections::BTreeSet;

use local_volume_provisioner::failpoint::POINTS;

use crate::node::{self, WORLDS, World};
use crate::process::{AT_A_TIME, beside_each_other};
use crate::story::{Armed, Case, History, story};

use Armed::{AfterRelease, AtStart, WhileBound, WhileFree};
use History::{Adopt, Capacity, Command, Device, Edit, Files, Force, Job, Strip, Withdraw};

/// Each point with the histories that lead to it: where the daemon was armed, and how often it is killed in a row. (Not
/// after an answer to one of two requests: the other may be under way then, and is not made again.)
#[rustfmt::skip]
const TABLE: &[(&str, History, Armed, u32)] = &[
    ("start.connected",           Files,    AtStart,      2),
    ("start.connected",           Files,    AfterRelease, 1),
    ("pass.looked",               Files,    AtStart,      2),
    ("pass.looked",               Files,    WhileBound,   1),
    ("pass.looked",               Files,    AfterRelease, 1),
    ("pass.looked@2",             Device,   AfterRelease, 1),
    ("pass.planned",              Files,    AtStart,      2),
    ("pass.planned",              Files,    WhileBound,   1),
    ("pass.planned",              Files,    AfterRelease, 1),
    ("pass.planned@2",            Device,   AfterRelease, 1),
    ("create.before",             Files,    AtStart,      2),
    ("create.after",              Files,    AtStart,      1),
    ("create.before",             Files,    WhileBound,   2),
    ("create.after",              Files,    WhileBound,   1),
    ("create.before",             Device,   WhileBound,   1),
    ("create.after",              Device,   AtStart,      1),
    ("patch.used.before",         Files,    AtStart,      2),
    ("patch.used.after",          Files,    AtStart,      1),
    ("patch.upkeep.before",       Edit,     AtStart,      1),
    ("patch.upkeep.after",        Edit,     AtStart,      1),
    ("patch.capacity.before",     Capacity, WhileFree,    2),
    ("patch.capacity.after",      Capacity, WhileFree,    1),
    ("patch.finalizer.before",    Strip,    AtStart,      1),
    ("patch.finalizer.after",     Strip,    AtStart,      1),
    ("patch.resolve.before",      Adopt,    AtStart,      1),
    ("patch.resolve.after",       Adopt,    AtStart,      1),
    ("patch.let-go.before",       Files,    WhileBound,   2),
    ("patch.let-go.after",        Files,    WhileBound,   1),
    ("patch.let-go.before",       Device,   WhileBound,   1),
    ("patch.let-go.before",       Withdraw, WhileFree,    2),
    ("patch.let-go.after",        Withdraw, WhileFree,    1),
    ("delete.before",             Files,    WhileBound,   2),
    ("delete.after",              Files,    WhileBound,   1),
    ("delete.before",             Device,   AfterRelease, 1),
    ("delete.after",              Device,   AfterRelease, 1),
    ("delete.before",             Withdraw, WhileFree,    2),
    ("delete.after",              Withdraw, WhileFree,    1),
    ("claim.read",                Force,    AtStart,      1),
    ("delete.before",             Force,    AtStart,      1),
    ("delete.after",              Force,    AtStart,      1),
    ("event.before",              Device,   WhileBound,   1),
    ("event.after",               Device,   WhileBound,   1),
    ("job.create.before",         Job,      WhileBound,   2),
    ("job.create.after",          Job,      WhileBound,   1),
    ("job.delete.before",         Job,      WhileBound,   2),
    ("job.delete.after",          Job,      WhileBound,   1),
    ("scrub.ordered",             Files,    WhileBound,   1),
    ("scrub.begin",               Files,    WhileBound,   2),
    ("scrub.begin",               Device,   WhileBound,   1),
    ("scrub.filesystem.checked",  Files,    WhileBound,   1),
    ("scrub.filesystem.entry",    Files,    WhileBound,   2),
    ("scrub.filesystem.entry@3",  Files,    AfterRelease, 1),
    ("scrub.filesystem.emptied",  Files,    WhileBound,   1),
    ("scrub.filesystem.synced",   Files,    WhileBound,   1),
    ("scrub.block.checked",       Device,   WhileBound,   1),
    ("scrub.block.chunk",         Device,   WhileBound,   2),
    ("scrub.block.chunk@2",       Device,   AfterRelease, 1),
    ("scrub.block.wiped",         Device,   WhileBound,   1),
    ("scrub.block.verified",      Device,   WhileBound,   1),
    ("scrub.command.before",      Command,  WhileBound,   1),
    ("scrub.command.after",       Command,  WhileBound,   1),
    ("scrub.end",                 Files,    WhileBound,   1),
    ("scrub.end",                 Device,   WhileBound,   1),
    ("settle.scrubbed",           Files,    WhileBound,   2),
    ("settle.scrubbed",           Device,   AfterRelease, 1),
];

/// Whether a history leads there in a world. What a daemon may not patch it does not patch, and it does not see Jobs.
fn reached(point: &str, history: History, world: &World) -> bool {
    let patches = world.user == "full";
    match history {
        // What stands in for a PV is deleted at once where it then waits, Terminating.
        Force if point.starts_with("delete.") => patches,
        Edit | Strip | Adopt | Capacity | Job => patches,
        // The claim's life is asked for in both.
        Files | Device | Command | Withdraw | Force => patches || !point.starts_with("patch."),
    }
}

#[test]
fn every_point_is_in_the_table() {
    let listed: BTreeSet<&str> = TABLE.iter().map(|row| row.0.split('@').next().unwrap()).collect();
    let all: BTreeSet<&str> = POINTS.iter().copied().collect();
    assert_eq!(listed, all);
    for (point, history, ..) in TABLE {
        assert!(
            WORLDS.iter().any(|world| reached(point, *history, world)),
            "{point} is reached in no world"
        );
    }
}

#[test]
fn a_volume_survives_a_crash_at_every_point() {
    let name = "a_volume_survives_a_crash_at_every_point";
    let Some(plane) = node::plane_for(name) else { return };
    let only = std::env::var("CRASH_POINT").unwrap_or_default();
    let mut jobs = Vec::new();
    for (point, history, armed, kills) in TABLE.iter().filter(|row| row.0.starts_with(&only)) {
        for world in WORLDS.into_iter().filter(|world| reached(point, *history, world)) {
            let case = Case {
                point,
                history: *history,
                armed: *armed,
                kills: *kills,
            };
            jobs.push((case, world));
        }
    }
    let began = std::time::Instant::now();
    let all = jobs.len();
    let failed = beside_each_other(
        AT_A_TIME,
        jobs,
        |(case, world)| node::run(plane, *world, async |node| story(node, case).await),
        |(case, world)| format!("{case:?} in {world:?}"),
    );
    println!("{all} crashes in {:?}", began.elapsed());
    assert!(failed.is_empty(), "{} of {all}:\n{}", failed.len(), failed.join("\n\n"));
}
