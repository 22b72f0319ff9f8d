#![allow(clippy::unwrap_used)]

use super::*;

const LONG: Duration = Duration::from_secs(60);
/// What is waited for takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(30);

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn shell_within(script: &str, stall_timeout: Duration, cancel: &Cancel) -> Result<(), ScrubError> {
    let words = words(&["sh", "-c", script]);
    let invocation = Invocation {
        words: &words,
        variable: DEVICE_VARIABLE,
        volume: Path::new("/mnt/fast/disk 1"),
        stall_timeout,
    };
    run(&invocation, cancel)
}

fn shell(script: &str) -> Result<(), ScrubError> {
    shell_within(script, LONG, &Cancel::new())
}

fn failure(result: Result<(), ScrubError>) -> String {
    match result {
        Err(ScrubError::Failed(error)) => format!("{error:#}"),
        other => panic!("{other:?}"),
    }
}

/// The process ids that a script has written, as soon as there are so many.
fn pids(file: &Path, count: usize) -> Vec<Pid> {
    let end = Instant::now() + DEADLINE;
    loop {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let pids: Vec<Pid> = text
            .split_inclusive('\n')
            .filter_map(|line| line.strip_suffix('\n')?.parse().ok().map(Pid::from_raw))
            .collect();
        if pids.len() >= count {
            return pids;
        }
        assert!(Instant::now() < end, "only {pids:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_gone(pid: Pid) -> bool {
    nix::sys::signal::kill(pid, None) == Err(Errno::ESRCH)
}

#[test]
fn exit_code_0_counts_as_scrubbed() {
    shell("exit 0").unwrap();
    shell("test \"$LOCAL_PV_BLKDEVICE\" = '/mnt/fast/disk 1'").unwrap();
    shell("read line && exit 1; exit 0").unwrap(); // Its input is empty.
    shell("test -n \"$PATH\"").unwrap();
}

#[test]
fn it_inherits_the_io_priority() {
    std::thread::spawn(|| {
        let script = "ionice -p $$ | grep -q idle";
        shell(script).unwrap_err();
        let _idle = crate::scrub::limits::IdlePriority::of_this_thread();
        shell(script).unwrap();
    })
    .join()
    .unwrap();
}

#[test]
fn the_words_are_given_as_they_are() {
    let words = words(&["test", "a b*$HOME", "=", "a b*$HOME"]);
    let invocation = Invocation {
        words: &words,
        variable: FILESYSTEM_VARIABLE,
        volume: Path::new("/x"),
        stall_timeout: LONG,
    };
    run(&invocation, &Cancel::new()).unwrap();
}

#[test]
fn a_failure_says_how_it_ended_and_its_last_line() {
    let error = failure(shell("echo first; echo 'no such device' >&2; exit 3"));
    assert_eq!(error, "sh exited with code 3; its last line was: no such device");
    assert_eq!(failure(shell("exit 1")), "sh exited with code 1; it wrote nothing");
    assert_eq!(
        failure(shell("kill -KILL $$")),
        "sh was killed by SIGKILL; it wrote nothing"
    );
}

#[test]
fn any_output_is_taken() {
    shell("head -c 10000000 /dev/zero | tr '\\0' x").unwrap();
    shell("head -c 3000000 /dev/urandom >&2; yes | head -n 300000").unwrap();
    let error = failure(shell("head -c 10000000 /dev/zero | tr '\\0' x; printf end; exit 1"));
    assert!(error.len() < 1000, "{error}");
    let error = failure(shell("yes | head -n 100000; printf 'the end'; exit 1"));
    assert!(error.ends_with("the end"), "{error}");
    // Nobody could read what is written.
    shell("exec >&- 2>&-; exit 0").unwrap();
}

#[test]
fn a_command_that_is_not_there_is_held() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let not_executable = file.path().to_str().unwrap();
    for program in ["/no/such/program", not_executable, "/"] {
        let words = words(&[program]);
        let invocation = Invocation {
            words: &words,
            variable: DEVICE_VARIABLE,
            volume: Path::new("/x"),
            stall_timeout: LONG,
        };
        match run(&invocation, &Cancel::new()) {
            Err(ScrubError::Held(held @ Held::CleanerUnavailable(_))) => {
                assert!(held.to_string().contains(program), "{held}");
            }
            other => panic!("{program}: {other:?}"),
        }
    }
}

#[test]
fn a_command_that_shows_no_sign_of_life_is_killed() {
    let began = Instant::now();
    let error = failure(shell_within(
        "echo begun; exec sleep 1000",
        Duration::from_millis(300),
        &Cancel::new(),
    ));
    assert!(error.contains("--stall-timeout") && error.ends_with("begun"), "{error}");
    assert!(began.elapsed() < DEADLINE);
    // Output is a sign of life: this runs for much longer than the timeout.
    shell_within(
        "for i in 1 2 3 4 5 6 7 8 9 10; do printf .; sleep 0.1; done",
        Duration::from_millis(600),
        &Cancel::new(),
    )
    .unwrap();
}

#[test]
fn one_that_ignores_sigterm_is_killed_with_its_children() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("pids");
    let script = format!(
        "trap '' TERM; echo $$ >> {0}; sh -c 'trap \"\" TERM; echo $$ >> {0}; while :; do sleep 0.1; done' & \
         while :; do sleep 0.1; done",
        file.display()
    );
    let cancel = Cancel::new();
    std::thread::scope(|scope| {
        let command = scope.spawn(|| shell_within(&script, LONG, &cancel));
        let pids = pids(&file, 2);
        let began = Instant::now();
        cancel.cancel();
        assert!(matches!(command.join().unwrap(), Err(ScrubError::Cancelled)));
        assert!(began.elapsed() >= GRACE, "it was not asked to end before it was killed");
        assert!(began.elapsed() < DEADLINE);
        assert!(pids.into_iter().all(is_gone));
    });
}

