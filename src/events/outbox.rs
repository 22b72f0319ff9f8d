//! Where notices wait to be posted: bounded in number, and sent at a bounded rate, so that a thousand volumes that are held
//! at once neither flood the API server nor fill the memory, and no pass waits for any of it.

use std::collections::HashMap;
use std::time::Duration;

use kube::Client;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::{Letter, Posted, code};
use crate::api;

/// How many notices wait at most: a megabyte of the longest.
const WAITING: usize = 1024;
/// Of all events together: so many at once, and then one in this time, which is 10 a second.
const ALL: (u32, Duration) = (25, Duration::from_millis(100));
/// Of one object: as client-go's `EventSourceObjectSpamFilter` has it.
const OF_ONE_OBJECT: (u32, Duration) = (25, Duration::from_secs(300));
/// How many objects, and how many events, are remembered; as many as client-go does.
const REMEMBERED: usize = 4096;
/// How often one is tried while the server does not answer, or says "later": about a minute, as client-go does.
const TRIES: u32 = 12;

/// Takes notices to be posted.
#[derive(Debug, Clone)]
pub struct Outbox(mpsc::Sender<Letter>);

impl Outbox {
    /// An outbox, and what empties it as long as it lives. `ended` is told of each notice whether it was posted.
    pub fn new(
        client: Client,
        ended: impl Fn(bool) + Send + 'static,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), deliver(client, receiver, ended))
    }

    /// Takes a notice, and does not wait. False if there is no room.
    #[must_use]
    pub fn put(&self, letter: Letter) -> bool {
        self.0.try_send(letter).is_ok()
    }
}

async fn deliver(client: Client, mut waiting: mpsc::Receiver<Letter>, ended: impl Fn(bool)) {
    let mut pace = Bucket::new(ALL);
    let mut objects = Objects::default();
    let mut posted: HashMap<String, Posted> = HashMap::new();
    while let Some(letter) = waiting.recv().await {
        let (about, reason) = (letter.object(), letter.reason);
        if !objects.may_hear(letter.object_uid()) {
            debug!(%about, reason, "event left out: there were too many about this object");
            ended(false);
            continue;
        }
        let name = letter.name();
        let mut tries = 0;
        let result = loop {
            pace.wait().await;
            let result = letter.post(&client, posted.get(&name)).await;
            tries += 1;
            match result {
                Err(error) if tries < TRIES && may_pass(&error) => {
                    debug!(%about, reason, %error, "event cannot be posted; trying again");
                    sleep(api::wait(tries, api::asked_by(&error))).await;
                }
                result => break result,
            }
        };
        ended(result.is_ok());
        match result {
            Ok(event) => {
                if posted.len() >= REMEMBERED {
                    posted.clear(); // They are found by their names.
                }
                posted.insert(name, event);
            }
            // The log says what it would have said.
            Err(error) => debug!(%about, reason, %error, "event cannot be posted; given up"),
        }
    }
}

/// Whether it may go better the next time.
fn may_pass(error: &kube::Error) -> bool {
    code(error).is_none_or(|code| matches!(code, 409 | 429) || code >= 500)
}

/// Tokens, of which there are at most `burst`, and a new one after each `every`.
#[derive(Debug)]
struct Bucket {
    burst: u32,
    every: Duration,
    tokens: u32,
    /// When the tokens were counted last.
    at: Instant,
}

impl Bucket {
    fn new((burst, every): (u32, Duration)) -> Self {
        Self {
            burst,
            every,
            tokens: burst,
            at: Instant::now(),
        }
    }

    /// Takes a token, or says how long until there is one.
    fn take(&mut self) -> Result<(), Duration> {
        self.refill();
        match self.tokens.checked_sub(1) {
            Some(rest) => {
                self.tokens = rest;
                Ok(())
            }
            None => Err(self.every.saturating_sub(self.at.elapsed())),
        }
    }

    fn refill(&mut self) {
        let new = u32::try_from(self.at.elapsed().as_nanos() / self.every.as_nanos()).unwrap_or(u32::MAX);
        self.tokens = self.tokens.saturating_add(new).min(self.burst);
        // Full ones gain nothing by waiting.
        self.at = if self.tokens == self.burst {
            Instant::now()
        } else {
            self.at + self.every * new
        };
    }

    async fn wait(&mut self) {
        while let Err(wait) = self.take() {
            sleep(wait.max(Duration::from_millis(1))).await;
        }
    }
}

/// How much may be told about each object.
#[derive(Debug, Default)]
struct Objects(HashMap<String, Bucket>);

impl Objects {
    fn may_hear(&mut self, uid: &str) -> bool {
        if self.0.len() >= REMEMBERED && !self.0.contains_key(uid) {
            // Those that little was told about are as good as new.
            self.0.retain(|_, bucket| {
                bucket.refill();
                bucket.tokens < bucket.burst
            });
            if self.0.len() >= REMEMBERED {
                self.0.clear();
            }
        }
        let bucket = self
            .0
            .entry(uid.to_owned())
            .or_insert_with(|| Bucket::new(OF_ONE_OBJECT));
        bucket.take().is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_object_is_told_of_25_times_and_then_every_five_minutes() {
        let mut objects = Objects::default();
        let mut heard = |count: usize| (0..count).filter(|_| objects.may_hear("a")).count();
        assert_eq!(heard(100), 25);
        tokio::time::advance(Duration::from_secs(299)).await;
        assert_eq!(heard(1), 0);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(heard(10), 1);
        tokio::time::advance(Duration::from_secs(24 * 3600)).await;
        assert_eq!(heard(100), 25);
        assert!(objects.may_hear("b"));
    }

    #[tokio::test(start_paused = true)]
    async fn objects_are_forgotten_before_there_are_too_many() {
        let mut objects = Objects::default();
        (0..25).for_each(|_| assert!(objects.may_hear("noisy")));
        for number in 0..REMEMBERED {
            assert!(objects.may_hear(&format!("quiet{number}")));
            assert!(objects.0.len() <= REMEMBERED);
            // A token each is back in time.
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }
}
