#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};

use super::*;

const DEADLINE: Duration = Duration::from_millis(400);

fn quick(value: u32) -> Work<u32> {
    Box::new(move || value)
}

/// Work that hangs until the sender is dropped.
fn hanging(value: u32) -> (Sender<()>, Work<u32>) {
    let (release, blocked) = mpsc::channel::<()>();
    let work: Work<u32> = Box::new(move || {
        let _ = blocked.recv();
        value
    });
    (release, work)
}

fn unresponsive<T>(outcome: &Outcome<T>) -> bool {
    matches!(outcome, Outcome::Unresponsive(_))
}

fn wait_until(condition: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < limit, "timed out");
        thread::yield_now();
    }
}

#[test]
fn answers_come_in_the_order_of_the_items() {
    let mut prober = Prober::new(DEADLINE);
    let items = (0..50).map(|key| (key, quick(key * 2))).collect();
    let outcomes = prober.run(items);
    let expected: Vec<_> = (0..50).map(|key| (key, Outcome::Done(key * 2))).collect();
    assert_eq!(outcomes, expected);
    assert_eq!(prober.run::<u32>(Vec::new()), []);
}

#[test]
fn one_hanging_item_is_one_hanging_item() {
    let mut prober = Prober::new(DEADLINE);
    let (release, work) = hanging(1);
    let outcomes = prober.run(vec![("a", quick(0)), ("b", work), ("c", quick(2))]);
    assert_eq!(outcomes[0].1, Outcome::Done(0));
    assert!(unresponsive(&outcomes[1].1));
    assert_eq!(outcomes[2].1, Outcome::Done(2));
    assert_eq!(prober.stuck(), 1);
    drop(release);
}

#[test]
fn a_hanging_item_is_left_alone_until_it_comes_back() {
    let mut prober = Prober::new(DEADLINE);
    let (release, work) = hanging(1);
    assert!(unresponsive(&prober.run(vec![("a", work)])[0].1));

    let calls = Arc::new(AtomicUsize::new(0));
    let counting = || -> Work<u32> {
        let calls = Arc::clone(&calls);
        Box::new(move || {
            calls.fetch_add(1, Ordering::SeqCst);
            7
        })
    };
    let started = Instant::now();
    let outcomes = prober.run(vec![("a", counting()), ("b", quick(2))]);
    assert!(unresponsive(&outcomes[0].1));
    assert_eq!(outcomes[1].1, Outcome::Done(2));
    assert_eq!(calls.load(Ordering::SeqCst), 0, "it must not be touched again");
    assert!(started.elapsed() < DEADLINE, "what is known to hang costs no time");

    drop(release);
    wait_until(|| prober.stuck() == 0);
    assert_eq!(prober.run(vec![("a", counting())]), [("a", Outcome::Done(7))]);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[test]
fn many_hanging_items_take_about_one_deadline() {
    let deadline = Duration::from_secs(2);
    let mut prober = Prober::new(deadline);
    let mut releases = Vec::new();
    let mut items = Vec::new();
    for key in 0..40 {
        let (release, work) = hanging(key);
        releases.push(release);
        items.push((key, work));
        items.push((1000 + key, quick(key)));
    }
    let started = Instant::now();
    let outcomes = prober.run(items);
    let took = started.elapsed();
    for (key, outcome) in outcomes {
        assert_eq!(unresponsive(&outcome), key < 1000, "{key}: {outcome:?}");
    }
    assert!(took >= deadline && took < deadline * 2, "{took:?}");
    assert_eq!(prober.stuck(), 40);
    drop(releases);
    wait_until(|| prober.stuck() == 0);
}

#[test]
fn what_comes_back_within_the_deadline_counts() {
    let mut prober = Prober::new(Duration::from_secs(20));
    let (release, work) = hanging(1);
    let releasing: Work<u32> = Box::new(move || {
        drop(release);
        2
    });
    let outcomes = prober.run(vec![("slow", work), ("releases it", releasing)]);
    assert_eq!(
        outcomes,
        [("slow", Outcome::Done(1)), ("releases it", Outcome::Done(2))]
    );
}

#[test]
fn a_deadline_shorter_than_the_patience_still_gets_through() {
    let mut prober = Prober::new(Duration::from_millis(5));
    let (release, work) = hanging(1);
    let (release2, work2) = hanging(1);
    let outcomes = prober.run(vec![("a", work), ("b", work2), ("c", quick(3))]);
    assert!(unresponsive(&outcomes[0].1) && unresponsive(&outcomes[1].1));
    assert_eq!(outcomes[2].1, Outcome::Done(3));
    drop((release, release2));
}

#[test]
fn a_panic_is_that_items_alone() {
    let mut prober = Prober::new(Duration::from_secs(20));
    let panicking: Work<u32> = Box::new(|| panic!("expected by the test"));
    let outcomes = prober.run(vec![("a", panicking), ("b", quick(2))]);
    assert!(unresponsive(&outcomes[0].1));
    assert_eq!(outcomes[1].1, Outcome::Done(2));
    assert_eq!(prober.stuck(), 0);
}
