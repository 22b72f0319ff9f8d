//! `plan`: what the daemon would make of this machine's directories, by the same decisions.

mod print;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::{Node as NodeObject, PersistentVolume};
use k8s_openapi::api::storage::v1::StorageClass as StorageClassObject;
use kube::ResourceExt;
use kube::api::{Api, ListParams};

use crate::cluster::{Mode, Node, Ownership, StorageClass};
use crate::config::{self, Class, Config, VolumeMode};
use crate::memory::Memory;
use crate::name_pattern::NamePattern;
use crate::names;
use crate::observed::{DirectoryKey, Observed};
use crate::plan::{self, Inputs, JobSettings, Limits};
use crate::scan::{ScanSettings, Scanner};
use crate::store::Store;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n    local-volume-provisioner plan --host-dir /mnt/disks --class fast\n    local-volume-provisioner plan --config configmap.yaml\n    local-volume-provisioner plan --config configmap.yaml -o yaml | kubectl apply -f -\n    local-volume-provisioner plan --config configmap.yaml --kubeconfig ~/.kube/config --node-name node1\n\nNothing is changed, on this machine or in the cluster."
)]
pub(super) struct PlanArgs {
    /// A ConfigMap manifest, or a directory as a ConfigMap is mounted
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/etc/provisioner/config",
        conflicts_with = "host_dir"
    )]
    config: PathBuf,
    /// Look at this directory, without any configuration
    #[arg(long, value_name = "DIR", requires = "class")]
    host_dir: Option<PathBuf>,
    /// The class of --host-dir; of a configuration, the only class to show
    #[arg(long, value_name = "NAME")]
    class: Option<String>,
    /// The volumeMode of --host-dir
    #[arg(long, value_name = "MODE", default_value = "Filesystem", value_parser = ["Filesystem", "Block"])]
    volume_mode: String,
    /// The node's name; default: MY_NODE_NAME, or this machine's host name
    #[arg(long, value_name = "NAME", env = "MY_NODE_NAME")]
    node_name: Option<String>,
    /// Also ask this cluster, and show what would be done to it
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The host's mount table, if this runs in a container
    #[arg(long, value_name = "FILE", default_value = "/host/mountinfo")]
    host_mountinfo: PathBuf,
    /// How to print: a table of every entry, or the PVs that would be created
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,
    /// Take a disk for unresponsive when a system call on it takes this long
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = super::duration)]
    syscall_timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Yaml,
    Json,
}

/// A cluster as a plan needs it: the real one, or one that is assumed.
struct Side {
    store: Store,
    node: Node,
    ownership: Ownership,
    mode: Mode,
}

