//! From the start on.

use std::rc::Rc;
use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use testkit::api::{Fault, Permissions};

use crate::world::{Trouble, World, always, as_users};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_server_that_does_not_serve_is_waited_for() {
    as_users("away", &["full", "classic"], async |world: Rc<World>| {
        world.tmpfs("disk1")?;
        let troubles: [Trouble; 6] = [
            ("connection broke", Fault::disconnect),
            ("401", || Fault::status(401)),
            ("not permitted", || Fault::status(403)),
            ("500", || Fault::status(500)),
            ("503", || Fault::status(503)),
            ("the API server", Fault::hang),
        ];
        for (reason, fault) in troubles {
            world.api.clear_faults();
            world.api.inject(always(fault()));
            world.start();
            world.readiness(503, reason).await?;
            world.api.clear_requests();
            world.pass_time(MINUTE).await;
            let count = world.api.requests().len();
            // The longest wait is 10 s, and what hangs is given up after 9.
            ensure!((2..=12).contains(&count), "{count} requests in a minute for {reason:?}");
            ensure!(world.get("/livez").await?.starts_with("HTTP/1.1 200"));
            world.stop().await?;
        }
        world.start();
        world.pass_time(MINUTE).await;
        ensure!(world.pv("disk1").is_none(), "published without a server");
        world.api.clear_faults();
        world.readiness(200, "ok").await?;
        world.lives_on("disk1").await
    });
}

#[test]
fn a_slow_server_is_served_slowly() {
    as_users("slow", &["full", "classic"], async |world: Rc<World>| {
        world.tmpfs("disk1")?;
        world.api.inject(always(Fault::delay(Duration::from_secs(8))));
        world.start();
        world.available("disk1", &Value::Null).await?;
        world.api.clear_faults();
        world.lives_on("disk1").await
    });
}

#[test]
fn each_list_is_waited_for_at_a_bearable_pace() {
    as_users("lists", &["full"], async |world: Rc<World>| {
        world.tmpfs("disk1")?;
        // A Job is at work on it, which must not be overlooked because the server was busy at the start.
        let job = world.job_at_work("disk1");
        for (verb, resource) in [
            ("get", "nodes"),
            ("create", "selfsubjectaccessreviews"),
            ("list", "persistentvolumes"),
            ("list", "storageclasses"),
            ("list", "jobs"),
        ] {
            world
                .api
                .inject(always(Fault::status(503).verb(verb).resource(resource)));
            world.start();
            world.readiness(503, "the API server").await?;
            world.pass_time(MINUTE).await;
            let count = world.requests_in(2 * MINUTE, verb, resource).await;
            // PVs are listed by two.
            ensure!((4..=28).contains(&count), "{count} x {verb} {resource} in two minutes");
            ensure!(world.pv("disk1").is_none(), "published without knowing all");
            world.api.clear_faults();
            world.readiness(200, "ok").await?;
            world.pass_time(MINUTE).await;
            ensure!(
                world.pv("disk1").is_none(),
                "published beside a Job, after {verb} {resource}"
            );
            world.stop().await?;
        }
        world.start();
        world.readiness(200, "ok").await?;
        world.api.finish_job("default", &job, true);
        world.lives_on("disk1").await
    });
}

/// What is missing was only taken away if it was there in a look that counts, which the first does not.
#[test]
fn a_directory_that_goes_while_the_server_is_away_takes_no_pv_along() {
    as_users("gone_directory", &["full", "classic"], async |world: Rc<World>| {
        world.tmpfs("disk1")?;
        world.start();
        let pv = world.available("disk1", &Value::Null).await?;
        world.stop().await?;
        world
            .api
            .inject(always(Fault::status(503).verb("get").resource("nodes")));
        world.start();
        world.readiness(503, "the API server").await?;
        world.pass_time(MINUTE).await;
        let elsewhere = world.entry("").with_file_name("elsewhere");
        std::fs::rename(world.entry(""), &elsewhere)?;
        world.api.clear_faults();
        world.readiness(503, "it does not exist; make it").await?;
        // Twice as long as it takes until what has vanished is withdrawn.
        world.pass_time(2 * MINUTE).await;
        std::fs::rename(&elsewhere, world.entry(""))?;
        world.readiness(200, "ok").await?;
        let now = world.available("disk1", &Value::Null).await?;
        ensure!(
            now["metadata"]["uid"] == pv["metadata"]["uid"],
            "its PV went with the directory"
        );
        world.lives_on("disk1").await
    });
}

