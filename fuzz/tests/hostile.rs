//! Configurations that are large rather than odd: time and memory follow their size. One that does not could stop the
//! provisioner of every node with one edit.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use local_volume_provisioner::config::{Loaded, parse};

/// Without a limit these take minutes.
const LONGEST: Duration = Duration::from_secs(30);

/// And gigabytes.
const MOST_KIB: u64 = 1 << 20;

/// A ConfigMap holds no more.
const MOST_BYTES: usize = 1 << 20;

fn attempt(what: &str, line: impl Fn(usize) -> String) -> Loaded {
    let mut text = String::new();
    for number in 0.. {
        let line = line(number);
        if text.len() + line.len() > MOST_BYTES {
            break;
        }
        writeln!(text, "{line}").unwrap();
    }
    let keys = BTreeMap::from([("storageClassMap".to_owned(), text.into_bytes())]);
    let began = Instant::now();
    let loaded = parse("", &keys);
    assert!(began.elapsed() < LONGEST, "{what}: {:?}", began.elapsed());
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < MOST_KIB, "{what}: {peak} KiB");
    println!("{what}: {:?}, {peak} KiB by now", began.elapsed());
    loaded
}

#[test]
fn time_and_memory_follow_the_size() {
    let classes = attempt("distinct classes", |n| {
        format!("c{n}: {{hostDir: /h{n}, mountDir: /m{n}}}")
    });
    assert!(classes.problems.is_empty() && classes.config.classes.len() > 10_000);

    let nested = attempt("nested hostDirs", |n| {
        format!("c{n:04}: {{hostDir: /h{}, mountDir: /m{n}}}", "/a".repeat(n))
    });
    assert_eq!(
        nested.warnings.len(),
        nested.config.classes.len() - 1,
        "each names the one around it"
    );

    let inside = attempt("classes in one mountDir", |n| {
        format!("c{n:05}: {{hostDir: /h{n}, mountDir: /m/{}}}", n % 7)
    });
    assert_eq!(inside.config.classes.len(), 7);

    let aliases = attempt("one class by aliases", |n| match n {
        0 => "c0: &a {hostDir: /h, mountDir: /m}".to_owned(),
        _ => format!("c{n}: *a"),
    });
    assert_eq!(aliases.problems.len(), 1, "{:?}", aliases.problems.first());

    attempt("unknown fields by aliases", |n| match n {
        0 => format!(
            "c0: &a {{{}}}",
            (0..400).map(|n| format!("a{n}: 1,")).collect::<String>()
        ),
        1..=200 => format!("c{n}: *a"),
        _ => "# rest".to_owned(),
    });

    let long = attempt("a long key above many", |n| match n {
        0 => format!("? {}\n:", "k".repeat(MOST_BYTES / 2)),
        _ => format!("  a{n}: 1"),
    });
    assert_eq!(long.problems.len(), 1);
    assert!(
        long.problems[0].message.contains("longer than 512 bytes"),
        "{}",
        long.problems[0].message
    );
}
