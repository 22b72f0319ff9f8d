//! A node of the control plane with a class and a directory, a watch of its PVs, and raw clients.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use local_volume_provisioner::api::connect_by;
use serde_json::{Value, json};
use testkit::mounts;
use testkit::plane::Plane;
use tokio::sync::watch;

/// So many connections a raw client has.
pub(crate) const CONNECTIONS: usize = 16;
/// Of every wait; what takes longer is not measured.
const DEADLINE: Duration = Duration::from_secs(600);

pub(crate) type Pvs = BTreeMap<String, PersistentVolume>;

/// The PVs of a class, as a watch shows them.
#[derive(Clone)]
pub(crate) struct Seen {
    pvs: Arc<Mutex<Pvs>>,
    changed: watch::Receiver<()>,
}

impl Seen {
    pub(crate) fn now(&self) -> Pvs {
        self.pvs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The moment when a condition holds.
    pub(crate) async fn until(&mut self, what: &str, holds: impl Fn(&Pvs) -> bool) -> Result<Instant> {
        let wait = async {
            loop {
                self.changed.borrow_and_update();
                if holds(&self.pvs.lock().unwrap_or_else(PoisonError::into_inner)) {
                    return anyhow::Ok(Instant::now());
                }
                self.changed.changed().await.context("the watch ended")?;
            }
        };
        match tokio::time::timeout(DEADLINE, wait).await {
            Ok(result) => result,
            Err(_) => bail!("not within {DEADLINE:?}: {what}"),
        }
    }
}

/// A node, its class and what is measured on it.
pub(crate) struct Cluster<'a> {
    pub(crate) plane: &'a Plane,
    /// Of the node, of its class, and of the label of its PVs.
    pub(crate) name: String,
    pub(crate) admin: Client,
    /// Of the program's user: an administrator's requests are neither authorized nor queued.
    raw: Client,
    pub(crate) seen: Seen,
    dir: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl<'a> Cluster<'a> {
    pub(crate) async fn new(plane: &'a Plane, dir: &Path, name: &str) -> Result<Self> {
        plane.create_node(name, name).await?;
        plane.create_storage_class(name, "Delete").await?;
        let dir = dir.join(name);
        std::fs::create_dir_all(dir.join("disks"))?;
        let admin = plane.client().await?;
        // It connects as the provisioner does.
        let raw = connect_by(&plane.kubeconfig_of("full")?).await?;
        let (seen, task) = watch_pvs(admin.clone(), name);
        let cluster = Self {
            plane,
            name: name.to_owned(),
            admin,
            raw,
            seen,
            dir,
            task,
        };
        cluster.configure()?;
        Ok(cluster)
    }

    /// Writes the configuration of this class to where programs read it.
    pub(crate) fn configure(&self) -> Result<()> {
        let (name, disks) = (&self.name, self.dir.join("disks"));
        let map = format!("{name}:\n  hostDir: {0}\n  mountDir: {0}\n", disks.display());
        let config = Path::new("/etc/provisioner/config");
        std::fs::write(config.join("storageClassMap"), map)?;
        std::fs::write(config.join("labelsForPV"), format!("bench: {name}\n"))?;
        Ok(())
    }

    /// Mounts an empty tmpfs as a volume.
    pub(crate) fn mount(&self, entry: &str) -> Result<()> {
        mounts::tmpfs(&self.dir.join("disks").join(entry), 16 << 20)
    }

    /// Takes a volume away.
    pub(crate) fn unmount(&self, entry: &str) -> Result<()> {
        mounts::unmount(&self.dir.join("disks").join(entry))
    }

    /// Wakes the program by an inotify event of its directory, of which nothing is changed.
    pub(crate) fn touch(&self) -> Result<()> {
        let disks = self.dir.join("disks");
        let mode = std::fs::metadata(&disks)?.permissions();
        std::fs::set_permissions(&disks, mode).context("set the mode of the directory")
    }

    /// A kubeconfig of the daemon's user, by way of this address if there is one.
    pub(crate) fn kubeconfig(&self, by: Option<std::net::SocketAddr>) -> Result<PathBuf> {
        let path = self.plane.kubeconfig_of("full")?;
        let Some(address) = by else { return Ok(path) };
        let text = std::fs::read_to_string(path)?.replace(self.plane.server(), &format!("https://{address}"));
        let path = self.dir.join("kubeconfig");
        std::fs::write(&path, text)?;
        Ok(path)
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub(crate) fn pvs(&self) -> Api<PersistentVolume> {
        Api::all(self.admin.clone())
    }

    fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.admin.clone(), "default")
    }

    /// A PV of this class as a provisioner would make it.
    pub(crate) fn pv(&self, entry: &str) -> Result<PersistentVolume> {
        let path = self.dir.join("disks").join(entry);
        object(&self.name, &self.name, &format!("{}-{entry}", self.name), &path)
    }