#[test]
fn a_polite_command_may_tidy_up_when_it_is_stopped() {
    let temp = tempfile::tempdir().unwrap();
    let (file, tidy) = (temp.path().join("pids"), temp.path().join("tidy"));
    let script = format!(
        "trap 'touch {}; exit 0' TERM; echo $$ >> {}; while :; do sleep 0.05; done",
        tidy.display(),
        file.display()
    );
    let cancel = Cancel::new();
    std::thread::scope(|scope| {
        let command = scope.spawn(|| shell_within(&script, LONG, &cancel));
        let pids = pids(&file, 1);
        let began = Instant::now();
        cancel.cancel();
        // Although it exits with 0: it was told to stop in the middle.
        assert!(matches!(command.join().unwrap(), Err(ScrubError::Cancelled)));
        assert!(tidy.exists() && began.elapsed() < GRACE);
        assert!(pids.into_iter().all(is_gone));
    });
}

#[test]
fn children_that_hold_the_output_are_not_waited_for_and_do_not_survive() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("pids");
    let script = format!(
        "sh -c 'echo $$ >> {}; exec sleep 1000' & sleep 0.2; exit 0",
        file.display()
    );
    let began = Instant::now();
    shell(&script).unwrap();
    assert!(began.elapsed() < DEADLINE);
    assert!(pids(&file, 1).into_iter().all(is_gone));
}

#[test]
fn a_script_path_is_the_native_method_unless_another_program_is_there() {
    let temp = tempfile::tempdir().unwrap();
    let own = temp.path().join("own");
    std::fs::write(&own, "binary").unwrap();
    let (link, other) = (temp.path().join("link.sh"), temp.path().join("other.sh"));
    std::os::unix::fs::symlink(&own, &link).unwrap();
    std::fs::write(&other, "script").unwrap();
    let proc_exe = temp.path().join("exe");
    std::os::unix::fs::symlink(&own, &proc_exe).unwrap();
    assert!(!is_other_program(&link, &proc_exe));
    assert!(!is_other_program(&temp.path().join("none.sh"), &proc_exe));
    assert!(is_other_program(&other, &proc_exe));

    let quick = words(&["/scripts/quick_reset.sh"]);
    assert_eq!(resolve(&Cleaner::Quick, &quick), Cleaner::Quick, "no such file here");
    assert_eq!(resolve(&Cleaner::Quick, &words(&["quick"])), Cleaner::Quick);
    let own = std::env::current_exe().unwrap();
    let own = words(&[own.to_str().unwrap()]);
    assert_eq!(resolve(&Cleaner::Quick, &own), Cleaner::Quick, "it is this program");
    let shell = words(&["/bin/sh", "-c", "true"]);
    assert_eq!(resolve(&Cleaner::Quick, &shell), Cleaner::Command(shell.clone()));
}
