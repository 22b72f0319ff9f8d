//! How a plan is shown.

use std::collections::BTreeSet;

use anyhow::Context;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;

use super::super::table::{Row, align, terminal, with_notes};
use super::Output;
use crate::observed::{Directory, HostView, Observed};
use crate::plan::{Action, Plan, State, Volume};
use crate::status::{advice::advice, printable};

/// Prints every entry, and with a cluster what would be done to it.
pub(super) fn table(plan: &Plan, observed: &Observed, with_cluster: bool) {
    let header = ["CLASS", "ENTRY", "STATE", "PV", "CAPACITY", "REASON"];
    match terminal() {
        Some(width) => print!("{}", with_notes(&header[..5], &noted(plan), width)),
        // One line for each entry, for other programs.
        None => print!("{}", align(&header, &lines(plan))),
    }
    if let HostView::Blind(reason) = &observed.host {
        eprintln!("mounts of pods cannot be seen: {reason}");
    }
    if with_cluster {
        actions(plan);
    }
}

/// Says of each directory that shows nothing why that is. False if one cannot be read.
pub(super) fn directories(observed: &Observed) -> bool {
    let mut readable = true;
    for (key, directory) in &observed.directories {
        let why = match directory {
            Directory::Read(entries) if entries.is_empty() => {
                "it is empty; mount filesystems on directories in it, or put links to block devices there".to_owned()
            }
            Directory::Read(_) => continue,
            Directory::Missing => {
                "it does not exist; make it, or look elsewhere with --host-dir DIRECTORY --class NAME".to_owned()
            }
            Directory::Unreadable(error) => format!("it cannot be read: {error}"),
        };
        readable &= matches!(directory, Directory::Read(_));
        eprintln!("directory {} (class {}): {why}", key.mount_dir.display(), key.class);
    }
    readable
}

fn cells(volume: &Volume) -> Vec<String> {
    vec![
        volume.directory.class.clone(),
        printable(&volume.entry),
        volume.state.word().to_owned(),
        volume.pv.clone().unwrap_or_else(|| "-".into()),
        volume.capacity.clone().unwrap_or_else(|| "-".into()),
    ]
}

fn is_new(volume: &Volume) -> bool {
    matches!(volume.state, State::Available) && !volume.published
}

fn lines(plan: &Plan) -> Vec<Vec<String>> {
    let row = |volume: &Volume| {
        let would = if is_new(volume) {
            Some("to be published".to_owned())
        } else {
            volume.state.reason().or_else(|| volume.warning.clone())
        };
        let mut cells = cells(volume);
        cells.push(would.unwrap_or_default());
        cells
    };
    plan.volumes.iter().map(row).collect()
}

/// For people: what to do comes before why.
fn noted(plan: &Plan) -> Vec<Row> {
    let row = |volume: &Volume| {
        let mut notes = Vec::new();
        if is_new(volume) {
            notes.push(("", "to be published".to_owned()));
        }
        notes.extend(advice(&volume.state).map(|advice| ("do:", advice)));
        notes.extend(volume.state.cause().map(|cause| ("why:", cause)));
        notes.extend(volume.warning.clone().map(|warning| ("note:", warning)));
        Row {
            cells: cells(volume),
            notes,
        }
    };
    plan.volumes.iter().map(row).collect()
}

/// Leaves only what belongs to one class.
pub(super) fn only(class: &str, plan: &mut Plan, observed: &mut Observed) {
    observed.directories.retain(|key, _| key.class == class);
    plan.volumes.retain(|volume| volume.directory.class == class);
    let pvs: BTreeSet<&str> = plan.volumes.iter().filter_map(|volume| volume.pv.as_deref()).collect();
    plan.actions.retain(|action| match action {
        Action::Create(pv) => pvs.contains(pv.name_any().as_str()),
        Action::Patch { pv, .. } | Action::Delete { pv, .. } => pvs.contains(pv.name.as_str()),
        Action::Scrub(order) => pvs.contains(order.pv.name.as_str()),
        Action::CreateJob(order) => pvs.contains(order.pv.as_str()),
        Action::DeleteJob { pv, .. } => pvs.contains(pv.as_str()),
        Action::ReadClaim(_) | Action::AbortScrub { .. } => true,
    });
}

fn actions(plan: &Plan) {
    if plan.actions.is_empty() {
        println!("\nNothing to do to the cluster.");
        return;
    }
    println!("\nTo be done:");
    for action in &plan.actions {
        match action {
            Action::Create(pv) => println!("  create PV {}", pv.name_any()),
            Action::Patch { pv, why, .. } => println!("  patch PV {}: {why}", pv.name),
            Action::Delete { pv, why, .. } => println!("  delete PV {}: {why}", pv.name),
            Action::Scrub(order) => {
                println!(
                    "  scrub {} (PV {})",
                    order.directory.host_dir.join(&order.entry).display(),
                    order.pv.name
                );
            }
            Action::ReadClaim(claim) => println!("  read claim {claim}"),
            Action::CreateJob(order) => println!("  create Job {}", order.job.name_any()),
            Action::DeleteJob { job, why, .. } => println!("  delete Job {}: {why}", job.name),
            Action::AbortScrub { .. } => {}
        }
    }
}

/// The PVs that would be created, as `kubectl apply` takes them.
pub(super) fn objects(plan: &Plan, output: Output) -> anyhow::Result<()> {
    let objects: Vec<&PersistentVolume> = plan
        .actions
        .iter()
        .filter_map(|action| match action {
            Action::Create(pv) => Some(pv.as_ref()),
            _ => None,
        })
        .collect();
    if output == Output::Json {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
        println!("{}", serde_json::to_string_pretty(&list)?);
        return Ok(());
    }
    for object in objects {
        println!(
            "---\n{}",
            serde_saphyr::to_string(object)
                .context("a PV cannot be written as YAML")?
                .trim_end()
        );
    }
    Ok(())
}
