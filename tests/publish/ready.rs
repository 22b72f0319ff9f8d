//! Ready and alive, and why not.

use std::rc::Rc;
use std::time::Duration;

use anyhow::ensure;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::node::{DEADLINE, GRACE, MODES, Node, http_get, http_until, in_worlds};

const READY: [&str; 3] = ["/ready", "/ready/DiscovererReadyzCheck", "/readyz"];

#[test]
fn a_directory_that_was_never_there_keeps_it_unready_and_its_volumes_published() {
    in_worlds("never_there", &MODES, async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        node.tmpfs(&class, "disk1")?;
        node.start().await?;
        let pv = node.surely_unused("disk1").await?;
        node.stop().await?;
        // The disks' directory comes late, after a reboot.
        std::fs::rename(node.path(&class), node.path("elsewhere"))?;
        let address = node.listen()?;
        node.start().await?;
        for path in READY {
            let why = http_until(address, path, |code, body| {
                code == 503 && body.contains("does not exist")
            })
            .await?;
            let expected = format!(
                "mountDir {} of class {class}: it does not exist",
                node.path(&class).display()
            );
            ensure!(why.contains(&expected), "{why}");
        }
        tokio::time::sleep(GRACE * 3).await; // That it is not withdrawn takes this long to be seen.
        let still = node.published().await?;
        ensure!(still["disk1"].metadata.uid == pv.metadata.uid, "withdrawn unseen");
        std::fs::rename(node.path("elsewhere"), node.path(&class))?;
        for path in READY {
            http_until(address, path, |code, _| code == 200).await?;
        }
        ensure!(node.available("disk1").await?.metadata.uid == pv.metadata.uid);
        // From now on nothing of the kind makes it unready.
        std::fs::rename(node.path(&class), node.path("elsewhere"))?;
        node.until("disk1", "withdrawn", |pv| pv.is_none()).await?;
        ensure!(http_get(address, "/readyz").await?.0 == 200);
        let other = node.free_class_name()?;
        node.plane.create_storage_class(&other, "Delete").await?;
        node.configure_class(&other, "")?;
        node.several_passes().await;
        ensure!(
            http_get(address, "/readyz").await?.0 == 200,
            "an added class made it unready"
        );
        node.tmpfs(&other, "disk2")?;
        node.available("disk2").await?;
        Ok(())
    });
}

/// A server that takes connections and never answers.
#[test]
fn an_api_server_that_does_not_answer_is_waited_for_and_no_reason_to_restart() {
    in_worlds("silent_server", &MODES[..1], async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        node.tmpfs(&class, "disk1")?;
        let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = node.listen()?;
        let mut settings = node.settings.borrow().clone();
        settings.stuck_after = Duration::from_millis(200);
        let config = kube::Config::new(format!("http://{}", silent.local_addr()?).parse()?);
        let client = local_volume_provisioner::api::client(config)?;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let shutdown = async move { drop(stopped.await) };
        let daemon = tokio::task::spawn_local(local_volume_provisioner::run::run(settings, client, shutdown));
        let end = tokio::time::Instant::now() + DEADLINE;
        loop {
            let (code, why) = http_get(address, "/readyz").await.unwrap_or_default();
            ensure!(code != 200, "ready without an API server");
            if let Ok((code, body)) = http_get(address, "/livez").await {
                ensure!(code == 200, "{body}");
            }
            if why.contains("the API server: cannot read the node") {
                break;
            }
            ensure!(tokio::time::Instant::now() < end, "{why}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // It has looked at the node, but who may never be connected keeps no other provisioner out.
        let locked = local_volume_provisioner::lock::Locks::default().acquire(&node.path(&class));
        ensure!(locked.is_ok(), "{locked:?}");
        let _ = stop.send(());
        daemon.await??;
        Ok(())
    });
}

/// The mount table cannot be read to its end: nothing else that a pass does is without a deadline.
#[test]
fn a_pass_that_hangs_is_a_reason_to_restart() {
    in_worlds("stuck_pass", &MODES[..1], async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        node.tmpfs(&class, "disk1")?;
        let table = node.path("table");
        mkfifo(&table, Mode::S_IRWXU)?;
        node.set(|settings| {
            settings.scan.own_mountinfo = table.clone();
            settings.stuck_after = Duration::from_millis(200);
        });
        let address = node.listen()?;
        node.start().await?;
        let said = http_until(address, "/livez", |code, _| code == 500).await?;
        ensure!(said.contains("a pass is stuck"), "{said}");
        // Whoever waits for a writer is let go.
        let writer = std::fs::File::options().read(true).write(true).open(&table)?;
        drop(writer);
        Ok(())
    });
}
