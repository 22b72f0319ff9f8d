//! `uninstall`: takes our finalizer off the PVs of a cluster.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::Client;
use kube::api::{Api, ListParams};
use kube::runtime::wait::await_condition;

use super::table::align;
use crate::api::{self, WriteError};
use crate::cluster::{Phase, Pv, Use};
use crate::names;
use crate::plan::{PvPatch, PvRef};

#[derive(Debug, Args)]
#[command(
    after_help = "Volumes that were used and are being deleted hold a former tenant's data until they are scrubbed. They are listed and left, and their PVs stay Terminating, unless --wait or --dirty says otherwise. Safe to run again."
)]
pub(super) struct UninstallArgs {
    /// The cluster; default: KUBECONFIG, or the Pod's own
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Wait until the daemons have scrubbed what is to be scrubbed
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = super::duration, requires = "wait")]
    timeout: Duration,
    /// What to do with volumes that still have to be scrubbed; release: I say they are clean
    #[arg(long, value_name = "WHAT", default_value = "leave", conflicts_with = "wait")]
    dirty: Dirty,
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Dirty {
    Leave,
    Release,
}

pub(super) fn run(args: &UninstallArgs) -> anyhow::Result<ExitCode> {
    super::runtime()?.block_on(async {
        let client = match &args.kubeconfig {
            Some(path) => api::connect_by(path).await?,
            None => api::connect().await?,
        };
        uninstall(args, &client).await
    })
}

