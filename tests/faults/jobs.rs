//! Jobs that may be read no more.

use std::rc::Rc;
use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use testkit::api::Permissions;

use crate::world::{World, as_users};

const MINUTE: Duration = Duration::from_secs(60);

fn jobs_denied(world: &World) {
    let denied = Permissions::full().deny(&["*"], &["jobs"]);
    world.api.set_permissions(world.user, denied);
    world.api.cut_watches("jobs");
}

#[test]
fn a_job_at_work_is_not_forgotten_with_the_permission_to_read_it() {
    as_users("jobs_denied", &["full"], async |world: Rc<World>| {
        world.tmpfs("disk1")?;
        let job = world.job_at_work("disk1");
        world.start();
        world.readiness(200, "ok").await?;
        jobs_denied(&world);
        world.pass_time(MINUTE).await;
        world.readiness(200, "ok").await?;
        ensure!(world.pv("disk1").is_none(), "published beside a Job");
        // It is asked for as long as something waits for it, and no more often.
        let count = world
            .requests_in(2 * MINUTE, "create", "selfsubjectaccessreviews")
            .await;
        ensure!((4..=14).contains(&count), "asked {count} times in two minutes");
        world.api.finish_job("default", &job, true);
        world.pass_time(MINUTE).await;
        ensure!(world.pv("disk1").is_none(), "nobody can say that it has ended");
        world.api.set_permissions(world.user, Permissions::full());
        world.lives_on("disk1").await
    });
}

#[test]
fn a_node_that_needs_no_jobs_does_not_miss_the_permission() {
    as_users("jobs_not_needed", &["full"], async |world: Rc<World>| {
        world.tmpfs("disk1")?;
        world.start();
        world.available("disk1", &Value::Null).await?;
        jobs_denied(&world);
        world.pass_time(MINUTE).await;
        world.api.clear_requests();
        world.pass_time(5 * MINUTE).await;
        let requests = world.api.requests();
        let other: Vec<_> = requests.iter().filter(|request| request.verb != "watch").collect();
        ensure!(other.is_empty(), "{other:#?}");
        world.lives_on("disk1").await
    });
}

#[test]
fn an_ended_job_that_may_not_be_deleted_is_asked_for_less_and_less_often() {
    as_users("no_delete", &["full"], async |world: Rc<World>| {
        let hour = 60 * MINUTE;
        world.tmpfs("disk1")?;
        let name = local_volume_provisioner::names::classic_pv_name("disk1", "node1", crate::world::CLASS);
        let job = json!({"metadata": {"name": format!("cleanup-{name}"), "labels": {"pv": name, "pvuuid": "of-an-earlier-pv"}},
            "spec": {"template": {"spec": {"restartPolicy": "OnFailure", "nodeSelector": {"kubernetes.io/hostname": "host1"},
                "containers": [{"name": "c", "image": "i"}]}}}});
        world.api.create("jobs", "default", job);
        world.api.finish_job("default", &format!("cleanup-{name}"), true);
        let denied = Permissions::full().deny(&["*"], &["jobs"]);
        let denied = denied.allow(&["get", "list", "watch", "create"], &["jobs"]);
        world.api.set_permissions(world.user, denied);
        world.start();
        world.available("disk1", &Value::Null).await?;
        world.pass_time(10 * MINUTE).await;
        let count = world.requests_in(hour, "delete", "jobs").await;
        ensure!((11..=13).contains(&count), "asked {count} times in an hour");
        // What is done for the PV does not wait for it.
        let pv = world.available("disk1", &Value::Null).await?;
        let claim = world.bind(&pv)?;
        world.pass_time(MINUTE).await;
        world.api.delete_claim("default", &claim)?;
        world.pass_time(MINUTE).await;
        world.available("disk1", &pv["metadata"]["uid"]).await?;
        world.api.set_permissions(world.user, Permissions::full());
        world.pass_time(6 * MINUTE).await;
        ensure!(
            world.api.list("jobs").is_empty(),
            "the Job is deleted once that is permitted"
        );
        world.lives_on("disk1").await
    });
}
