//! The top-level keys: from bytes to a validated [`Config`], without any I/O.

use std::collections::BTreeMap;

use super::names::{check_label_key, check_label_value};
use super::raw::{Fault, Raw, unknown};
use super::{Config, Loaded, Problem, class, duration, selector, yaml};

const CLASSES: &str = "storageClassMap";

const KEYS: &[&str] = &[
    CLASSES,
    "nodeLabelsForPV",
    "labelsForPV",
    "useAlphaAPI",
    "useJobForCleaning",
    "jobTolerations",
    "minResyncPeriod",
    "useNodeNameOnly",
    "setPVOwnerRef",
    "removeNodeNotReadyTaint",
    "provisionerNotReadyNodeTaintKey",
];

/// Of the labels that the provisioner itself keeps on its PVs.
const OWN_LABEL_PREFIX: &str = "local-volume-provisioner/";

/// The value of one key, and where it stands.
pub(super) struct Setting {
    pub(super) key: String,
    pub(super) value: Vec<u8>,
    pub(super) origin: Origin,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Origin {
    pub(super) file: String,
    pub(super) lines: Lines,
}

/// How the lines of a value relate to those of its file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Lines {
    /// So many lines of the file come before the value's first.
    After(u64),
    /// The value is written in one line of the file, or folded; its lines are not those of the file.
    In(u64),
}

impl Origin {
    fn problem(&self, fault: Fault, class: Option<&str>) -> Problem {
        let Fault { key, line, mut message } = fault;
        let line = match self.lines {
            Lines::After(before) => before + line,
            Lines::In(at) => {
                message.push_str(&format!(" (line {line} of the value)"));
                at
            }
        };
        Problem {
            file: self.file.clone(),
            line: Some(line),
            key,
            class: class.map(str::to_owned),
            message,
        }
    }
}

/// Parses the values of a configuration directory by their keys. `source` is what the files' names are shown with: the
/// directory, or nothing.
pub fn parse(source: &str, keys: &BTreeMap<String, Vec<u8>>) -> Loaded {
    let separator = if source.is_empty() || source.ends_with('/') {
        ""
    } else {
        "/"
    };
    let settings = keys.iter().map(|(key, value)| Setting {
        key: key.clone(),
        value: value.clone(),
        origin: Origin {
            file: format!("{source}{separator}{key}"),
            lines: Lines::After(0),
        },
    });
    build(source, settings.collect(), Vec::new())
}

/// Reads all settings; `source` is the place of those that are not there, `broken` are those whose value cannot be had.
pub(super) fn build(source: &str, settings: Vec<Setting>, broken: Vec<Problem>) -> Loaded {
    let mut loaded = Loaded::default();
    let chosen = choose(settings, &mut loaded.warnings);
    let classes_are_broken = broken.iter().any(|problem| problem.key.eq_ignore_ascii_case(CLASSES));
    if chosen.is_empty() && broken.is_empty() {
        // Of a ConfigMap that was emptied, or of another directory: nobody means the defaults of everything by that.
        loaded.problems.push(missing(source, "", "no setting is in it"));
        return loaded;
    }
    if !chosen.contains_key(CLASSES) && !classes_are_broken {
        loaded.problems.push(missing(source, CLASSES, "it is missing"));
    }
    for (key, setting) in &chosen {
        let mut reader = Reader {
            origin: &setting.origin,
            loaded: &mut loaded,
        };
        match tree(&setting.value) {
            Ok(node) => reader.read(key, &Raw::root(key, &node)),
            Err(yaml::SyntaxError { line, message }) => {
                reader.problem(
                    Fault {
                        key: (*key).to_owned(),
                        line,
                        message,
                    },
                    None,
                );
            }
        }
    }
    let config = &loaded.config;
    let about = |key: &str, message: &str| {
        let file = chosen
            .get(key)
            .map_or(source, |setting| &setting.origin.file)
            .to_owned();
        Problem {
            file,
            line: None,
            key: key.to_owned(),
            class: None,
            message: message.to_owned(),
        }
    };
    let classes_are_bad = loaded.problems.iter().any(|problem| problem.top_key() == CLASSES);
    if config.classes.is_empty() && !classes_are_broken && !classes_are_bad {
        loaded
            .warnings
            .push(about(CLASSES, "no class is configured: no volume will be published"));
    }
    if config.remove_node_not_ready_taint && config.provisioner_not_ready_node_taint_key.is_empty() {
        let message = "it has no effect unless provisionerNotReadyNodeTaintKey names the taint";
        loaded.warnings.push(about("removeNodeNotReadyTaint", message));
    }
    loaded.problems.extend(broken);
    loaded
}

