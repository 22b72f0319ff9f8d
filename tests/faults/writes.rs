//! Writes that fail, are lost, or are not permitted any more.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testkit::api::{Fault, Permissions};

use crate::world::{Trouble, World, always, as_users};

const MINUTE: Duration = Duration::from_secs(60);

/// What a server may do to a write instead of carrying it out.
const TROUBLES: [Trouble; 6] = [
    ("429", || Fault::status(429)),
    ("429 with Retry-After", || Fault::throttle(Duration::from_secs(1))),
    ("500", || Fault::status(500)),
    ("503", || Fault::status(503)),
    ("disconnect", Fault::disconnect),
    ("hang", Fault::hang),
];

#[test]
fn creates_that_fail_are_tried_again_at_a_bearable_pace() {
    as_users("creates", &["full", "classic"], async |world: Rc<World>| {
        world.start();
        for (number, (what, fault)) in TROUBLES.into_iter().enumerate() {
            let entry = format!("disk{number}");
            world
                .api
                .inject(always(fault().verb("create").resource("persistentvolumes")));
            world.tmpfs(&entry)?;
            world.pass_time(MINUTE).await;
            let count = world.requests_in(2 * MINUTE, "create", "persistentvolumes").await;
            ensure!((4..=14).contains(&count), "{count} creates in two minutes of {what}");
            world.api.clear_faults();
            world.lives_on(&entry).await?;
        }
        Ok(())
    });
}

#[test]
fn looks_go_on_while_many_calls_wait() {
    const PASSES: &str = "local_volume_provisioner_pass_duration_seconds_count ";
    as_users("many_waiting", &["full"], async |world: Rc<World>| {
        let disks: Vec<String> = (0..100).map(|number| format!("disk{number}")).collect();
        disks.iter().try_for_each(|disk| world.tmpfs(disk))?;
        let hang = Fault::hang().verb("create").resource("persistentvolumes");
        world.api.inject(always(hang));
        world.start();
        world.readiness(200, "ok").await?;
        let passes = async || -> Result<u64> {
            let metrics = world.get("/metrics").await?;
            let count = metrics.lines().find_map(|line| line.strip_prefix(PASSES));
            Ok(count.context("passes are not counted")?.parse()?)
        };
        for number in 0..4 {
            let before = passes().await?;
            world.api.edit("nodes", "", "node1", |node| {
                node["metadata"]["labels"]["example.com/touched"] = number.to_string().into();
            });
            // Less than a call takes that hangs.
            world.pass_time(Duration::from_millis(700)).await;
            ensure!(passes().await? > before, "no pass after edit {number}");
        }
        world.api.clear_faults();
        for disk in &disks {
            world.available(disk, &Value::Null).await?;
        }
        Ok(())
    });
}

#[test]
fn a_server_that_says_when_to_come_again_is_not_asked_before() {
    const ASKED: Duration = Duration::from_secs(30);
    as_users("overload", &["full", "classic"], async |world: Rc<World>| {
        world.start();
        let troubles: [Trouble; 2] = [
            ("priority and fairness", || Fault::overload(ASKED)),
            ("a busy storage", || Fault::throttle(ASKED)),
        ];
        for (number, (what, fault)) in troubles.into_iter().enumerate() {
            let entry = format!("disk{number}");
            let faults = |verb| always(fault().verb(verb).resource("persistentvolumes"));
            world.api.inject(faults("create"));
            world.tmpfs(&entry)?;
            world.pass_time(MINUTE).await;
            let count = world.requests_in(5 * MINUTE, "create", "persistentvolumes").await;
            ensure!((7..=10).contains(&count), "{count} creates in five minutes of {what}");
            world.api.clear_faults();
            world.lives_on(&entry).await?;

            world.api.inject(faults("list"));
            world.api.expire_history();
            world.pass_time(MINUTE).await;
            let count = world.requests_in(5 * MINUTE, "list", "persistentvolumes").await;
            ensure!((7..=10).contains(&count), "{count} lists in five minutes of {what}");
            world.api.clear_faults();
            world.lives_on(&entry).await?;
        }
        // Asked for a day, nobody would know why nothing happens.
        let day = Duration::from_secs(24 * 3600);
        world.api.inject(
            Fault::overload(day)
                .verb("create")
                .resource("persistentvolumes")
                .times(1),
        );
        world.tmpfs("disk9")?;
        world.pass_time(2 * MINUTE).await;
        world.lives_on("disk9").await
    });
}

/// A volume is released while a kind of write fails; `count` of the retries in two minutes.
async fn release_under(world: &World, verb: &str, fault: Fault) -> Result<usize> {
    let pv = world.available("disk1", &Value::Null).await?;
    let claim = world.bind(&pv)?;
    std::fs::write(world.entry("disk1").join("file"), "secret")?;
    world.pass_time(MINUTE).await;
    world.api.inject(fault.verb(verb).resource("persistentvolumes"));
    world.api.delete_claim("default", &claim)?;
    world.pass_time(MINUTE).await;
    let count = world.requests_in(2 * MINUTE, verb, "persistentvolumes").await;
    world.api.clear_faults();
    world.available("disk1", &pv["metadata"]["uid"]).await?;
    world.is_clean("disk1")?;
    Ok(count)
}

#[test]
fn patches_and_deletes_that_fail_are_tried_again_at_a_bearable_pace() {
    as_users("releases", &["full", "classic"], async |world: Rc<World>| {
        world.tmpfs("disk1")?;
        world.start();
        let verbs: &[&str] = if world.user == "full" {
            &["patch", "delete"]
        } else {
            &["delete"]
        };
        for verb in verbs {
            for (what, fault) in TROUBLES {
                let count = release_under(&world, verb, always(fault())).await?;
                ensure!((4..=14).contains(&count), "{count} x {verb} in two minutes of {what}");
            }
        }
        world.lives_on("disk1").await
    });
}