/// The daemon may be there before its bindings are.
#[test]
fn permissions_that_come_later_count() {
    as_users("granted_later", &["full"], async |world: Rc<World>| {
        world.tmpfs("disk1")?;
        let job = world.job_at_work("disk1");
        world.api.set_permissions("full", Permissions::none());
        world.start();
        world.readiness(503, "not permitted").await?;
        world.pass_time(MINUTE).await;
        world.api.set_permissions("full", Permissions::full());
        world.readiness(200, "ok").await?;
        world.pass_time(MINUTE).await;
        ensure!(world.pv("disk1").is_none(), "the Job was overlooked");
        world.api.finish_job("default", &job, true);
        let pv = world.available("disk1", &Value::Null).await?;
        let finalizers = &pv["metadata"]["finalizers"];
        ensure!(
            finalizers.to_string().contains("local-volume-provisioner/scrub"),
            "{finalizers}"
        );
        Ok(())
    });
}

#[test]
fn a_role_for_jobs_that_comes_a_moment_later_counts() {
    as_users("jobs_granted_later", &["full"], async |world: Rc<World>| {
        world.tmpfs("disk1")?;
        let without_jobs = Permissions::full().deny(&["*"], &["jobs"]);
        world.api.set_permissions("full", without_jobs);
        world.start();
        world.readiness(200, "ok").await?;
        world.api.set_permissions("full", Permissions::full());
        world.pass_time(MINUTE).await;
        let count = world.api.count("watch", "jobs");
        ensure!(count == 2, "{count} watches of Jobs");
        Ok(())
    });
}

#[test]
fn where_permissions_cannot_be_asked_for_they_are_tried() {
    as_users("no_review", &["full", "classic"], async |world: Rc<World>| {
        world.tmpfs("disk1")?;
        let job = world.job_at_work("disk1");
        world.api.inject(always(
            Fault::status(403).verb("create").resource("selfsubjectaccessreviews"),
        ));
        world.start();
        world.readiness(200, "ok").await?;
        world.pass_time(MINUTE).await;
        if world.user == "full" {
            ensure!(world.pv("disk1").is_none(), "the Job was overlooked");
            world.api.finish_job("default", &job, true);
        }
        let pv = world.available("disk1", &Value::Null).await?;
        let ours = local_volume_provisioner::names::FINALIZER;
        let finalizers = pv["metadata"]["finalizers"].as_array().unwrap();
        ensure!(
            finalizers.contains(&json!(ours)) == (world.user == "full"),
            "{finalizers:?}"
        );
        world.lives_on("disk1").await
    });
}

#[test]
fn a_node_that_is_not_registered_yet_is_waited_for() {
    as_users("no_node", &["full", "classic"], async |world: Rc<World>| {
        world.tmpfs("disk1")?;
        world.api.delete("nodes", "", "node1")?;
        world.start();
        world.readiness(503, "cannot read the node: it does not exist").await?;
        world.api.create_node("node1", "host1");
        world.readiness(200, "ok").await?;
        world.lives_on("disk1").await
    });
}

#[test]
fn a_class_with_a_policy_that_volumes_cannot_have_is_not_published() {
    as_users("recycle", &["full"], async |world: Rc<World>| {
        world.tmpfs("disk1")?;
        world.api.edit("storageclasses", "", crate::world::CLASS, |class| {
            class["reclaimPolicy"] = "Recycle".into()
        });
        world.start();
        world.readiness(200, "ok").await?;
        world.pass_time(MINUTE).await;
        ensure!(world.pv("disk1").is_none());
        let metrics = world.get("/metrics").await?;
        ensure!(
            metrics.contains("volumes_held{reason=\"unsupported-policy\"} 1"),
            "{metrics}"
        );
        world.api.edit("storageclasses", "", crate::world::CLASS, |class| {
            class["reclaimPolicy"] = "Delete".into()
        });
        world.lives_on("disk1").await
    });
}