/// No class at all is never a default: an edit that loses the text would take away the volumes of every node.
const NONE_MEANT: &str = "write the classes, or {} if no class is meant";

fn missing(source: &str, key: &str, what: &str) -> Problem {
    let message = match key {
        CLASSES => format!("{what}: {NONE_MEANT}"),
        _ => format!("{what}: {CLASSES} is expected at the least; {NONE_MEANT}"),
    };
    Problem {
        file: source.to_owned(),
        line: None,
        key: key.to_owned(),
        class: None,
        message,
    }
}

/// Finds the known keys, whatever their case.
fn choose(settings: Vec<Setting>, warnings: &mut Vec<Problem>) -> BTreeMap<&'static str, Setting> {
    let mut chosen: BTreeMap<&'static str, Setting> = BTreeMap::new();
    // What is spelled exactly comes last, so that it wins.
    let (exact, other): (Vec<_>, Vec<_>) = settings.into_iter().partition(|s| KEYS.contains(&s.key.as_str()));
    for setting in other.into_iter().chain(exact) {
        let mut warn = |setting: &Setting, message| {
            let fault = Fault {
                key: setting.key.clone(),
                line: 1,
                message,
            };
            warnings.push(Problem {
                line: None,
                ..setting.origin.problem(fault, None)
            });
        };
        let Some(key) = KEYS.iter().find(|key| key.eq_ignore_ascii_case(&setting.key)) else {
            warn(&setting, unknown("key", &setting.key, KEYS));
            continue;
        };
        let used = setting.key.clone();
        if let Some(former) = chosen.insert(key, setting) {
            warn(&former, format!("the key occurs again as {used:?}, which is used"));
        }
    }
    chosen
}

fn tree(value: &[u8]) -> Result<yaml::Node, yaml::SyntaxError> {
    let text = std::str::from_utf8(value).map_err(|err| {
        let line = value[..err.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
        yaml::SyntaxError {
            line,
            message: "not UTF-8 text: save the value in that encoding".to_owned(),
        }
    })?;
    yaml::document(text)
}

/// Reads one key.
struct Reader<'a> {
    origin: &'a Origin,
    loaded: &'a mut Loaded,
}