    /// Makes PVs over many connections, new ones as after a start.
    pub(crate) async fn connect_and_create(&self, objects: Vec<PersistentVolume>) -> Result<()> {
        let raw = connect_by(&self.plane.kubeconfig_of("full")?).await?;
        create_by(raw, objects).await
    }

    /// Makes PVs over many connections.
    pub(crate) async fn create(&self, objects: Vec<PersistentVolume>) -> Result<()> {
        create_by(self.raw.clone(), objects).await
    }

    /// PVs that a provisioner on other nodes has made, 20 of each, labelled as ours are for their nodes.
    pub(crate) async fn make_foreign(&self, count: usize) -> Result<()> {
        let objects = (0..count).map(|number| {
            let node = format!("other-node-{}", number / 20);
            let path = format!("/mnt/disks/disk{number}");
            object("other", &node, &format!("foreign-{number}"), Path::new(&path))
        });
        self.create(objects.collect::<Result<_>>()?).await
    }

    /// Changes PVs of other nodes, so many per second, for some time. How long it took.
    pub(crate) async fn change_foreign(&self, count: usize, per_second: u32, time: Duration) -> Result<Duration> {
        let began = Instant::now();
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..(time.as_secs_f64() * f64::from(per_second)) as usize {
            ticks.tick().await;
            let pvs = self.pvs();
            calls.spawn(async move {
                let patch = Patch::Merge(json!({"metadata": {"annotations": {"bench": number.to_string()}}}));
                let name = format!("foreign-{}", number % count);
                pvs.patch(&name, &PatchParams::default(), &patch).await.map(drop)
            });
        }
        while let Some(done) = calls.join_next().await {
            done??;
        }
        Ok(began.elapsed())
    }

    /// Binds a claim to each of these PVs, as if they had been scheduled, and waits until they are Bound.
    pub(crate) async fn bind(&self, names: &[String]) -> Result<()> {
        let claim = |name: &String| {
            let (claims, class, name) = (self.claims(), self.name.clone(), name.clone());
            async move {
                let spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": class, "volumeName": name,
                    "resources": {"requests": {"storage": "1Mi"}}});
                let claim = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec}))?;
                claims.create(&PostParams::default(), &claim).await?;
                anyhow::Ok(())
            }
        };
        let calls = stream::iter(names).map(claim).buffer_unordered(CONNECTIONS);
        calls.try_collect::<Vec<_>>().await.context("create claims")?;
        let bound = |pvs: &Pvs| {
            names
                .iter()
                .all(|name| pvs.get(name).is_some_and(|pv| phase(pv) == "Bound"))
        };
        self.seen.clone().until("the claims are bound", bound).await?;
        Ok(())
    }

    /// Deletes the claims of PVs, and waits until these are Available under other UIDs: how long that took.
    pub(crate) async fn recycle(&self, names: &[String]) -> Result<Duration> {
        let former: BTreeMap<String, Option<String>> = {
            let now = self.seen.now();
            names
                .iter()
                .map(|name| (name.clone(), now.get(name).and_then(ResourceExt::uid)))
                .collect()
        };
        let began = Instant::now();
        let delete = |name: &String| {
            let (claims, name) = (self.claims(), name.clone());
            async move { claims.delete(&name, &DeleteParams::default()).await.map(drop) }
        };
        let calls = stream::iter(names).map(delete).buffer_unordered(CONNECTIONS);
        calls.try_collect::<Vec<_>>().await.context("delete claims")?;
        let again = |pvs: &Pvs| {
            former.iter().all(|(name, uid)| {
                let pv = pvs.get(name);
                pv.is_some_and(|pv| is_free(pv) && pv.uid() != *uid)
            })
        };
        let end = self
            .seen
            .clone()
            .until("the volumes are Available again", again)
            .await?;
        Ok(end - began)
    }

    /// A client that recycles the PVs of this class by answering every event at once, and scrubs nothing.
    pub(crate) fn recycle_at_once(&self) -> tokio::task::JoinHandle<()> {
        let (pvs, mut stream) = (Api::all(self.raw.clone()), stream_of(self.raw.clone(), &self.name));
        tokio::spawn(async move {
            while let Some(event) = stream.next().await {
                let pvs = pvs.clone();
                let event = match event {
                    Ok(event) => event,
                    Err(error) => {
                        eprintln!("bench: the watch failed: {error}");
                        continue;
                    }
                };
                match event {
                    watcher::Event::Apply(pv)
                        if phase(&pv) == "Released" && pv.metadata.deletion_timestamp.is_none() =>
                    {
                        // One that fails is waited for in vain, which says so.
                        tokio::spawn(
                            async move { pvs.delete(&pv.name_any(), &DeleteParams::default()).await.map(drop) },
                        );
                    }
                    watcher::Event::Delete(mut pv) => {
                        pv.metadata.uid = None;
                        pv.metadata.resource_version = None;
                        pv.metadata.deletion_timestamp = None;
                        pv.metadata.finalizers = None;
                        pv.status = None;
                        if let Some(spec) = &mut pv.spec {
                            spec.claim_ref = None;
                        }
                        tokio::spawn(async move { pvs.create(&PostParams::default(), &pv).await.map(drop) });
                    }
                    _ => {}
                }
            }
        })
    }

    /// Takes the volumes and the PVs away, so that the next program begins with nothing. None runs.
    pub(crate) async fn clear(&self) -> Result<()> {
        for entry in std::fs::read_dir(self.dir.join("disks"))? {
            // Not all entries are mounts.
            let _ = mounts::unmount(&entry?.path());
        }
        self.clear_pvs().await
    }

    /// Takes the PVs away. No program runs.
    pub(crate) async fn clear_pvs(&self) -> Result<()> {
        let delete = |(name, pv): (String, PersistentVolume)| {
            let (claims, pvs) = (self.claims(), self.pvs());
            async move {
                // What is gone already is as it shall be.
                if pv.spec.is_some_and(|spec| spec.claim_ref.is_some()) {
                    let _ = claims.delete(&name, &DeleteParams::default()).await;
                }
                let _ = pvs.delete(&name, &DeleteParams::default()).await;
                let bare = Patch::Merge(json!({"metadata": {"finalizers": null}}));
                let _ = pvs.patch(&name, &PatchParams::default(), &bare).await;
            }
        };
        let all = stream::iter(self.seen.now());
        all.for_each_concurrent(CONNECTIONS, delete).await;
        self.seen.clone().until("all PVs are gone", Pvs::is_empty).await?;
        Ok(())
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn create_by(client: Client, objects: Vec<PersistentVolume>) -> Result<()> {
    let pvs: Api<PersistentVolume> = Api::all(client);
    let create = |object: PersistentVolume| {
        let pvs = pvs.clone();
        async move { pvs.create(&PostParams::default(), &object).await.map(drop) }
    };
    let calls = stream::iter(objects).map(create).buffer_unordered(CONNECTIONS);
    calls.try_collect::<Vec<_>>().await.context("create PVs")?;
    Ok(())
}

fn stream_of(
    client: Client,
    name: &str,
) -> stream::BoxStream<'static, watcher::Result<watcher::Event<PersistentVolume>>> {
    let config = watcher::Config::default().labels(&format!("bench={name}"));
    watcher::watcher(Api::all(client), config).boxed()
}

