//! libFuzzer over the target that `FUZZ_TARGET` names. `hack/fuzz` builds and runs it.
#![no_main]

use std::sync::LazyLock;

use fuzz::{TARGETS, Target};

static CHOSEN: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let known: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    TARGETS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, target)| *target)
        .unwrap_or_else(|| panic!("FUZZ_TARGET is {name:?}: name one of {}", known.join(", ")))
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| CHOSEN(data));
