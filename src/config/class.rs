//! One class of `storageClassMap`, and what the classes must not share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::cleaner::Cleaner;
use super::names::check_object_name;
use super::path::clean;
use super::raw::{Fault, Fields, Raw};
use super::selector;
use super::{Class, VolumeMode};
use crate::name_pattern::NamePattern;

const FIELDS: &[&str] = &[
    "hostDir",
    "mountDir",
    "volumeMode",
    "accessMode",
    "fsType",
    "namePattern",
    "blockCleanerCommand",
    "selector",
];

const ACCESS_MODES: &[&str] = &["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"];

/// Reads one class; every fault of it is reported, and any of them makes it unusable.
pub(super) fn read(name: &str, raw: &Raw<'_>, warnings: &mut Vec<Fault>) -> Result<Class, Vec<Fault>> {
    let fields = raw.fields(FIELDS, warnings).map_err(|fault| vec![fault])?;
    let mut faults = Vec::new();
    if let Err(why) = check_object_name(name) {
        faults.push(raw.fault(format!("{name:?} cannot be the name of a StorageClass: {why}")));
    }
    let class = Class {
        name: name.to_owned(),
        host_dir: keep(directory(&fields, "hostDir"), &mut faults),
        mount_dir: keep(directory(&fields, "mountDir"), &mut faults),
        volume_mode: keep(volume_mode(&fields), &mut faults),
        access_mode: keep(access_mode(&fields), &mut faults),
        fs_type: keep(fields.non_empty("fsType"), &mut faults),
        name_pattern: keep(name_pattern(&fields, warnings), &mut faults),
        block_cleaner_command: keep(cleaner_command(&fields, warnings), &mut faults),
        selector: keep(
            fields
                .items("selector")
                .and_then(|terms| selector::terms(&terms, warnings)),
            &mut faults,
        ),
    };
    if faults.is_empty() { Ok(class) } else { Err(faults) }
}

fn keep<T: Default>(result: Result<T, Fault>, faults: &mut Vec<Fault>) -> T {
    result.unwrap_or_else(|fault| {
        faults.push(fault);
        T::default()
    })
}

fn directory(fields: &Fields<'_>, name: &str) -> Result<PathBuf, Fault> {
    let Some(path) = fields.non_empty(name)? else {
        return Err(fields.fault(name, format!("{name} is required: name an absolute path")));
    };
    if !path.starts_with('/') {
        return Err(fields.fault(name, format!("{path:?} is not an absolute path")));
    }
    if path.contains('\0') {
        return Err(fields.fault(name, format!("{path:?} contains a NUL character")));
    }
    let cleaned = clean(&path);
    if cleaned == "/" {
        return Err(fields.fault(name, "the root directory cannot be a discovery directory"));
    }
    Ok(PathBuf::from(cleaned))
}

fn volume_mode(fields: &Fields<'_>) -> Result<VolumeMode, Fault> {
    match fields.text("volumeMode")?.as_str() {
        "" | "Filesystem" => Ok(VolumeMode::Filesystem),
        "Block" => Ok(VolumeMode::Block),
        other => Err(fields.fault(
            "volumeMode",
            format!("unsupported volume mode {other:?}: use Filesystem or Block"),
        )),
    }
}

fn access_mode(fields: &Fields<'_>) -> Result<String, Fault> {
    let mode = fields
        .non_empty("accessMode")?
        .unwrap_or_else(|| ACCESS_MODES[0].to_owned());
    if ACCESS_MODES.contains(&mode.as_str()) {
        return Ok(mode);
    }
    let message = format!(
        "unsupported access mode {mode:?}: use one of {}",
        ACCESS_MODES.join(", ")
    );
    Err(fields.fault("accessMode", message))
}

fn name_pattern(fields: &Fields<'_>, warnings: &mut Vec<Fault>) -> Result<NamePattern, Fault> {
    let Some(source) = fields.non_empty("namePattern")? else {
        return Ok(NamePattern::default());
    };
    let pattern = NamePattern::parse(&source).map_err(|why| fields.fault("namePattern", why))?;
    if source.split(',').any(|glob| glob.trim() != glob) {
        warnings.push(fields.fault(
            "namePattern",
            format!("{source:?} has spaces around a glob, which are part of it: such a glob matches no usual name"),
        ));
    }
    Ok(pattern)
}

