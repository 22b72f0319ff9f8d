//! What is said about an edit that cannot be used as it is.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Event};
use kube::ResourceExt;
use kube::api::{Api, ListParams, PostParams};
use serde_json::json;
use testkit::plane::{BUILT_IN, Rule};

use crate::node::{DEADLINE, MODES, Node, http_until, in_worlds};

/// Reason and message of the events about an object.
async fn events(node: &Node, kind: &str, name: &str) -> Result<Vec<Event>> {
    let api: Api<Event> = Api::namespaced(node.admin.clone(), "default");
    let fields = format!("involvedObject.kind={kind},involvedObject.name={name}");
    Ok(api.list(&ListParams::default().fields(&fields)).await?.items)
}

async fn told(node: &Node, kind: &str, name: &str, reason: &str, times: usize) -> Result<Vec<Event>> {
    let end = tokio::time::Instant::now() + DEADLINE;
    loop {
        let mut found = events(node, kind, name).await?;
        found.retain(|event| event.reason.as_deref() == Some(reason));
        // What is told again counts on the same event.
        let count: i32 = found.iter().filter_map(|event| event.count).sum();
        let count = usize::try_from(count)?;
        ensure!(count <= times, "told too often: {found:#?}");
        if count == times {
            return Ok(found);
        }
        ensure!(tokio::time::Instant::now() < end, "{times} times {reason}: {found:#?}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

fn problems(count: usize) -> impl Fn(u16, &str) -> bool {
    move |_, body| body.contains(&format!("\nlocal_volume_provisioner_config_problems {count}\n"))
}

#[test]
fn a_problem_is_an_event_on_the_config_map_once_and_so_is_its_end() {
    in_worlds("told_on_config_map", &MODES, async |node: Rc<Node>| {
        let name = format!("{}-config", node.name);
        let maps: Api<ConfigMap> = Api::namespaced(node.admin.clone(), "default");
        let map = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        let map = maps.create(&PostParams::default(), &map).await?;
        node.set(|settings| settings.config_map = Some(name.clone()));
        let mut rules: Vec<Rule<'_>> = BUILT_IN.to_vec();
        rules.push((&[""], &["nodes"], &["get"]));
        if node.patches() {
            // With the role of deploy/kubernetes/rbac.yaml.
            rules.push((&[""], &["persistentvolumes"], &["patch"]));
            rules.push((&[""], &["configmaps"], &["get"]));
        }
        node.plane.user(&name, &rules).await?;
        *node.user.borrow_mut() = Some(name.clone());
        let class = node.class("Delete", "").await?;
        node.tmpfs(&class, "disk1")?;
        let address = node.listen()?;
        node.start().await?;
        let pv = node.available("disk1").await?;

        let broken = format!("# a comment\n{class}:\n  hostDir: relative\n  mountDir: /b\n");
        node.configure("storageClassMap", &broken)?;
        let event = told(&node, "ConfigMap", &name, "ConfigurationProblem", 1)
            .await?
            .remove(0);
        let message = event.message.clone().unwrap_or_default();
        let place = format!("config/storageClassMap:3: storageClassMap.{class}.hostDir: ");
        ensure!(message.contains(&place), "{message}");
        ensure!(message.contains("keeps its last good settings"), "{message}");
        ensure!(event.type_.as_deref() == Some("Warning"));
        ensure!(event.metadata.namespace.as_deref() == Some("default"));
        let uid = event.involved_object.uid.clone();
        ensure!(uid == map.uid().filter(|_| node.patches()), "{uid:?}");
        let component = event.source.and_then(|source| source.component).unwrap_or_default();
        ensure!(component.starts_with(&format!("local-volume-provisioner-{}", node.name)));
        http_until(address, "/metrics", problems(1)).await?;

        // The same, one line below; another key; and the other one mended.
        node.configure("storageClassMap", &format!("\n{broken}"))?;
        node.configure("labelsForPV", "a: [\n")?;
        told(&node, "ConfigMap", &name, "ConfigurationProblem", 2).await?;
        http_until(address, "/metrics", problems(2)).await?;
        node.configure("labelsForPV", "a: b\n")?;
        http_until(address, "/metrics", problems(1)).await?;
        ensure!(
            events(&node, "ConfigMap", &name).await?.len() == 2,
            "it is not good yet"
        );
        // A map that was lost.
        node.edit([("storageClassMap", None)])?;
        let lost = told(&node, "ConfigMap", &name, "ConfigurationProblem", 3).await?;
        let says_how = |event: &Event| event.message.as_ref().is_some_and(|text| text.contains("{}"));
        ensure!(lost.iter().any(says_how), "{lost:#?}");
        node.configure("storageClassMap", &node.settings_of(&class, ""))?;
        let good = told(&node, "ConfigMap", &name, "ConfigurationMended", 1)
            .await?
            .remove(0);
        ensure!(good.type_.as_deref() == Some("Normal"));
        http_until(address, "/metrics", problems(0)).await?;
        // And again.
        node.configure("storageClassMap", &broken)?;
        told(&node, "ConfigMap", &name, "ConfigurationProblem", 4).await?;
        ensure!(node.published().await?["disk1"].uid() == pv.uid());
        Ok(())
    });
}

#[test]
fn without_its_name_the_events_are_on_the_pod_or_the_node() {
    in_worlds("told_elsewhere", &MODES, async |node: Rc<Node>| {
        let class = node.class("Delete", "").await?;
        node.tmpfs(&class, "disk1")?;
        // It is wrong from the start.
        node.configure("minResyncPeriod", "soon")?;
        node.start().await?;
        node.available("disk1").await?;
        told(&node, "Node", &node.name, "ConfigurationProblem", 1).await?;
        node.stop().await?;
        let pod = local_volume_provisioner::settings::Pod {
            name: format!("{}-pod", node.name),
            uid: Some("2b1f1a4e-0000-4000-8000-000000000000".into()),
        };
        node.set(|settings| settings.pod = Some(pod.clone()));
        node.start().await?;
        let event = told(&node, "Pod", &pod.name, "ConfigurationProblem", 1)
            .await?
            .remove(0);
        ensure!(event.involved_object.uid == pod.uid);
        Ok(())
    });
}
