//! The provisioner on a real cluster: real kubelets, containers and controllers, the manifests of `deploy/`.
//!
//! `hack/test` runs these. By hand:
//!
//! ```sh
//! eval "$(hack/cluster up --nodes 2)" && hack/cluster image "$(hack/image)"
//! LVP_E2E_KUBECONFIG=$KUBECONFIG cargo test --test e2e -- --test-threads=1
//! ```
//!
//! Without `LVP_E2E_KUBECONFIG` each test says `SKIPPED:` and passes.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "e2e/harness.rs"]
#[allow(unreachable_pub)] // a test is its own crate
mod harness;

/// One module around all tests, so that a run without a cluster can leave them out by its name.
mod on_a_cluster {
    use std::time::Duration;

    use super::harness::{Cluster, Setup};

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn disks_of_every_node_are_published() {
        let Some(cluster) = Cluster::deploy(Setup::Own) else {
            return;
        };
        for node in cluster.nodes() {
            for disk in ["disk1", "disk2", "disk3"] {
                let pv = cluster.available_pv(&node, &format!("/mnt/local-storage/local/{disk}"));
                let spec = &pv["spec"];
                assert_eq!(spec["storageClassName"], "local");
                assert_eq!(spec["persistentVolumeReclaimPolicy"], "Delete");
                assert_eq!(spec["volumeMode"], "Filesystem");
                let terms = &spec["nodeAffinity"]["required"]["nodeSelectorTerms"];
                assert_eq!(terms[0]["matchExpressions"][0]["key"], "kubernetes.io/hostname");
                assert_eq!(terms[0]["matchExpressions"][0]["values"], serde_json::json!([node]));
            }
        }
        assert_eq!(
            cluster.pvs().len(),
            3 * cluster.nodes().len(),
            "one PV for each disk and no other"
        );
    }

    #[test]
    fn released_volume_is_scrubbed_and_published_again() {
        if let Some(cluster) = Cluster::deploy(Setup::Own) {
            recycle_filesystem(&cluster);
        }
    }

    #[test]
    fn released_volume_is_scrubbed_and_published_again_with_the_classic_rbac() {
        if let Some(cluster) = Cluster::deploy(Setup::Classic) {
            recycle_filesystem(&cluster);
        }
    }

    /// A tenant writes and leaves; the next one finds an empty disk.
    fn recycle_filesystem(cluster: &Cluster) {
        let script = "mkdir -p /data/a/b && echo secret >/data/a/b/file && echo secret >/data/.hidden && \
                      ln -s /etc /data/link && touch /data/done";
        let pv = cluster.run_tenant("tenant", "local", "Filesystem", script);
        let (name, path, node) = (pv.name(), pv.path(), pv.node());
        assert_eq!(
            cluster.on_node(&node, &["cat", &format!("{path}/.hidden"), &format!("{path}/a/b/file")]),
            "secret\nsecret\n",
            "the pod did not write to the disk of its PV"
        );

        let uid = pv.uid();
        cluster.end_tenant("tenant");
        let again = cluster.recycled_pv(&name, &uid);
        assert_eq!(again["spec"]["local"]["path"], path.as_str());
        assert_eq!(
            cluster.on_node(&node, &["find", &path, "-mindepth", "1"]),
            "",
            "the disk is not empty"
        );

        // And it can be used by the next one.
        let next = cluster.run_tenant_on("next", "local", "Filesystem", "test -z \"$(ls -A /data)\"", Some(&node));
        assert_eq!(next.node(), node);
        let (name, uid) = (next.name(), next.uid());
        cluster.end_tenant("next");
        cluster.recycled_pv(&name, &uid);
    }

    #[test]
    fn mounts_come_and_go_while_it_runs() {
        let Some(cluster) = Cluster::deploy(Setup::Own) else {
            return;
        };
        let node = &cluster.nodes()[0];
        let path = "/mnt/local-storage/local/hotplug";
        let mounted = cluster.mount_tmpfs(node, path);
        let pv = cluster.await_some("PV of a new mount", 5 * SECOND, || {
            cluster
                .pv_at(node, path)
                .filter(|pv| pv["status"]["phase"] == "Available")
        });
        assert_eq!(pv["spec"]["capacity"]["storage"], "64Mi");

        drop(mounted);
        // Its directory stays, and is no volume.
        cluster.await_some(
            "the PV's end after the unmount and the grace period",
            15 * SECOND,
            || cluster.pv_at(node, path).is_none().then_some(()),
        );
        cluster.on_node(node, &["rmdir", path]);
    }

