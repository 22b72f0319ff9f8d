//! Storage that a tenant's data can be seen on, whatever becomes of its mounts, and who watches over it.

// Each test binary uses what it needs.
#![allow(dead_code)]

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;
use kube::runtime::watcher::{self, Event, watcher};
use testkit::mounts::{self, LoopDevice};

use crate::node::{Node, names, phase};

/// What a tenant writes.
const SECRET: &[u8; 16] = b"a tenant's data!";
/// Files and directories of one tenant: enough for a removal to have a middle.
const FILES: [&str; 5] = ["secret", "dir/secret", "dir/deep/secret", ".hidden/secret", "zz"];

/// One volume of a test's node.
pub struct Volume {
    pub node: Rc<Node>,
    pub class: String,
    pub entry: String,
    pub storage: Storage,
}

pub enum Storage {
    /// A directory, which is bind-mounted at the entry: it is there whether it is mounted or not.
    Directory(RefCell<PathBuf>),
    Device(LoopDevice),
}

/// A tmpfs for the storage of a node, so that flushing it waits for nobody else's disk.
fn pool(node: &Node) -> Result<PathBuf> {
    let pool = node.path("pool");
    if !pool.exists() {
        mounts::tmpfs(&pool, POOL_BYTES)?;
    }
    Ok(pool)
}

/// The size of the file system that the directories of a node are on, which is the capacity of their PVs.
pub const POOL_BYTES: u64 = 512 << 20;

/// A new directory of the pool.
pub fn directory(node: &Node) -> Result<PathBuf> {
    let pool = pool(node)?;
    let path = pool.join(format!("directory{}", std::fs::read_dir(&pool)?.count()));
    std::fs::create_dir(&path)?;
    Ok(path)
}

impl Volume {
    /// A directory, mounted at the entry of a class.
    pub fn directory(node: &Rc<Node>, class: &str, entry: &str) -> Result<Rc<Self>> {
        let source = directory(node)?;
        let volume = Self::of(node, class, entry, Storage::Directory(source.into()));
        std::fs::create_dir(volume.path())?;
        volume.mount()?;
        Ok(volume)
    }

    /// A device of this size in bytes, linked to from the entry of a class.
    pub fn device(node: &Rc<Node>, class: &str, entry: &str, bytes: u64) -> Result<Rc<Self>> {
        let device = Self::device_of(node, &format!("{class}-{entry}.img"), bytes)?;
        std::os::unix::fs::symlink(device.path(), node.entry(class, entry))?;
        Ok(Self::of(node, class, entry, Storage::Device(device)))
    }

    /// A device with a file of this name behind it.
    pub fn device_of(node: &Node, file: &str, bytes: u64) -> Result<LoopDevice> {
        LoopDevice::with_file(&pool(node)?.join(file), bytes)
    }

    /// This storage, neither mounted nor linked to.
    pub fn of(node: &Rc<Node>, class: &str, entry: &str, storage: Storage) -> Rc<Self> {
        Rc::new(Self {
            node: Rc::clone(node),
            class: class.to_owned(),
            entry: entry.to_owned(),
            storage,
        })
    }

    /// Where the provisioner finds it.
    pub fn path(&self) -> PathBuf {
        self.node.entry(&self.class, &self.entry)
    }