impl Reader<'_> {
    fn problem(&mut self, fault: Fault, class: Option<&str>) {
        self.loaded.problems.push(self.origin.problem(fault, class));
    }

    fn warnings(&mut self, warnings: Vec<Fault>, class: Option<&str>) {
        let origin = self.origin;
        self.loaded
            .warnings
            .extend(warnings.into_iter().map(|fault| origin.problem(fault, class)));
    }

    fn read(&mut self, key: &str, raw: &Raw<'_>) {
        // An empty value is the default.
        if raw.is_null() {
            if key == CLASSES {
                self.problem(raw.fault(format!("it is blank: {NONE_MEANT}")), None);
            }
            return;
        }
        if let Err(fault) = self.read_value(key, raw) {
            self.problem(fault, None);
        }
    }

    fn read_value(&mut self, key: &str, raw: &Raw<'_>) -> Result<(), Fault> {
        match key {
            CLASSES => return self.classes(raw),
            "nodeLabelsForPV" => return self.node_labels(raw),
            "labelsForPV" => return self.labels(raw),
            "useAlphaAPI" if raw.flag()? => {
                let message = "no supported cluster takes affinity in an annotation: the PVs get it as a field";
                self.warnings(vec![raw.fault(message)], None);
            }
            "jobTolerations" => return self.job_tolerations(raw),
            _ => {}
        }
        let config = &mut self.loaded.config;
        match key {
            "useJobForCleaning" => config.use_job_for_cleaning = raw.flag()?,
            "minResyncPeriod" => config.min_resync_period = period(raw)?,
            "useNodeNameOnly" => config.use_node_name_only = raw.flag()?,
            "setPVOwnerRef" => config.set_pv_owner_ref = raw.flag()?,
            "removeNodeNotReadyTaint" => config.remove_node_not_ready_taint = raw.flag()?,
            "provisionerNotReadyNodeTaintKey" => config.provisioner_not_ready_node_taint_key = taint_key(raw)?,
            _ => {}
        }
        Ok(())
    }

    fn classes(&mut self, raw: &Raw<'_>) -> Result<(), Fault> {
        let mut warnings = Vec::new();
        let entries = raw.entries(&mut warnings)?;
        self.warnings(warnings, None);
        let mut sound = Vec::new();
        for (name, raw) in &entries {
            let mut warnings = Vec::new();
            match class::read(name, raw, &mut warnings) {
                Ok(class) => sound.push(class),
                Err(faults) => faults.into_iter().for_each(|fault| self.problem(fault, Some(name))),
            }
            self.warnings(warnings, Some(name));
        }
        let (classes, conflicts) = class::admit(sound);
        let place = |name: &str, field: &str, message: String| {
            // The entries are sorted.
            let found = entries.binary_search_by_key(&name, |(key, _)| *key);
            let raw = found.ok().and_then(|at| entries.get(at)).map_or(raw, |(_, raw)| raw);
            class::fault_of(raw, field, message)
        };
        for conflict in conflicts {
            self.problem(
                place(&conflict.class, conflict.field, conflict.message),
                Some(&conflict.class),
            );
        }
        for (inner, outer) in class::nested_host_dirs(&classes) {
            let message = format!(
                "{} lies inside of {}, the hostDir of class {:?}, which may take it for a volume",
                inner.host_dir.display(),
                outer.host_dir.display(),
                outer.name
            );
            self.warnings(vec![place(&inner.name, "hostDir", message)], Some(&inner.name));
        }
        self.loaded.config.classes = classes;
        Ok(())
    }

    fn node_labels(&mut self, raw: &Raw<'_>) -> Result<(), Fault> {
        for item in raw.items()? {
            match item.text().and_then(|key| label_key(&item, &key).map(|()| key)) {
                Ok(key) => {
                    let labels = &mut self.loaded.config.node_labels_for_pv;
                    if !labels.contains(&key) {
                        labels.push(key);
                    }
                }
                Err(fault) => self.problem(fault, None),
            }
        }
        Ok(())
    }

    fn labels(&mut self, raw: &Raw<'_>) -> Result<(), Fault> {
        let mut warnings = Vec::new();
        for (key, raw) in raw.entries(&mut warnings)? {
            match label_key(&raw, key).and_then(|()| label_value(&raw)) {
                Ok(value) => {
                    self.loaded.config.labels_for_pv.insert(key.to_owned(), value);
                }
                Err(fault) => self.problem(fault, None),
            }
        }
        self.warnings(warnings, None);
        Ok(())
    }

    fn job_tolerations(&mut self, raw: &Raw<'_>) -> Result<(), Fault> {
        let mut warnings = Vec::new();
        let tolerations: Result<Vec<_>, _> = raw
            .items()?
            .iter()
            .map(|item| selector::toleration(item, &mut warnings))
            .collect();
        self.warnings(warnings, None);
        self.loaded.config.job_tolerations = tolerations?;
        Ok(())
    }
}

fn period(raw: &Raw<'_>) -> Result<std::time::Duration, Fault> {
    let text = raw.text()?;
    if text.is_empty() {
        return Ok(Config::default().min_resync_period);
    }
    duration::parse(&text).map_err(|err| raw.fault(err.to_string()))
}

fn taint_key(raw: &Raw<'_>) -> Result<String, Fault> {
    let key = raw.text()?;
    if !key.is_empty() {
        check_label_key(&key).map_err(|why| raw.fault(format!("{key:?} cannot be the key of a taint: {why}")))?;
    }
    Ok(key)
}

fn label_key(raw: &Raw<'_>, key: &str) -> Result<(), Fault> {
    check_label_key(key).map_err(|why| raw.fault(format!("{key:?} cannot be the key of a label: {why}")))?;
    if key.starts_with(OWN_LABEL_PREFIX) {
        return Err(raw.fault(format!(
            "labels that start with {OWN_LABEL_PREFIX} belong to the provisioner: remove it"
        )));
    }
    Ok(())
}

fn label_value(raw: &Raw<'_>) -> Result<String, Fault> {
    let value = raw.text()?;
    check_label_value(&value).map_err(|why| raw.fault(format!("{value:?} cannot be the value of a label: {why}")))?;
    Ok(value)
}