#[test]
fn conflicts_are_read_again() {
    as_users("conflicts", &["full", "classic"], async |world: Rc<World>| {
        world.tmpfs("disk1")?;
        world.start();
        let verbs: &[&str] = if world.user == "full" {
            &["patch", "delete"]
        } else {
            &["delete"]
        };
        for verb in verbs {
            release_under(&world, verb, Fault::status(409).times(3)).await?;
            // A real one: somebody annotates it at the last moment, every time.
            let name = world.pv("disk1").unwrap()["metadata"]["name"]
                .as_str()
                .unwrap()
                .to_owned();
            for number in 0..3 {
                let name = name.clone();
                let race = Fault::run(move |api| {
                    api.edit("persistentvolumes", "", &name, |pv| {
                        pv["metadata"]["annotations"]["example.com/touched"] = number.to_string().into();
                    });
                });
                world.api.inject(race.verb(verb).resource("persistentvolumes"));
            }
            world.lives_on("disk1").await?;
        }
        Ok(())
    });
}

#[test]
fn answers_that_are_lost_change_nothing() {
    as_users("lost", &["full", "classic"], async |world: Rc<World>| {
        world.start();
        for number in 0..3 {
            let entry = format!("disk{number}");
            // The create; what it made is recognised.
            world
                .api
                .inject(Fault::lose_reply().verb("create").resource("persistentvolumes"));
            world.tmpfs(&entry)?;
            let pv = world.available(&entry, &Value::Null).await?;
            // Each of the next writes, one after the other: marks, delete, the finalizer.
            for verb in ["patch", "delete"] {
                let fault = Fault::lose_reply()
                    .verb(verb)
                    .resource("persistentvolumes")
                    .times(1 + number);
                world.api.inject(fault);
            }
            let claim = world.bind(&pv)?;
            std::fs::write(world.entry(&entry).join("file"), "secret")?;
            world.pass_time(MINUTE).await;
            world.api.delete_claim("default", &claim)?;
            world.available(&entry, &pv["metadata"]["uid"]).await?;
            world.is_clean(&entry)?;
            world.api.clear_faults();
            world.lives_on(&entry).await?;
            // The withdrawal.
            for verb in ["patch", "delete"] {
                world
                    .api
                    .inject(Fault::lose_reply().verb(verb).resource("persistentvolumes"));
            }
            testkit::mounts::unmount(&world.entry(&entry))?;
            world
                .until("withdrawn", |world| world.pv(&entry).is_none().then_some(()))
                .await?;
            world.api.clear_faults();
            world.tmpfs(&entry)?;
            world.lives_on(&entry).await?;
        }
        Ok(())
    });
}

#[test]
fn the_answer_to_the_last_write_is_lost() {
    // The one that lets the PV go: the removal of the finalizer, or the delete.
    as_users("last_write", &["full", "classic"], async |world: Rc<World>| {
        world.tmpfs("disk1")?;
        world.start();
        let pv = world.available("disk1", &Value::Null).await?;
        let name = pv["metadata"]["name"].as_str().unwrap().to_owned();
        let claim = world.bind(&pv)?;
        std::fs::write(world.entry("disk1").join("file"), "secret")?;
        world.pass_time(MINUTE).await;
        let last = if world.user == "full" { "patch" } else { "delete" };
        world.api.inject(
            Fault::lose_reply()
                .verb(last)
                .resource("persistentvolumes")
                .named(&name),
        );
        world.api.delete_claim("default", &claim)?;
        world.available("disk1", &pv["metadata"]["uid"]).await?;
        world.is_clean("disk1")?;
        world.lives_on("disk1").await
    });
}

#[test]
fn a_permission_that_is_revoked_holds_what_needs_it_until_it_is_back() {
    as_users("revoked", &["full"], async |world: Rc<World>| {
        world.tmpfs("disk1")?;
        world.tmpfs("disk2")?;
        world.start();
        let pv = world.available("disk1", &Value::Null).await?;
        world.available("disk2", &Value::Null).await?;
        let revoked = Permissions::full().deny(&["patch", "update"], &["persistentvolumes"]);
        world.api.set_permissions("full", revoked);
        let claim = world.bind(&pv)?;
        std::fs::write(world.entry("disk1").join("file"), "secret")?;
        world.pass_time(MINUTE).await;
        world.api.delete_claim("default", &claim)?;
        world.event("not permitted").await?;
        world.pass_time(MINUTE).await;
        let held = world.pv("disk1").unwrap();
        ensure!(held["metadata"]["uid"] == pv["metadata"]["uid"], "published again");
        let metrics = world.get("/metrics").await?;
        ensure!(
            metrics.contains("volumes_held{reason=\"not-permitted\"} 1"),
            "{metrics}"
        );
        // New volumes are published as the classic program does.
        world.tmpfs("disk3")?;
        let third = world.available("disk3", &Value::Null).await?;
        let ours = json!(local_volume_provisioner::names::FINALIZER);
        ensure!(!third["metadata"]["finalizers"].as_array().unwrap().contains(&ours));
        world.api.set_permissions("full", Permissions::full());
        world.available("disk1", &pv["metadata"]["uid"]).await?;
        world.is_clean("disk1")?;
        for entry in ["disk1", "disk2", "disk3"] {
            world.lives_on(entry).await?;
        }
        Ok(())
    });
}
