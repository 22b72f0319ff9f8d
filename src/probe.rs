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
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
        self.stuck
            .values()
            .filter(|state| !state.returned())
            .count()
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
        let mut batch = Batch::new(queue, self.deadline);
        batch.finish(|index, outcome| {
            if let Some((key, slot)) = outcomes.get_mut(index) {
                if let Finished::OutOfTime(state) = &outcome {
                    self.stuck.insert(key.clone(), Arc::clone(state));
                }
                *slot = Some(outcome.into_outcome(self.deadline));
            }
        });
        let unanswered =
            || Outcome::Unresponsive("no thread could be started to look at it".to_owned());
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

/// Who has the last word on an item: its worker by returning, or the caller by giving it up.
#[derive(Debug, Default)]
struct State(AtomicU8);

impl State {
    const RUNNING: u8 = 0;
    const RETURNED: u8 = 1;
    const GIVEN_UP: u8 = 2;
    const RETURNED_TOO_LATE: u8 = 3;

    fn returned(&self) -> bool {
        matches!(
            self.0.load(Ordering::Acquire),
            Self::RETURNED | Self::RETURNED_TOO_LATE
        )
    }

    /// By the caller; false if the worker has returned, and its answer is on the way.
    fn give_up(&self) -> bool {
        self.0
            .compare_exchange(
                Self::RUNNING,
                Self::GIVEN_UP,
                Ordering::AcqRel,
                Ordering::Acquire,
            )
            .is_ok()
    }

    /// By the worker; false if it was given up.
    fn finish(&self) -> bool {
        let in_time = self
            .0
            .compare_exchange(
                Self::RUNNING,
                Self::RETURNED,
                Ordering::AcqRel,
                Ordering::Acquire,
            )
            .is_ok();
        if !in_time {
            self.0.store(Self::RETURNED_TOO_LATE, Ordering::Release);
        }
        in_time
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
            Self::Panicked => Outcome::Unresponsive(
                "looking at it panicked, which is a bug; see the log".to_owned(),
            ),
            Self::OutOfTime(_) => Outcome::Unresponsive(format!(
                "a system call on it did not return within {deadline:?}"
            )),
        }
    }
}

/// From a worker to the caller.
enum Message<T> {
    Started {
        index: usize,
        at: Instant,
        state: Arc<State>,
    },
    /// With nothing if the work panicked.
    Answered { index: usize, value: Option<T> },
    /// The worker found nothing more to do.
    Ended,
}

type Queue<T> = Arc<Mutex<VecDeque<Job<T>>>>;

/// A poisoned lock only says that some worker panicked elsewhere: the queue is whole.
fn lock<T>(queue: &Queue<T>) -> MutexGuard<'_, VecDeque<Job<T>>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One run's items, and the workers on them.
struct Batch<T> {
    queue: Queue<T>,
    deadline: Duration,
    sender: Sender<Message<T>>,
    receiver: Receiver<Message<T>>,
    /// What is being worked on, and since when.
    running: HashMap<usize, (Instant, Arc<State>)>,
    /// Workers that have neither ended nor been given up.
    workers: usize,
    last_added: Instant,
}

impl<T: Send + 'static> Batch<T> {
    fn new(queue: VecDeque<Job<T>>, deadline: Duration) -> Self {
        let (sender, receiver) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        Self {
            queue,
            deadline,
            sender,
            receiver,
            running: HashMap::new(),
            workers: 0,
            last_added: Instant::now(),
        }
    }

    /// Reports every item once, when it is answered or out of time, for as long as there are workers.
    fn finish(&mut self, mut report: impl FnMut(usize, Finished<T>)) {
        self.add_workers(1);
        while self.workers > 0 {
            match self.receiver.recv_timeout(self.next_event()) {
                Ok(Message::Started { index, at, state }) => {
                    self.running.insert(index, (at, state));
                }
                Ok(Message::Answered { index, value }) => {
                    self.running.remove(&index);
                    report(index, value.map_or(Finished::Panicked, Finished::Answered));
                }
                Ok(Message::Ended) => self.workers -= 1,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            self.give_up(&mut report);
            self.reinforce();
        }
        lock(&self.queue).clear();
    }

    /// How long until there is something to decide.
    fn next_event(&self) -> Duration {
        let now = Instant::now();
        let deadline = self
            .running
            .values()
            .map(|(since, _)| (*since + self.deadline).saturating_duration_since(now))
            .min();
        let patience = (!lock(&self.queue).is_empty()).then_some(PATIENCE);
        deadline
            .into_iter()
            .chain(patience)
            .min()
            .unwrap_or(self.deadline)
    }

    fn give_up(&mut self, report: &mut impl FnMut(usize, Finished<T>)) {
        let now = Instant::now();
        let deadline = self.deadline;
        let late = self.running.extract_if(|_, (since, state)| {
            now.duration_since(*since) >= deadline && state.give_up()
        });
        for (index, (_, state)) in late {
            // Its worker stays alone with it, and ends when it comes back.
            self.workers -= 1;
            report(index, Finished::OutOfTime(state));
        }
    }

    /// Adds workers while there is work that nobody gets to: as many again as there are if all hang, so that a hundred
    /// hanging items take seven rounds and not a hundred; one if some still work.
    fn reinforce(&mut self) {
        let waiting = lock(&self.queue).len();
        if waiting == 0 || (self.workers > 0 && self.last_added.elapsed() < PATIENCE) {
            return;
        }
        let hanging = self
            .running
            .values()
            .filter(|(since, _)| since.elapsed() >= PATIENCE)
            .count();
        let wanted = match self.workers.saturating_sub(hanging) {
            0 => hanging.max(1),
            1..MAX_WORKING => 1,
            _ => 0,
        };
        self.add_workers(wanted.min(waiting));
    }

    fn add_workers(&mut self, count: usize) {
        self.last_added = Instant::now();
        for _ in 0..count {
            if lock(&self.queue).is_empty() {
                return;
            }
            let (queue, sender) = (Arc::clone(&self.queue), self.sender.clone());
            let thread = thread::Builder::new()
                .name("probe".to_owned())
                .stack_size(STACK_BYTES);
            // At the limit of threads the others go on, and what nobody gets to is reported as such.
            if thread.spawn(move || work(&queue, &sender)).is_ok() {
                self.workers += 1;
            }
        }
    }
}

/// What a worker does: one item after the other until none is left, or it was given up.
fn work<T>(queue: &Queue<T>, sender: &Sender<Message<T>>) {
    // Nobody listens any more once the caller has what it waited for.
    let tell = |message| {
        let _ = sender.send(message);
    };
    loop {
        let Some(Job { index, work, state }) = lock(queue).pop_front() else {
            break;
        };
        tell(Message::Started {
            index,
            at: Instant::now(),
            state: Arc::clone(&state),
        });
        let value = catch_unwind(AssertUnwindSafe(work)).ok();
        if !state.finish() {
            return;
        }
        tell(Message::Answered { index, value });
    }
    tell(Message::Ended);
}

#[cfg(test)]
mod tests;
