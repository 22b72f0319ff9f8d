//! `uninstall`: takes our finalizer off the PVs of a cluster.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::Client;
use kube::api::{Api, ListParams};

use super::table::align;
use crate::api::{self, WriteError};
use crate::cluster::{Pv, Use};
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
    loop {
        let (mut taken, mut changed, mut dirty) = (0, 0, Vec::new());
        for pv in marked(client).await? {
            if keeps_data(&pv) && args.dirty == Dirty::Leave {
                dirty.push(pv);
            } else {
                let done = take_off(args, client, &pv).await?;
                taken += usize::from(done);
                changed += usize::from(!done);
            }
        }
        if taken > 0 {
            let done = if args.dry_run { "would be taken" } else { "taken" };
            println!("finalizer {} {done} off {taken} PersistentVolumes", names::FINALIZER);
        }
        // What has changed meanwhile, or what a daemon has made since, is looked at once more.
        if !args.dry_run && taken + changed > 0 && Instant::now() < deadline {
            continue;
        }
        if args.dry_run && dirty.is_empty() {
            println!("nothing was changed");
            return Ok(ExitCode::SUCCESS);
        }
        if changed > 0 {
            bail!("{changed} PersistentVolumes kept changing and still carry the finalizer; run this again");
        }
        if dirty.is_empty() {
            println!(
                "no PersistentVolume carries the finalizer {} any more",
                names::FINALIZER
            );
            return Ok(ExitCode::SUCCESS);
        }
        if !args.wait || args.dry_run {
            tell(&dirty);
            return Ok(ExitCode::FAILURE);
        }
        if Instant::now() >= deadline {
            tell(&dirty);
            bail!("not scrubbed within --timeout {:?}", args.timeout);
        }
        // Scrubs take seconds to hours: asking once a second costs nobody anything.
        tokio::time::sleep(Duration::from_secs(1)).await;
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

/// Takes the finalizer off; a PV that stays is marked, so that no daemon puts it back.
async fn take_off(args: &UninstallArgs, client: &Client, pv: &Pv) -> anyhow::Result<bool> {
    if args.dry_run {
        return Ok(true);
    }
    let rest = pv
        .finalizers
        .iter()
        .filter(|finalizer| *finalizer != names::FINALIZER)
        .cloned()
        .collect();
    let leaving = (!pv.deleting).then(|| (names::LEAVING.to_owned(), Some("true".to_owned())));
    let patch = PvPatch {
        finalizers: Some(rest),
        annotations: leaving.into_iter().collect(),
        ..Default::default()
    };
    match api::patch(client, &PvRef::from(pv), &patch).await {
        Ok(_) => Ok(true),
        // It has changed or gone meanwhile: the next run sees how it is.
        Err(WriteError::Conflict | WriteError::Absent) => {
            println!("PV {} has changed meanwhile", pv.name);
            Ok(false)
        }
        Err(err) => Err(err).with_context(|| format!("cannot take the finalizer off PV {}", pv.name)),
    }
}

fn tell(dirty: &[Pv]) {
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
    eprintln!(
        "still to be scrubbed, and left as they are (--wait, or --dirty=release if you know that they are clean):"
    );
    eprint!("{}", align(&["PV", "NODE", "PATH", "LAST CLAIM"], &rows));
}
