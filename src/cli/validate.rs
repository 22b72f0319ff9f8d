//! `validate`: the configuration checked before it is applied.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::config;

#[derive(Debug, Args)]
#[command(after_help = "Prints each problem with file, line and key. Exits with 1 if there is one, so it can guard a repository of manifests.")]
pub(super) struct ValidateArgs {
    /// ConfigMap manifests (YAML or JSON), or directories as a ConfigMap is mounted
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Fail for warnings, too
    #[arg(long)]
    strict: bool,
}

pub(super) fn run(args: &ValidateArgs) -> anyhow::Result<ExitCode> {
    let mut good = true;
    for path in &args.paths {
        let loaded = if path.is_dir() { config::load_directory(path) } else { config::load_manifest(path) };
        for problem in &loaded.problems {
            println!("error: {problem}");
        }
        for warning in &loaded.warnings {
            println!("warning: {warning}");
        }
        good &= loaded.problems.is_empty() && (loaded.warnings.is_empty() || !args.strict);
        if loaded.problems.is_empty() {
            let classes: Vec<&str> = loaded.config.classes.keys().map(String::as_str).collect();
            let named = if classes.is_empty() { "no class".to_owned() } else { format!("classes {}", classes.join(", ")) };
            println!("{}: good: {named}", path.display());
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