fn watch_pvs(client: Client, name: &str) -> (Seen, tokio::task::JoinHandle<()>) {
    let mut stream = stream_of(client, name);
    let (change, changed) = watch::channel(());
    let pvs: Arc<Mutex<Pvs>> = Arc::default();
    let seen = Seen {
        pvs: Arc::clone(&pvs),
        changed,
    };
    let task = tokio::spawn(async move {
        while let Some(event) = stream.next().await {
            let mut pvs = pvs.lock().unwrap_or_else(PoisonError::into_inner);
            match event {
                Ok(watcher::Event::Apply(pv) | watcher::Event::InitApply(pv)) => drop(pvs.insert(pv.name_any(), pv)),
                Ok(watcher::Event::Delete(pv)) => drop(pvs.remove(&pv.name_any())),
                Ok(watcher::Event::Init) => pvs.clear(),
                Ok(watcher::Event::InitDone) => {}
                Err(error) => eprintln!("bench: the watch failed: {error}"),
            }
            drop(pvs);
            change.send_replace(());
        }
    });
    (seen, task)
}

pub(crate) fn phase(pv: &PersistentVolume) -> &str {
    let status = pv.status.as_ref();
    status.and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Available, and not being deleted.
pub(crate) fn is_free(pv: &PersistentVolume) -> bool {
    phase(pv) == "Available" && pv.metadata.deletion_timestamp.is_none()
}

fn object(class: &str, node: &str, name: &str, path: &Path) -> Result<PersistentVolume> {
    let labels = json!({"bench": class, "local-volume-provisioner/node": node, "kubernetes.io/hostname": node});
    let annotations: Value = json!({
        "pv.kubernetes.io/provisioned-by": format!("local-volume-provisioner-{node}-11111111-2222-3333-4444-555555555555"),
        "local-volume-provisioner/class-directory": "/mnt/disks",
        "local-volume-provisioner/cleaner": "[\"zero\"]",
        "local-volume-provisioner/volume-id": format!("filesystem uuid={name}"),
    });
    let term = json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]});
    let spec = json!({"capacity": {"storage": "16Mi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": class,
        "persistentVolumeReclaimPolicy": "Delete", "local": {"path": path}, "volumeMode": "Filesystem",
        "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}}});
    let metadata = json!({"name": name, "labels": labels, "annotations": annotations});
    Ok(serde_json::from_value(json!({"metadata": metadata, "spec": spec}))?)
}