    #[test]
    fn directory_that_is_not_mounted_is_never_published() {
        let Some(cluster) = Cluster::deploy(Setup::Own) else {
            return;
        };
        let node = &cluster.nodes()[0];
        let (plain, mark) = ("/mnt/local-storage/local/plain", "/mnt/local-storage/local/mark");
        cluster.on_node(node, &["mkdir", "-p", plain]);
        // Once a mount that was made later has its PV, the directory has been looked at.
        let mounted = cluster.mount_tmpfs(node, mark);
        cluster.await_some("PV of the mount", 5 * SECOND, || cluster.pv_at(node, mark));
        let published = cluster.pv_at(node, plain);
        drop(mounted);
        cluster.await_some("the PV's end", 15 * SECOND, || {
            cluster.pv_at(node, mark).is_none().then_some(())
        });
        cluster.on_node(node, &["rmdir", plain, mark]);
        assert_eq!(published, None);
    }

    #[test]
    fn released_device_is_zeroed_and_published_again() {
        if let Some(cluster) = Cluster::deploy(Setup::Own) {
            let _ = recycle_device(&cluster);
        }
    }

    #[test]
    fn released_device_is_zeroed_and_published_again_with_the_classic_rbac() {
        if let Some(cluster) = Cluster::deploy(Setup::Classic) {
            let _ = recycle_device(&cluster);
        }
    }

    #[test]
    fn released_device_is_zeroed_by_a_job_and_published_again() {
        let Some(cluster) = Cluster::deploy(Setup::Jobs) else {
            return;
        };
        let name = recycle_device(&cluster);
        cluster.await_job(&format!("cleanup-{name}"));
    }

    /// A tenant writes to a raw device; the next one reads zeros. The PV's name.
    fn recycle_device(cluster: &Cluster) -> String {
        let node = &cluster.nodes()[0];
        let device = cluster.attach_device(node, "/mnt/local-storage/raw/dev1");
        let published = cluster.available_pv(node, "/mnt/local-storage/raw/dev1");
        assert_eq!(published["spec"]["volumeMode"], "Block");
        assert_eq!(published["spec"]["capacity"]["storage"], "32Mi");

        // At both ends and in the middle.
        let script = "for at in 0 16 31; do yes secret | head -c 1048576 | dd of=/dev/tenant bs=1M seek=$at conv=notrunc,fsync; done";
        let pv = cluster.run_tenant("raw", "raw", "Block", script);
        assert_eq!(pv.path(), "/mnt/local-storage/raw/dev1");
        assert!(device.secrets() > 0, "the pod did not write to the device of its PV");

        cluster.end_tenant("raw");
        cluster.recycled_pv(&pv.name(), &pv.uid());
        assert_eq!(device.secrets(), 0, "what the tenant wrote is still on the device");
        pv.name()
    }

    #[test]
    fn node_that_was_killed_comes_back_with_the_same_volumes() {
        let Some(cluster) = Cluster::deploy(Setup::Own) else {
            return;
        };
        let node = cluster.nodes().last().unwrap().clone();
        let path = "/mnt/local-storage/local/disk1";
        let before = cluster.available_pv(&node, path);
        cluster.reboot(&node);
        let after = cluster.available_pv(&node, path);
        assert_eq!(
            before["metadata"]["uid"], after["metadata"]["uid"],
            "an unused volume was published anew"
        );
        assert_eq!(cluster.pvs().len(), 3 * cluster.nodes().len());
    }

    #[test]
    fn own_node_policy_lets_the_provisioner_work() {
        let Some(cluster) = Cluster::deploy(Setup::Own) else {
            return;
        };
        let _policy = cluster.apply_own_node_policy();
        recycle_filesystem(&cluster);
    }
}
