//! Watches that break, and what is asked while nothing happens.

use std::rc::Rc;
use std::time::Duration;

use anyhow::ensure;
use serde_json::Value;
use testkit::api::Fault;

use crate::world::{World, always, as_users};

const MINUTE: Duration = Duration::from_secs(60);
const WATCHED: [&str; 4] = ["persistentvolumes", "storageclasses", "jobs", "nodes"];

/// Breaks the watches in one way.
type Break = fn(&World);

const BREAKS: [(&str, Break); 5] = [
    ("cut", |world| {
        WATCHED.iter().for_each(|plural| world.api.cut_watches(plural))
    }),
    ("history lost", |world| world.api.expire_history()),
    ("410 at the start of a watch", |world| {
        for plural in WATCHED {
            world
                .api
                .inject(Fault::status(410).verb("watch").resource(plural).times(2));
            world.api.cut_watches(plural);
        }
    }),
    ("history lost, and lists fail", |world| {
        world.api.inject(Fault::status(503).verb("list").times(6));
        world.api.expire_history();
    }),
    ("history lost, and reads fail", |world| {
        world.api.inject(Fault::status(500).verb("get").times(4));
        world.api.expire_history();
    }),
];

#[test]
fn watches_that_break_lose_nothing() {
    as_users("watches", &["full", "classic"], async |world: Rc<World>| {
        world.tmpfs("disk1")?;
        world.tmpfs("disk2")?;
        world.start();
        let mut second = world.available("disk2", &Value::Null).await?;
        for (what, break_watches) in BREAKS {
            // Free, then bound, then released while the watches are broken.
            let first = world.available("disk1", &Value::Null).await?;
            break_watches(&world);
            let claim = world.bind(&first)?;
            std::fs::write(world.entry("disk1").join("file"), "secret")?;
            world.pass_time(MINUTE).await;
            ensure!(
                world.entry("disk1").join("file").exists(),
                "{what}: scrubbed while bound"
            );
            break_watches(&world);
            world.pass_time(MINUTE).await;
            let still = world
                .pv("disk1")
                .is_some_and(|pv| pv["metadata"]["uid"] == first["metadata"]["uid"]);
            ensure!(still, "{what}: a bound PV was replaced");
            world.api.delete_claim("default", &claim)?;
            break_watches(&world);
            world.available("disk1", &first["metadata"]["uid"]).await?;
            world.is_clean("disk1")?;
            world.api.clear_faults();
            let now = world.available("disk2", &Value::Null).await?;
            ensure!(
                now["metadata"]["uid"] == second["metadata"]["uid"],
                "{what}: a free PV was replaced"
            );
            second = now;
        }
        world.lives_on("disk1").await
    });
}

#[test]
fn watches_that_stay_broken_are_tried_at_a_bearable_pace() {
    as_users("broken_watches", &["full", "classic"], async |world: Rc<World>| {
        world.tmpfs("disk1")?;
        world.start();
        world.available("disk1", &Value::Null).await?;
        for code in [410, 500, 403] {
            world.api.inject(always(Fault::status(code).verb("watch")));
            WATCHED.iter().for_each(|plural| world.api.cut_watches(plural));
            world.pass_time(MINUTE).await;
            let count = world.requests_in(2 * MINUTE, "watch", "persistentvolumes").await;
            ensure!((4..=14).contains(&count), "{count} watches in two minutes of {code}");
            world.api.clear_faults();
            world.lives_on("disk1").await?;
        }
        Ok(())
    });
}

#[test]
fn nothing_is_asked_while_nothing_happens() {
    as_users("idle", &["full", "classic"], async |world: Rc<World>| {
        for number in 0..20 {
            world.tmpfs(&format!("disk{number}"))?;
        }
        std::fs::write(world.entry("a-file"), "")?;
        world.start();
        for number in 0..20 {
            let pv = world.available(&format!("disk{number}"), &Value::Null).await?;
            if number % 2 == 0 {
                world.bind(&pv)?;
            }
        }
        world.pass_time(MINUTE).await;
        world.api.clear_requests();
        world.pass_time(5 * MINUTE).await;
        let requests = world.api.requests();
        let other: Vec<_> = requests.iter().filter(|request| request.verb != "watch").collect();
        ensure!(other.is_empty(), "{other:#?}");
        // Each of at most four watches is renewed every 200 s.
        ensure!(requests.len() <= 8, "{} renewals in five minutes", requests.len());
        Ok(())
    });
}

#[test]
fn nothing_is_published_under_another_hostname_before_its_pvs_are_listed() {
    as_users("other_hostname", &["full"], async |world: Rc<World>| {
        world.start();
        world.readiness(200, "ok").await?;
        world
            .api
            .inject(always(Fault::status(503).verb("list").resource("persistentvolumes")));
        // Both are seen by the same pass.
        world.tmpfs("disk1")?;
        world.api.edit("nodes", "", "node1", |node| {
            node["metadata"]["labels"]["kubernetes.io/hostname"] = "host2".into();
        });
        world.readiness(503, "the API server to list PersistentVolumes").await?;
        world.pass_time(MINUTE).await;
        ensure!(world.pv("disk1").is_none(), "published beside PVs that are not known");
        world.api.clear_faults();
        world.lives_on("disk1").await
    });
}
