//! Manifests. The input is the text of one.

use local_volume_provisioner::config::{Config, parse_manifest};

use crate::config::{assert_line, described, sound};

pub(crate) fn target(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let loaded = parse_manifest("manifest.yaml", text);
    for problem in loaded.problems.iter().chain(&loaded.warnings) {
        described(problem);
        assert_eq!(problem.file, "manifest.yaml");
        if let Some(line) = problem.line {
            assert_line(data, line, problem);
        }
    }
    if loaded.problems.iter().any(|problem| problem.key.is_empty()) {
        assert_eq!(loaded.config, Config::default(), "nothing at all could be read");
        assert_eq!(loaded.problems.len(), 1);
    }
    sound(&loaded.config);
}