async fn uninstall(args: &UninstallArgs, client: &Client) -> anyhow::Result<ExitCode> {
    // Without --wait only what changes under our hands is tried again, for a while.
    let patience = if args.wait {
        args.timeout
    } else {
        Duration::from_secs(60)
    };
    let deadline = Instant::now() + patience;
    let mut waited = false;
    loop {
        let found = match marked(client).await {
            // Who waits for an hour waits for an API server that restarts.
            Err(_) if waited && Instant::now() < deadline => {
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
            found => found?,
        };
        let pass = pass(args, client, found).await;
        if pass.taken > 0 {
            let done = if args.dry_run { "would be taken" } else { "taken" };
            println!(
                "finalizer {} {done} off {} PersistentVolumes",
                names::FINALIZER,
                pass.taken
            );
        }
        // What has changed meanwhile, or what a daemon has made since, is looked at once more.
        if !args.dry_run && pass.taken + pass.changed > 0 && Instant::now() < deadline {
            continue;
        }
        let over = !args.wait || args.dry_run || Instant::now() >= deadline;
        if pass.dirty.is_empty() || over {
            return end(args, &pass);
        }
        if !waited {
            tell(args, &pass.dirty);
            waited = true;
        }
        let first = settled(client, &pass.dirty[0]);
        tokio::time::timeout_at(deadline.into(), first).await.ok();
    }
}

/// How often is asked where watching fails: scrubs take seconds to hours, so that costs nobody anything.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What one look at all PVs has come to.
#[derive(Default)]
struct Pass {
    taken: usize,
    changed: usize,
    dirty: Vec<Pv>,
    refused: Vec<String>,
}

async fn pass(args: &UninstallArgs, client: &Client, found: Vec<Pv>) -> Pass {
    let mut pass = Pass::default();
    for pv in found {
        if keeps_data(&pv) && (args.dirty == Dirty::Leave || pv.phase == Phase::Bound) {
            pass.dirty.push(pv);
            continue;
        }
        match take_off(args, client, &pv).await {
            Ok(()) => pass.taken += 1,
            // It has changed or gone meanwhile: the next pass sees how it is.
            Err(WriteError::Conflict | WriteError::Absent) => {
                println!("PV {} has changed meanwhile", pv.name);
                pass.changed += 1;
            }
            // A pod may be permitted to change the PVs of its own node only: the others' do not stop it.
            Err(err) => pass.refused.push(format!("PV {}: {err}", pv.name)),
        }
    }
    pass
}

/// The last words, by what the last pass has left.
fn end(args: &UninstallArgs, pass: &Pass) -> anyhow::Result<ExitCode> {
    if !pass.dirty.is_empty() {
        tell(args, &pass.dirty);
    }
    for refused in &pass.refused {
        eprintln!("cannot take the finalizer off {refused}");
    }
    if !pass.refused.is_empty() {
        bail!(
            "{} PersistentVolumes still carry the finalizer, because they could not be changed",
            pass.refused.len()
        );
    }
    if pass.changed > 0 {
        bail!(
            "{} PersistentVolumes kept changing and still carry the finalizer; run this again",
            pass.changed
        );
    }
    if pass.taken > 0 && !args.dry_run {
        bail!("PersistentVolumes with the finalizer kept being made; stop the DaemonSet and run this again");
    }
    match (pass.dirty.is_empty(), args.dry_run) {
        (true, true) => println!("nothing was changed"),
        (true, false) => println!(
            "no PersistentVolume carries the finalizer {} any more",
            names::FINALIZER
        ),
        (false, _) if args.wait && !args.dry_run => bail!("not scrubbed within --timeout {:?}", args.timeout),
        (false, _) => return Ok(ExitCode::FAILURE),
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until a PV is gone, or does not carry our finalizer any more; or, where it cannot be watched, for a moment.
async fn settled(client: &Client, pv: &Pv) {
    let pvs: Api<PersistentVolume> = Api::all(client.clone());
    let done = |found: Option<&PersistentVolume>| {
        let found = found.map(Pv::from);
        found.is_none_or(|found| found.uid != pv.uid || !found.has_our_finalizer())
    };
    if await_condition(pvs, &pv.name, done).await.is_err() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The PVs that carry our finalizer, of all nodes.
async fn marked(client: &Client) -> anyhow::Result<Vec<Pv>> {
    let pvs: Api<PersistentVolume> = Api::all(client.clone());
    let mut params = ListParams::default().limit(500);
    let mut marked = Vec::new();
    loop {
        let page = pvs.list(&params).await.context("cannot list PersistentVolumes")?;
        marked.extend(page.items.iter().map(Pv::from).filter(Pv::has_our_finalizer));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(marked),
        }
    }
}

/// Whether its end without a scrub would publish a former tenant's data.
fn keeps_data(pv: &Pv) -> bool {
    pv.deleting && pv.usage(false) != Use::Unused
}

/// Takes the finalizer off; a PV that stays is marked, so that no daemon puts it back. One that holds data is marked
/// first: should a daemon still run, the PV that stands in for it then bears the mark too, and not the finalizer.
async fn take_off(args: &UninstallArgs, client: &Client, pv: &Pv) -> Result<(), WriteError> {
    if args.dry_run {
        return Ok(());
    }
    let mut at = PvRef::from(pv);
    let mut patch = PvPatch::default();
    if !pv.deleting || keeps_data(pv) {
        patch.annotations = [(names::LEAVING.to_owned(), Some("true".to_owned()))].into();
    }
    if keeps_data(pv) {
        at = PvRef::from(&Pv::from(&*api::patch(client, &at, &patch).await?));
    }
    let rest = pv.finalizers.iter().filter(|finalizer| *finalizer != names::FINALIZER);
    patch.finalizers = Some(rest.cloned().collect());
    api::patch(client, &at, &patch).await.map(drop)
}

fn tell(args: &UninstallArgs, dirty: &[Pv]) {
    let rows: Vec<Vec<String>> = dirty
        .iter()
        .map(|pv| {
            vec![
                pv.name.clone(),
                pv.hostnames.join(","),
                pv.path
                    .as_ref()
                    .map(|path| path.display().to_string())
                    .unwrap_or_default(),
                pv.claim.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            ]
        })
        .collect();
    let what = match (args.dirty, args.wait) {
        (Dirty::Release, _) => {
            "still bound, so they cannot be clean, and left as they are (delete their claims first):"
        }
        (Dirty::Leave, true) => "still to be scrubbed:",
        (Dirty::Leave, false) => {
            "still to be scrubbed, and left as they are (--wait, or --dirty=release if you know that they are clean):"
        }
    };
    eprintln!("{what}");
    eprint!("{}", align(&["PV", "NODE", "PATH", "LAST CLAIM"], &rows));
}
