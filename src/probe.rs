//! Blocking calls with a deadline.
//!
//! A system call on a dead disk or network filesystem may never return, and nothing can interrupt it. So every item is
//! looked at on a thread of its own if need be: one thread works through all of them, and as soon as it shows no
//! progress it is left alone with its item and others go on. An item that is not answered within the deadline is
//! reported as unresponsive, and not touched again until its thread has come back: a hung disk costs one thread,
//! however often it is asked about.
//!
//! Nothing here is async. A caller on an async runtime uses its way to call what blocks.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A worker that has been on one item for this long is taken for stuck, and another goes on. Long enough that a disk
/// that has to spin its heads does not bring up threads, short enough to be lost in a pass.
const PATIENCE: Duration = Duration::from_millis(100);

/// At most so many workers are added while others still make progress: a bound for slow disks, not for stuck ones.
const MAX_WORKING: usize = 4;

/// What is called on a worker is shallow: system calls and parsers.
const STACK_BYTES: usize = 256 << 10;

/// What came of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome<T> {
    /// It was answered.
    Done(T),
    /// It was not, for this reason; its thread may still be at it.
    Unresponsive(String),
}

/// A piece of work on a thing that may not answer.
pub type Work<T> = Box<dyn FnOnce() -> T + Send>;

/// Runs closures with a deadline for each, and remembers which things hang. `K` names a thing.
#[derive(Debug)]
pub struct Prober<K> {
    deadline: Duration,
    /// The things whose work has not returned in time.
    stuck: HashMap<K, Arc<State>>,
}

impl<K: Clone + Eq + Hash> Prober<K> {
    /// A prober that gives each item so much time.
    #[must_use]
    pub fn new(deadline: Duration) -> Self {
        Self {
            deadline,
            stuck: HashMap::new(),
        }
    }

    /// How many things hang now.
    #[must_use]
    pub fn stuck(&self) -> usize {
        self.stuck.values().filter(|state| !state.returned()).count()
    }

    /// Does all of the work, and returns what came of it, in the same order. Returns when everything is answered or out
    /// of time. However many of the items hang, that takes little more than one deadline.
    ///
    /// What hangs since an earlier call is not touched and reported at once.
    pub fn run<T: Send + 'static>(&mut self, items: Vec<(K, Work<T>)>) -> Vec<(K, Outcome<T>)> {
        self.stuck.retain(|_, state| !state.returned());
        let mut outcomes = Vec::with_capacity(items.len());
        let mut queue = VecDeque::new();
        for (index, (key, work)) in items.into_iter().enumerate() {
            if self.stuck.contains_key(&key) {
                outcomes.push((key, Some(Outcome::Unresponsive(self.still_hanging()))));
            } else {
                outcomes.push((key, None));
                queue.push_back(Job {
                    index,
                    work,
                    state: Arc::default(),
                });
            }
        }
        Batch::new(queue, self.deadline).finish(|index, outcome| {
            if let Some((key, slot)) = outcomes.get_mut(index) {
                if let Finished::OutOfTime(state) = &outcome {
                    self.stuck.insert(key.clone(), Arc::clone(state));
                }
                *slot = Some(outcome.into_outcome(self.deadline));
            }
        });
        let unanswered = || Outcome::Unresponsive("no thread could be started to look at it".to_owned());
        outcomes
            .into_iter()
            .map(|(key, outcome)| (key, outcome.unwrap_or_else(unanswered)))
            .collect()
    }

    fn still_hanging(&self) -> String {
        format!(
            "an earlier system call on it has not returned (limit {:?})",
            self.deadline
        )
    }
}

/// Whether the work on an item has come back.
#[derive(Debug, Default)]
struct State(AtomicBool);

