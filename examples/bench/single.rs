//! One volume after the other, mounted, and released by its claim: each by turns with a raw client.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use kube::api::{Api, ListParams, PostParams};
use local_volume_provisioner::api::connect_by;
use testkit::plane::Plane;

use crate::Scale;
use crate::cluster::Cluster;
use crate::life::{FIRST_PV, USUAL, available, entries};
use crate::program::Binary;
use crate::report::Report;

/// What a start leaves behind has settled by then.
const SETTLE: Duration = Duration::from_secs(3);
/// How many times the raw client starts.
const STARTS: usize = 5;

const MOUNT_TO_PV: &str = "mount to PV";
const MOUNT_TO_AVAILABLE: &str = "mount to Available";
const RECYCLED: &str = "PVC deleted to Available again, empty volume";

/// What one side took.
#[derive(Default)]
struct Times {
    to_pv: Vec<Duration>,
    to_available: Vec<Duration>,
    recycled: Vec<Duration>,
}

impl Times {
    /// Something that leads to one PV more.
    async fn make(&mut self, cluster: &Cluster<'_>, lead: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
        let (mut seen, count) = (cluster.seen.clone(), cluster.seen.now().len() + 1);
        let began = Instant::now();
        lead().await?;
        let there = seen.until("its PV is there", |pvs| pvs.len() == count).await?;
        self.to_pv.push(there - began);
        self.to_available.push(available(cluster, count).await? - began);
        Ok(())
    }

    /// A claim is bound to a PV, and deleted.
    async fn recycle(&mut self, cluster: &Cluster<'_>, number: usize) -> Result<()> {
        let name: Vec<String> = cluster.seen.now().into_keys().skip(number).take(1).collect();
        cluster.bind(&name).await?;
        self.recycled.push(cluster.recycle(&name).await?);
        Ok(())
    }
}

/// The raw client.
pub(crate) struct Floor<'a> {
    cluster: Cluster<'a>,
    recycler: tokio::task::JoinHandle<()>,
    starts: Vec<Duration>,
    times: Times,
}

impl<'a> Floor<'a> {
    pub(crate) async fn new(plane: &'a Plane, dir: &Path) -> Result<Self> {
        let cluster = Cluster::new(plane, dir, "floor").await?;
        Ok(Self {
            recycler: cluster.recycle_at_once(),
            cluster,
            starts: Vec::new(),
            times: Times::default(),
        })
    }

    /// What it takes to start, and to make one PV.
    async fn start(&mut self, number: usize) -> Result<()> {
        let (cluster, count) = (&self.cluster, self.cluster.seen.now().len() + 1);
        let object = cluster.pv(&format!("first{number}"))?;
        let began = Instant::now();
        let client = connect_by(&cluster.plane.kubeconfig_of("full")?).await?;
        Api::<Node>::all(client.clone()).get(&cluster.name).await?;
        let pvs: Api<PersistentVolume> = Api::all(client);
        pvs.list(&ListParams::default().labels("bench=none")).await?;
        pvs.create(&PostParams::default(), &object).await?;
        self.starts.push(began.elapsed());
        available(cluster, count).await?;
        Ok(())
    }

    async fn make(&mut self, entry: &str) -> Result<()> {
        let object = self.cluster.pv(entry)?;
        let create = async || self.cluster.create(vec![object]).await;
        self.times.make(&self.cluster, create).await
    }

    pub(crate) async fn report(self, report: &mut Report) -> Result<()> {
        self.recycler.abort();
        let what = "connect, get the Node, list PVs, create one; median of 5";
        report.floor_median(FIRST_PV, self.starts, what);
        report.times(None, MOUNT_TO_PV, self.times.to_pv, "a create, seen by a watch");
        let what = "a create, and the controller's answer";
        report.times(None, MOUNT_TO_AVAILABLE, self.times.to_available, what);
        let what = "a client that answers every event at once";
        report.times(None, RECYCLED, self.times.recycled, what);
        self.cluster.clear().await
    }
}

/// Measures a program that has the usual volumes.
pub(crate) async fn measure(
    cluster: &Cluster<'_>,
    binary: &Binary,
    mut floor: Option<&mut Floor<'_>>,
    scale: &Scale,
    report: &mut Report,
    column: usize,
) -> Result<()> {
    if let Some(floor) = &mut floor {
        for number in 0..STARTS {
            floor.start(number).await?;
        }
    }
    let mut running = binary.start(&cluster.name, &cluster.kubeconfig(None)?, &cluster.log())?;
    tokio::time::sleep(SETTLE).await;
    let mut times = Times::default();
    for entry in entries(USUAL, USUAL + scale.mounts) {
        if let Some(floor) = &mut floor {
            floor.make(&entry).await?;
        }
        times.make(cluster, async || cluster.mount(&entry)).await?;
    }
    for number in 0..scale.claims {
        if let Some(floor) = &mut floor {
            floor.times.recycle(&floor.cluster, number).await?;
        }
        times.recycle(cluster, number).await?;
    }
    report.times(Some(column), MOUNT_TO_PV, times.to_pv, "");
    report.times(Some(column), MOUNT_TO_AVAILABLE, times.to_available, "");
    report.times(Some(column), RECYCLED, times.recycled, "");
    running.check()
}