pub(super) fn run(args: &PlanArgs) -> anyhow::Result<ExitCode> {
    let (config, good) = configuration(args)?;
    let node_name = match &args.node_name {
        Some(name) => name.clone(),
        None => std::fs::read_to_string("/proc/sys/kernel/hostname")
            .context("cannot read the host name; use --node-name")?
            .trim()
            .to_owned(),
    };
    let side = match &args.kubeconfig {
        Some(path) => super::runtime()?.block_on(ask(path, &node_name, &config))?,
        None => assume(&node_name, &config),
    };
    let observed = look(args, &config, &side.store);
    let mut plan = plan::plan(&Inputs {
        config: &config,
        broken_classes: &BTreeSet::new(),
        limits: Limits {
            grace_period: Duration::from_secs(60),
            discovery_period: Duration::from_secs(10),
            scrub_concurrency: usize::MAX,
            creations: usize::MAX,
            scrub_retries: u32::MAX,
        },
        mode: side.mode,
        // Without a look at Jobs none is made.
        jobs: JobSettings {
            namespace: "default",
            image: None,
            bytes_per_second: None,
        },
        node: &side.node,
        ownership: &side.ownership,
        observed: &observed,
        cluster: side.store.cluster(),
        memory: &Memory::default(),
        progress: &BTreeMap::new(),
        now: Duration::ZERO,
    });
    let mut observed = observed;
    if let Some(class) = &args.class {
        print::only(class, &mut plan, &mut observed);
    }
    for class in config
        .classes
        .keys()
        .filter(|class| args.class.as_ref().is_none_or(|only| only == *class))
    {
        if !side.store.cluster().storage_classes.contains_key(class) {
            eprintln!(
                "warning: StorageClass {class} does not exist in the cluster; nothing of class {class} can be published"
            );
        }
    }
    match args.output {
        Output::Table => print::table(&plan, &observed, args.kubeconfig.is_some()),
        Output::Yaml | Output::Json => print::objects(&plan, args.output)?,
    }
    let readable = print::directories(&observed);
    Ok(if good && readable {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn configuration(args: &PlanArgs) -> anyhow::Result<(Config, bool)> {
    if let (Some(host_dir), Some(class)) = (&args.host_dir, &args.class) {
        let host_dir = std::path::absolute(host_dir).with_context(|| format!("--host-dir {}", host_dir.display()))?;
        let class = Class {
            name: class.clone(),
            host_dir: host_dir.clone(),
            mount_dir: host_dir,
            volume_mode: if args.volume_mode == "Block" {
                VolumeMode::Block
            } else {
                VolumeMode::Filesystem
            },
            access_mode: "ReadWriteOnce".into(),
            fs_type: None,
            name_pattern: NamePattern::default(),
            block_cleaner_command: None,
            selector: Vec::new(),
        };
        return Ok((
            Config {
                classes: [(class.name.clone(), class)].into(),
                ..Config::default()
            },
            true,
        ));
    }
    let path = &args.config;
    let loaded = if path.is_dir() {
        config::load_directory(path)
    } else {
        config::load_manifest(path)
    };
    for problem in &loaded.problems {
        eprintln!("error: {problem}");
    }
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    let good = loaded.problems.is_empty();
    let mut config = loaded.config;
    if let Some(class) = args.class.as_ref().filter(|class| !config.classes.contains_key(*class)) {
        let classes: Vec<&str> = config.classes.keys().map(String::as_str).collect();
        bail!(
            "there is no class {class} in {}; its classes: {}",
            path.display(),
            if classes.is_empty() {
                "none".into()
            } else {
                classes.join(", ")
            }
        );
    }
    if config.classes.is_empty() {
        bail!(
            "no class to look at in {}; --host-dir DIR --class NAME looks at a directory without any configuration",
            path.display()
        );
    }
    for class in config.classes.values_mut() {
        // Outside of the container the directory is where the node has it.
        if !class.mount_dir.exists() && class.host_dir.exists() {
            class.mount_dir.clone_from(&class.host_dir);
        }
    }
    Ok((config, good))
}

/// Without a cluster: the node is called so, and each class has a StorageClass that deletes.
fn assume(node_name: &str, config: &Config) -> Side {
    let mut node = NodeObject::default();
    node.metadata.name = Some(node_name.to_owned());
    node.metadata.labels = Some([(names::HOSTNAME_LABEL.to_owned(), node_name.to_owned())].into());
    let mut store = Store::default();
    // Its UID is not known: the PVs name the node only, and are taken for its own by the daemon there.
    store.use_node_name_only(true);
    store.node(&node);
    let class = StorageClass {
        reclaim_policy: "Delete".into(),
        mount_options: Vec::new(),
    };
    store.assume_classes(
        config
            .classes
            .keys()
            .map(|name| (name.clone(), class.clone()))
            .collect(),
    );
    side(store, Mode::Classic, node_name)
}

async fn ask(kubeconfig: &Path, node_name: &str, config: &Config) -> anyhow::Result<Side> {
    let client = crate::api::connect_by(kubeconfig).await?;
    let mut store = Store::default();
    let node = Api::<NodeObject>::all(client.clone())
        .get(node_name)
        .await
        .with_context(|| format!("cannot read node {node_name}; name the node with --node-name"))?;
    store.use_node_name_only(config.use_node_name_only);
    store.node(&node);
    let mode = crate::api::mode(&client)
        .await
        .context("cannot ask for the permissions")?;
    store.pvs_restart();
    let pvs: Api<PersistentVolume> = Api::all(client.clone());
    let mut params = ListParams::default().limit(500);
    loop {
        let page = pvs.list(&params).await.context("cannot list PersistentVolumes")?;
        page.items.iter().for_each(|pv| store.pv_listed(pv));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    store.pvs_complete();
    let classes = Api::<StorageClassObject>::all(client)
        .list(&ListParams::default())
        .await
        .context("cannot list StorageClasses")?;
    store.classes(
        &classes
            .items
            .into_iter()
            .map(|class| (class.name_any(), class))
            .collect(),
    );
    if store.ownership().is_none() {
        bail!("node {node_name} has no label kubernetes.io/hostname, which the PVs' node affinity needs");
    }
    Ok(side(store, mode, node_name))
}

fn side(store: Store, mode: Mode, node_name: &str) -> Side {
    let node = store.cluster().node.clone().unwrap_or_default();
    let ownership = store.ownership().cloned().unwrap_or_else(|| Ownership {
        node_name: node_name.to_owned(),
        node_uid: String::new(),
        hostname: node_name.to_owned(),
        node_name_only: true,
    });
    Side {
        store,
        node,
        ownership,
        mode,
    }
}

fn look(args: &PlanArgs, config: &Config, store: &Store) -> Observed {
    let own = ScanSettings::default().own_mountinfo;
    // On the node itself, the own mount table is the host's.
    let host_mountinfo = if args.host_mountinfo.exists() {
        args.host_mountinfo.clone()
    } else {
        own
    };
    let settings = ScanSettings {
        syscall_timeout: args.syscall_timeout,
        host_mountinfo,
        ..ScanSettings::default()
    };
    let published: BTreeSet<PathBuf> = store.cluster().pvs.values().filter_map(|pv| pv.path.clone()).collect();
    let directories = plan::directories(config, store.cluster());
    Scanner::new(settings).scan(&directories, &|key: &DirectoryKey, name: &std::ffi::OsStr| {
        !published.contains(&key.host_dir.join(name))
    })
}
