//! One volume after the other, mounted, and released by its claim: each by turns with a raw client.

use std::time::{Duration, Instant};

use anyhow::Result;
use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use kube::api::{Api, ListParams};
use local_volume_provisioner::api::connect_by;
use testkit::plane::Plane;

use crate::Scale;
use crate::cluster::Cluster;
use crate::life::{FIRST_PV, USUAL, available, entries, milliseconds};
use crate::program::Binary;
use crate::report::Report;

/// What a start leaves behind has settled by then.
const SETTLE: Duration = Duration::from_secs(3);

const MOUNT_TO_PV: &str = "mount to PV";
const MOUNT_TO_AVAILABLE: &str = "mount to Available";
const RECYCLED: &str = "PVC deleted to Available again, empty volume";

/// The raw client, and what it took.
pub(crate) struct Floor<'a> {
    cluster: Cluster<'a>,
    recycler: tokio::task::JoinHandle<()>,
    first: Duration,
    made: Mounts,
    recycled: Vec<Duration>,
}

/// How long until there was a PV, and until it was Available.
#[derive(Default)]
struct Mounts {
    to_pv: Vec<Duration>,
    to_available: Vec<Duration>,
}

impl Mounts {
    /// Something that leads to one PV more.
    async fn add(&mut self, cluster: &Cluster<'_>, lead: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
        let (mut seen, count) = (cluster.seen.clone(), cluster.seen.now().len() + 1);
        let began = Instant::now();
        lead().await?;
        let there = seen.until("its PV is there", |pvs| pvs.len() == count).await?;
        self.to_pv.push(there - began);
        self.to_available.push(available(cluster, count).await? - began);
        Ok(())
    }
}

impl<'a> Floor<'a> {
    pub(crate) async fn new(plane: &'a Plane, dir: &std::path::Path) -> Result<Self> {
        let cluster = Cluster::new(plane, dir, "floor").await?;
        let began = Instant::now();
        let client = connect_by(&plane.kubeconfig_of("full")?).await?;
        Api::<Node>::all(client.clone()).get(&cluster.name).await?;
        let own = ListParams::default().labels("bench=none");
        Api::<PersistentVolume>::all(client).list(&own).await?;
        cluster.create(vec![cluster.pv("first")?]).await?;
        let first = began.elapsed();
        available(&cluster, 1).await?;
        Ok(Self {
            recycler: cluster.recycle_at_once(),
            cluster,
            first,
            made: Mounts::default(),
            recycled: Vec::new(),
        })
    }

    /// Measures a program that has the usual volumes, by turns with this client.
    pub(crate) async fn measure(
        &mut self,
        cluster: &Cluster<'_>,
        binary: &Binary,
        scale: &Scale,
        report: &mut Report,
        column: usize,
    ) -> Result<()> {
        let mut running = binary.start(&cluster.name, &cluster.kubeconfig(None)?, &cluster.log())?;
        tokio::time::sleep(SETTLE).await;
        let mut mounts = Mounts::default();
        for entry in entries(USUAL, USUAL + scale.mounts) {
            let object = self.cluster.pv(&format!("{entry}-{column}"))?;
            let create = async || self.cluster.create(vec![object]).await;
            self.made.add(&self.cluster, create).await?;
            mounts.add(cluster, async || cluster.mount(&entry)).await?;
        }
        report.times(Some(column), MOUNT_TO_PV, mounts.to_pv, "");
        report.times(Some(column), MOUNT_TO_AVAILABLE, mounts.to_available, "");
        let mut recycled = Vec::new();
        let names = |cluster: &Cluster<'_>| cluster.seen.now().into_keys().take(scale.claims);
        for (theirs, ours) in names(&self.cluster).zip(names(cluster)) {
            self.recycled.push(recycle(&self.cluster, theirs).await?);
            recycled.push(recycle(cluster, ours).await?);
        }
        report.times(Some(column), RECYCLED, recycled, "");
        running.check()
    }

    pub(crate) async fn report(self, report: &mut Report) -> Result<()> {
        self.recycler.abort();
        let what = "one request of each kind, and a create";
        report.floor(FIRST_PV, "ms", milliseconds(self.first), what);
        report.times(None, MOUNT_TO_PV, self.made.to_pv, "a create, seen by a watch");
        let what = "a create, and the controller's answer";
        report.times(None, MOUNT_TO_AVAILABLE, self.made.to_available, what);
        let what = "a client that answers every event at once";
        report.times(None, RECYCLED, self.recycled, what);
        self.cluster.clear().await
    }
}

/// A claim is bound to a PV, and deleted.
async fn recycle(cluster: &Cluster<'_>, name: String) -> Result<Duration> {
    let name = [name];
    cluster.bind(&name).await?;
    cluster.recycle(&name).await
}