    /// `Block` or `Filesystem`.
    pub fn mode(&self) -> &'static str {
        match self.storage {
            Storage::Directory(_) => "Filesystem",
            Storage::Device(_) => "Block",
        }
    }

    /// Mounts a directory at its entry; links a device to it.
    pub fn mount(&self) -> Result<()> {
        match &self.storage {
            Storage::Directory(source) => mounts::bind(&source.borrow(), &self.path()),
            Storage::Device(device) => Ok(std::os::unix::fs::symlink(device.path(), self.path())?),
        }
    }

    /// The other way round.
    pub fn unmount(&self) -> Result<()> {
        match &self.storage {
            Storage::Directory(_) => mounts::unmount(&self.path()),
            Storage::Device(_) => Ok(std::fs::remove_file(self.path())?),
        }
    }

    /// Writes a tenant's data.
    pub fn soil(&self) -> Result<()> {
        match &self.storage {
            Storage::Directory(source) => {
                for name in FILES {
                    let file = source.borrow().join(name);
                    std::fs::create_dir_all(file.parent().context("no parent")?)?;
                    std::fs::write(file, SECRET)?;
                }
            }
            Storage::Device(device) => {
                let mut file = File::options().read(true).write(true).open(device.path())?;
                for offset in places(&file)? {
                    file.seek(SeekFrom::Start(offset))?;
                    file.write_all(SECRET)?;
                }
                file.sync_all()?;
            }
        }
        Ok(())
    }

    /// What is left of a tenant's data.
    pub fn left(&self) -> Result<Vec<String>> {
        match &self.storage {
            Storage::Directory(source) => Ok(names(&source.borrow())),
            Storage::Device(device) => {
                let mut file = File::open(device.path())?;
                let mut left = Vec::new();
                for offset in places(&file)? {
                    let mut bytes = [0; SECRET.len()];
                    file.seek(SeekFrom::Start(offset))?;
                    file.read_exact(&mut bytes)?;
                    if bytes != [0; SECRET.len()] {
                        left.push(format!("bytes at {offset}"));
                    }
                }
                Ok(left)
            }
        }
    }

    /// An error unless all of a tenant's data is there.
    pub fn intact(&self) -> Result<()> {
        let what = || format!("the data of {} is lost", self.entry);
        match &self.storage {
            Storage::Directory(source) => {
                for name in FILES {
                    let found = std::fs::read(source.borrow().join(name)).with_context(what)?;
                    ensure!(found == SECRET, what());
                }
            }
            Storage::Device(device) => {
                let found = self.left()?.len();
                ensure!(found == places(&File::open(device.path())?)?.len(), what());
            }
        }
        Ok(())
    }

    /// Zeroes a device, as a cleaning Job does.
    pub fn zero(&self) -> Result<()> {
        let Storage::Device(device) = &self.storage else {
            bail!("it is no device")
        };
        let mut file = File::options().write(true).open(device.path())?;
        let size = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(0))?;
        std::io::copy(&mut std::io::repeat(0).take(size), &mut file)?;
        Ok(file.sync_all()?)
    }

    /// Its PVs, whatever they are called.
    pub async fn pvs(&self) -> Result<Vec<PersistentVolume>> {
        let all = self.node.pvs().list(&kube::api::ListParams::default()).await?;
        Ok(all.items.into_iter().filter(|pv| self.is_of(pv)).collect())
    }

    fn is_of(&self, pv: &PersistentVolume) -> bool {
        let local = pv.spec.as_ref().and_then(|spec| spec.local.as_ref());
        local.is_some_and(|local| Path::new(&local.path) == self.path())
    }
}

/// Where a tenant writes on a device: at its ends, in its middle, and in what a wipe takes for another chunk.
fn places(device: &File) -> Result<Vec<u64>> {
    let mut device = device;
    let size = device.seek(SeekFrom::End(0))?;
    let mut places = vec![0, 5 << 20, size / 2, 70 << 20, size - 4096];
    places.retain(|place| *place < size);
    Ok(places)
}

/// Sees every state of a volume's PVs, and whether anybody could have been given it with a tenant's data on it.
pub struct Guard {
    found: Rc<RefCell<Vec<String>>>,
    seen: Rc<Cell<u32>>,
    task: tokio::task::JoinHandle<()>,
}

impl Guard {
    pub fn over(volume: &Rc<Volume>) -> Self {
        let (found, seen) = (Rc::new(RefCell::new(Vec::new())), Rc::new(Cell::new(0)));
        let (volume, notes, count) = (Rc::clone(volume), Rc::clone(&found), Rc::clone(&seen));
        let task = tokio::task::spawn_local(async move {
            let mut events = std::pin::pin!(watcher(volume.node.pvs(), watcher::Config::default()));
            while let Some(event) = events.next().await {
                let Ok(Event::Apply(pv) | Event::InitApply(pv)) = event else {
                    continue;
                };
                if !volume.is_of(&pv) || !is_free(&pv) {
                    continue;
                }
                count.set(count.get() + 1);
                let left = volume.left().unwrap_or_default();
                if left.is_empty() {
                    continue;
                }
                // A watch is late: it may have been bound, and written to, since then.
                if volume
                    .node
                    .pvs()
                    .get_opt(&pv.name_any())
                    .await
                    .is_ok_and(|now| now.is_some_and(|now| is_free(&now) && now.uid() == pv.uid()))
                {
                    notes.borrow_mut().push(format!(
                        "{} was free with {left:?} on it: PV {} ({:?})",
                        volume.entry,
                        pv.name_any(),
                        pv.uid()
                    ));
                }
            }
        });
        Self { found, seen, task }
    }

    /// An error if a tenant's data could have been read by another.
    pub fn check(&self) -> Result<()> {
        ensure!(self.seen.get() > 0, "the PVs were not seen");
        ensure!(self.found.borrow().is_empty(), "{}", self.found.borrow().join("\n"));
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether a claim could be bound to it.
fn is_free(pv: &PersistentVolume) -> bool {
    let claim = pv.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    pv.metadata.deletion_timestamp.is_none()
        && claim.is_none()
        && matches!(phase(pv).as_str(), "" | "Pending" | "Available")
}
