//! Events that cannot be posted, or are too many.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};
use kube::client::ClientBuilder;
use local_volume_provisioner::events::{Letter, Outbox};
use local_volume_provisioner::plan::{Notice, Severity};
use serde_json::Value;
use testkit::api::{Api, Fault};
use testkit::mounts;

use crate::world::{Trouble, World, always, as_users};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn letter(number: usize, message: &str) -> Letter {
    let notice = Notice {
        pv: format!("pv-{number}"),
        uid: format!("uid-{number}"),
        claim: None,
        severity: Severity::Warning,
        reason: "VolumeFailedDelete",
        message: message.into(),
    };
    let source = "local-volume-provisioner-node1-uid";
    Letter::of(&notice, source.into(), "node1".into(), false)
}

fn outbox(api: &Api) -> Outbox {
    let client = ClientBuilder::new(api.service("classic"), "default").build();
    let (outbox, delivery) = Outbox::new(client, |_| {});
    tokio::task::spawn_local(delivery);
    outbox
}

/// Runs a test of the outbox alone, with paused time.
fn alone<F: Future<Output = Result<()>>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build();
    tokio::task::LocalSet::new().block_on(&runtime.unwrap(), test).unwrap();
}

#[test]
fn a_thousand_at_once_are_sent_in_good_time() {
    alone(async {
        let api = Api::new();
        let outbox = outbox(&api);
        for number in 0..1000 {
            ensure!(outbox.put(letter(number, "held")), "no room for {number}");
        }
        let before = tokio::time::Instant::now();
        tokio::time::sleep(SECOND).await;
        let sent = api.list("events").len();
        ensure!((25..=40).contains(&sent), "{sent} in the first second");
        tokio::time::sleep(10 * SECOND).await;
        let more = api.list("events").len() - sent;
        ensure!((95..=105).contains(&more), "{more} in ten seconds");
        api.wait_for("all", 10 * MINUTE, |api| {
            (api.list("events").len() == 1000).then_some(())
        })
        .await?;
        ensure!(before.elapsed() < 2 * MINUTE, "{:?}", before.elapsed());
        Ok(())
    });
}

#[test]
fn there_is_room_for_so_many_and_no_more() {
    alone(async {
        let api = Api::new();
        api.inject(always(Fault::hang().resource("events")));
        let outbox = outbox(&api);
        let room = (0..5000)
            .take_while(|number| outbox.put(letter(*number, "held")))
            .count();
        ensure!(room == 1024, "{room}");
        Ok(())
    });
}

#[test]
fn a_repetition_is_counted_on_the_event_that_there_is() {
    alone(async {
        let api = Api::new();
        let first = outbox(&api);
        let counts = |api: &Api| -> Vec<i64> {
            let events = api.list("events");
            events.iter().map(|event| event["count"].as_i64().unwrap()).collect()
        };
        ensure!(first.put(letter(1, "a")) && first.put(letter(1, "a")) && first.put(letter(1, "b")));
        tokio::time::sleep(SECOND).await;
        let mut now = counts(&api);
        now.sort_unstable();
        ensure!(now == [1, 2], "{now:?}");
        let name = |api: &Api, message: &str| {
            let all = api.list("events").into_iter();
            let mut named = all.filter(|event| event["message"] == message);
            named.next().unwrap()["metadata"]["name"].as_str().unwrap().to_owned()
        };
        let a = name(&api, "a");
        // Somebody else's edit is not lost.
        api.edit("events", "default", &a, |event| event["count"] = 41.into());
        ensure!(first.put(letter(1, "a")));
        tokio::time::sleep(SECOND).await;
        ensure!(api.get("events", "default", &a).unwrap()["count"] == 42);
        // What the server has dropped is made anew.
        api.remove("events", "default", &a);
        ensure!(first.put(letter(1, "a")));
        tokio::time::sleep(SECOND).await;
        ensure!(api.get("events", "default", &a).unwrap()["count"] == 1);
        // Another process finds it: what may have stood all the time is left as it is, what comes anew is counted.
        let second = outbox(&api);
        let stood = Letter {
            may_be_told: true,
            ..letter(1, "a")
        };
        ensure!(second.put(stood));
        tokio::time::sleep(SECOND).await;
        ensure!(api.get("events", "default", &a).unwrap()["count"] == 1);
        ensure!(second.put(letter(1, "a")));
        tokio::time::sleep(SECOND).await;
        ensure!(api.get("events", "default", &a).unwrap()["count"] == 2);
        Ok(())
    });
}

#[test]
fn too_much_about_one_object_is_left_out_and_about_others_is_not() {
    alone(async {
        let api = Api::new();
        let outbox = outbox(&api);
        for number in 0..100 {
            ensure!(outbox.put(letter(1, &format!("cause {number}"))));
        }
        ensure!(outbox.put(letter(2, "held")));
        tokio::time::sleep(MINUTE).await;
        let about = |uid: &str| {
            api.list("events")
                .iter()
                .filter(|event| event["involvedObject"]["uid"] == uid)
                .count()
        };
        ensure!(
            (about("uid-1"), about("uid-2")) == (25, 1),
            "{} {}",
            about("uid-1"),
            about("uid-2")
        );
        Ok(())
    });
}

const TROUBLES: [Trouble; 5] = [
    ("403", || Fault::status(403)),
    ("429", || Fault::status(429)),
    ("500", || Fault::status(500)),
    ("disconnect", Fault::disconnect),
    ("hang", Fault::hang),
];

#[test]
fn events_that_cannot_be_posted_keep_nothing_waiting() {
    as_users("events", &["full", "classic"], async |world: Rc<World>| {
        world.start();
        for (number, (what, fault)) in TROUBLES.into_iter().enumerate() {
            let entry = format!("disk{number}");
            world.api.inject(always(fault().resource("events")));
            world.tmpfs(&entry)?;
            let pv = world.available(&entry, &Value::Null).await?;
            world.bind(&pv)?;
            mounts::unmount(&world.entry(&entry))?;
            world.pass_time(MINUTE).await;
            // It is told on two objects, and both are given up after a while.
            world.pass_time(10 * MINUTE).await;
            let rest = world.requests_in(10 * MINUTE, "create", "events").await;
            ensure!(rest == 0, "{rest} tries later because of {what}");
            let alive = format!("alive{number}");
            world.tmpfs(&alive)?;
            world.lives_on(&alive).await?;
            world.api.clear_faults();
        }
        Ok(())
    });
}

#[test]
fn an_event_gets_through_when_the_server_is_back() {
    as_users("events_late", &["full", "classic"], async |world: Rc<World>| {
        world.start();
        world.tmpfs("disk1")?;
        let pv = world.available("disk1", &Value::Null).await?;
        world.bind(&pv)?;
        world.pass_time(MINUTE).await;
        world.api.inject(always(Fault::status(503).resource("events")));
        mounts::unmount(&world.entry("disk1"))?;
        world.pass_time(20 * SECOND).await;
        ensure!(world.api.list("events").is_empty());
        world.api.clear_faults();
        world.event("a claim is bound to it").await
    });
}
