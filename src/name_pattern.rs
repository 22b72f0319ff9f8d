//! `namePattern`: comma-separated shell globs with the semantics of Go's `filepath.Match`.

/// A list of globs; a name matches if one of them does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern {
    globs: Vec<String>,
}

impl Default for NamePattern {
    fn default() -> Self {
        Self { globs: vec!["*".into()] }
    }
}