fn cleaner_command(fields: &Fields<'_>, warnings: &mut Vec<Fault>) -> Result<Option<Vec<String>>, Fault> {
    const NAME: &str = "blockCleanerCommand";
    let Some(raw) = fields.get(NAME) else {
        return Ok(None);
    };
    let command = raw.texts()?;
    match Cleaner::parse(&command).map_err(|why| raw.fault(why))? {
        Cleaner::Quick => warnings.push(raw.fault(
            "it removes signatures only: the next user of a block volume can read what the last one wrote; use zero instead",
        )),
        Cleaner::Fsclean => warnings.push(raw.fault("it does not scrub block devices; use zero for those")),
        _ => {}
    }
    Ok(Some(command))
}

/// Lets classes in, one after the other, unless one shares directories with an earlier one.
///
/// Discovery directories must be distinct: a disk must not become a volume of two classes.
pub(super) fn admit(classes: impl IntoIterator<Item = Class>) -> (BTreeMap<String, Class>, Vec<Conflict>) {
    let mut admitted: BTreeMap<String, Class> = BTreeMap::new();
    let mut by_host_dir: BTreeMap<PathBuf, String> = BTreeMap::new();
    let mut by_mount_dir: BTreeMap<PathBuf, String> = BTreeMap::new();
    let mut conflicts = Vec::new();
    for class in classes {
        // No mountDir that was let in contains another one, so one around or inside of this one stands next to it in the
        // order of paths.
        let (host_dir, mount_dir) = (&class.host_dir, &class.mount_dir);
        let near = [
            by_host_dir.get(host_dir),
            by_mount_dir
                .range(..=mount_dir.clone())
                .next_back()
                .map(|(_, name)| name),
            by_mount_dir.range(mount_dir.clone()..).next().map(|(_, name)| name),
        ];
        let found = near
            .into_iter()
            .flatten()
            .filter_map(|name| admitted.get(name))
            .find_map(|earlier| conflict(&class, earlier));
        match found {
            Some((field, message)) => conflicts.push(Conflict {
                class: class.name,
                field,
                message,
            }),
            None => {
                by_host_dir.insert(class.host_dir.clone(), class.name.clone());
                by_mount_dir.insert(class.mount_dir.clone(), class.name.clone());
                admitted.insert(class.name.clone(), class);
            }
        }
    }
    (admitted, conflicts)
}

/// The fault of one field of a class, which may be absent.
pub(super) fn fault_of(raw: &Raw<'_>, field: &str, message: String) -> Fault {
    match raw.fields(FIELDS, &mut Vec::new()) {
        Ok(fields) => fields.fault(field, message),
        Err(fault) => fault,
    }
}

/// Why a class cannot live beside another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Conflict {
    /// The class that was not let in.
    pub(super) class: String,
    /// `hostDir` or `mountDir`.
    pub(super) field: &'static str,
    /// What is wrong and what to do.
    pub(super) message: String,
}

fn conflict(class: &Class, earlier: &Class) -> Option<(&'static str, String)> {
    let other = &earlier.name;
    if class.host_dir == earlier.host_dir {
        let dir = class.host_dir.display();
        return Some((
            "hostDir",
            format!("{dir} is the hostDir of class {other:?} too: give each class its own"),
        ));
    }
    let (mine, theirs) = (&class.mount_dir, &earlier.mount_dir);
    let (dir, their_dir) = (mine.display(), theirs.display());
    let message = if mine == theirs {
        format!("{dir} is the mountDir of class {other:?} too: give each class its own")
    } else if is_inside(mine, theirs) {
        format!("{dir} lies inside of {their_dir}, the mountDir of class {other:?}: put them side by side")
    } else if is_inside(theirs, mine) {
        format!("{dir} contains {their_dir}, the mountDir of class {other:?}: put them side by side")
    } else {
        return None;
    };
    Some(("mountDir", message))
}

/// Pairs of classes of which the first's hostDir lies inside of the second's, which is the nearest one around it.
pub(super) fn nested_host_dirs(classes: &BTreeMap<String, Class>) -> Vec<(&Class, &Class)> {
    let mut sorted: Vec<&Class> = classes.values().collect();
    sorted.sort_by(|a, b| a.host_dir.cmp(&b.host_dir));
    let mut pairs = Vec::new();
    // What lies inside of a directory follows it in the order of paths: the ones around this one.
    let mut around: Vec<&Class> = Vec::new();
    for class in sorted {
        while around
            .pop_if(|outer| !is_inside(&class.host_dir, &outer.host_dir))
            .is_some()
        {}
        if let Some(outer) = around.last() {
            pairs.push((class, *outer));
        }
        around.push(class);
    }
    pairs
}

fn is_inside(inner: &Path, outer: &Path) -> bool {
    inner != outer && inner.starts_with(outer)
}