impl State {
    fn returned(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

struct Job<T> {
    index: usize,
    work: Work<T>,
    state: Arc<State>,
}

enum Finished<T> {
    Answered(T),
    Panicked,
    OutOfTime(Arc<State>),
}

impl<T> Finished<T> {
    fn into_outcome(self, deadline: Duration) -> Outcome<T> {
        match self {
            Self::Answered(value) => Outcome::Done(value),
            Self::Panicked => Outcome::Unresponsive("looking at it panicked, which is a bug; see the log".to_owned()),
            Self::OutOfTime(_) => {
                Outcome::Unresponsive(format!("a system call on it did not return within {deadline:?}"))
            }
        }
    }
}

/// What the workers and the caller share. An item that is answered wakes nobody: a look has a thousand of them.
struct Board<T> {
    queue: VecDeque<Job<T>>,
    /// What is being worked on, and since when. An item that is not here any more was given up.
    running: HashMap<usize, (Instant, Arc<State>)>,
    finished: Vec<(usize, Finished<T>)>,
    /// Workers that have neither ended nor been given up.
    workers: usize,
}

struct Shared<T> {
    board: Mutex<Board<T>>,
    /// A worker has found nothing more to do.
    ended: Condvar,
}

impl<T> Shared<T> {
    /// A poisoned lock only says that some worker panicked elsewhere: the board is whole.
    fn board(&self) -> MutexGuard<'_, Board<T>> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One run's items, and the workers on them.
struct Batch<T> {
    shared: Arc<Shared<T>>,
    deadline: Duration,
    last_added: Instant,
}

impl<T: Send + 'static> Batch<T> {
    fn new(queue: VecDeque<Job<T>>, deadline: Duration) -> Self {
        let board = Board {
            finished: Vec::with_capacity(queue.len()),
            queue,
            running: HashMap::new(),
            workers: 0,
        };
        Self {
            shared: Arc::new(Shared {
                board: Mutex::new(board),
                ended: Condvar::new(),
            }),
            deadline,
            last_added: Instant::now(),
        }
    }

    /// Reports every item once, when all are answered or out of time, for as long as there are workers.
    fn finish(mut self, mut report: impl FnMut(usize, Finished<T>)) {
        let shared = Arc::clone(&self.shared);
        let mut board = shared.board();
        self.add_workers(&mut board, 1);
        while board.workers > 0 {
            let wait = self.next_event(&board);
            // The lock is given up while it waits.
            board = match shared.ended.wait_timeout(board, wait) {
                Ok((board, _)) => board,
                Err(poisoned) => poisoned.into_inner().0,
            };
            self.give_up(&mut board);
            self.reinforce(&mut board);
        }
        board.queue.clear();
        let finished = std::mem::take(&mut board.finished);
        drop(board);
        for (index, outcome) in finished {
            report(index, outcome);
        }
    }

    /// How long until there is something to decide.
    fn next_event(&self, board: &Board<T>) -> Duration {
        let now = Instant::now();
        let deadline = board
            .running
            .values()
            .map(|(since, _)| (*since + self.deadline).saturating_duration_since(now))
            .min();
        let waiting = !board.queue.is_empty();
        let begun = board.running.values().map(|(since, _)| *since);
        let patience = begun
            .chain([self.last_added])
            .map(|since| (since + PATIENCE).saturating_duration_since(now))
            .filter(|left| waiting && !left.is_zero())
            .min()
            .or(waiting.then_some(PATIENCE));
        deadline.into_iter().chain(patience).min().unwrap_or(self.deadline)
    }

    fn give_up(&self, board: &mut Board<T>) {
        let now = Instant::now();
        let deadline = self.deadline;
        let late = board
            .running
            .extract_if(|_, (since, _)| now.duration_since(*since) >= deadline);
        for (index, (_, state)) in late {
            // Its worker stays alone with it, and ends when it comes back.
            board.workers -= 1;
            board.finished.push((index, Finished::OutOfTime(state)));
        }
    }

    /// Adds workers while there is work that nobody gets to: as many again as there are if all hang, so that a hundred
    /// hanging items take seven rounds and not a hundred; one if some still work.
    fn reinforce(&mut self, board: &mut Board<T>) {
        let waiting = board.queue.len();
        if waiting == 0 || (board.workers > 0 && self.last_added.elapsed() < PATIENCE) {
            return;
        }
        // Those that were added last began a moment later: with the whole patience none of them would ever be counted, and
        // the workers would grow by one at a time.
        let hanging = board
            .running
            .values()
            .filter(|(since, _)| since.elapsed() >= PATIENCE / 2)
            .count();
        let wanted = match board.workers.saturating_sub(hanging) {
            0 => hanging.max(1),
            1..MAX_WORKING => 1,
            _ => 0,
        };
        self.add_workers(board, wanted.min(waiting));
    }

    fn add_workers(&mut self, board: &mut Board<T>, count: usize) {
        self.last_added = Instant::now();
        for _ in 0..count {
            if board.queue.is_empty() {
                return;
            }
            let shared = Arc::clone(&self.shared);
            let thread = thread::Builder::new().name("probe".to_owned()).stack_size(STACK_BYTES);
            // At the limit of threads the others go on, and what nobody gets to is reported as such.
            if thread.spawn(move || work(&shared)).is_ok() {
                board.workers += 1;
            }
        }
    }
}

/// What a worker does: one item after the other until none is left, or it was given up.
fn work<T>(shared: &Shared<T>) {
    let mut board = shared.board();
    while let Some(Job { index, work, state }) = board.queue.pop_front() {
        board.running.insert(index, (Instant::now(), Arc::clone(&state)));
        drop(board);
        let value = catch_unwind(AssertUnwindSafe(work)).ok();
        board = shared.board();
        state.0.store(true, Ordering::Release);
        if board.running.remove(&index).is_none() {
            return;
        }
        let outcome = value.map_or(Finished::Panicked, Finished::Answered);
        board.finished.push((index, outcome));
    }
    board.workers -= 1;
    shared.ended.notify_one();
}

#[cfg(test)]
mod tests;
