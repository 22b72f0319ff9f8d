//! After an edit: what is broken keeps its last good settings, what is sound takes effect.

use super::{Class, Config, Loaded, Problem, class};

impl Loaded {
    /// Fills what could not be used from the configuration that was in use before: the class, the label or the key that
    /// broke, or everything if nothing could be read. The problems stay.
    #[must_use]
    pub fn keep_last_good(mut self, previous: &Config) -> Self {
        let mut restored = false;
        for problem in &self.problems {
            let config = &mut self.config;
            match (&problem.class, problem.top_key()) {
                (Some(name), _) => {
                    if let Some(class) = previous.classes.get(name) {
                        config.classes.insert(name.clone(), class.clone());
                        restored = true;
                    }
                }
                (None, "") => {
                    self.config = previous.clone();
                    return self;
                }
                (None, key) if key.eq_ignore_ascii_case("storageClassMap") => {
                    config.classes.clone_from(&previous.classes);
                    restored = true;
                }
                (None, _) => restore_key(config, problem, previous),
            }
        }
        if restored {
            self.settle_conflicts(previous);
        }
        self
    }

    /// A class that was restored may need the directories that the edit gave to another one. Those that are as before
    /// come first: an edit must not cost a class that it does not name.
    fn settle_conflicts(&mut self, previous: &Config) {
        let is_old = |class: &Class| previous.classes.get(&class.name) == Some(class);
        let (old, new): (Vec<_>, Vec<_>) = std::mem::take(&mut self.config.classes)
            .into_values()
            .partition(is_old);
        let (classes, conflicts) = class::admit(old.into_iter().chain(new));
        let losers: Vec<_> = conflicts
            .iter()
            .filter_map(|lost| previous.classes.get(&lost.class).cloned())
            .collect();
        let (classes, _) = class::admit(classes.into_values().chain(losers));
        self.config.classes = classes;
        let file = self
            .problems
            .first()
            .map(|problem| problem.file.clone())
            .unwrap_or_default();
        self.problems
            .extend(conflicts.into_iter().map(|conflict| Problem {
                file: file.clone(),
                line: None,
                key: format!("storageClassMap.{}.{}", conflict.class, conflict.field),
                message: format!("{} (as last configured)", conflict.message),
                class: Some(conflict.class),
            }));
    }
}

fn restore_key(config: &mut Config, problem: &Problem, previous: &Config) {
    let whole_key = problem.key == problem.top_key();
    match problem.top_key().to_ascii_lowercase().as_str() {
        "labelsforpv" if whole_key => config.labels_for_pv.clone_from(&previous.labels_for_pv),
        "labelsforpv" => {
            let label = problem.key.split_once('.').map_or("", |(_, label)| label);
            if let Some(value) = previous.labels_for_pv.get(label) {
                config.labels_for_pv.insert(label.to_owned(), value.clone());
            }
        }
        // A label that the list names wrongly was never copied from a node.
        "nodelabelsforpv" if whole_key => config
            .node_labels_for_pv
            .clone_from(&previous.node_labels_for_pv),
        "usejobforcleaning" => config.use_job_for_cleaning = previous.use_job_for_cleaning,
        "jobtolerations" => config.job_tolerations.clone_from(&previous.job_tolerations),
        "minresyncperiod" => config.min_resync_period = previous.min_resync_period,
        "usenodenameonly" => config.use_node_name_only = previous.use_node_name_only,
        "setpvownerref" => config.set_pv_owner_ref = previous.set_pv_owner_ref,
        "removenodenotreadytaint" => {
            config.remove_node_not_ready_taint = previous.remove_node_not_ready_taint
        }
        "provisionernotreadynodetaintkey" => {
            config
                .provisioner_not_ready_node_taint_key
                .clone_from(&previous.provisioner_not_ready_node_taint_key);
        }
        _ => {}
    }
}
