//! "Look again", and what led to it.

use std::sync::atomic::{AtomicU16, Ordering};

use tokio::sync::Notify;

/// What leads to a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The process has begun.
    Start,
    /// A mount table has changed.
    MountTable,
    /// Something in a discovery directory has changed.
    Directory,
    /// The configuration has changed, or may have.
    Configuration,
    /// The API server has told of a change.
    Api,
    /// A call of the API was answered, or came to nothing.
    Call,
    /// A scrub has ended, or has a checkpoint to be noted.
    Scrub,
    /// Something is due, or it is time for a look in any case.
    Timer,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Start,
        Self::MountTable,
        Self::Directory,
        Self::Configuration,
        Self::Api,
        Self::Call,
        Self::Scrub,
        Self::Timer,
    ];

    /// The cause as a metric label.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::MountTable => "mount-table",
            Self::Directory => "directory",
            Self::Configuration => "configuration",
            Self::Api => "api",
            Self::Call => "call",
            Self::Scrub => "scrub",
            Self::Timer => "timer",
        }
    }

    fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// Wakes the loop. Wakes that come before it looks are one, with all their causes.
#[derive(Debug, Default)]
pub struct Wake {
    notify: Notify,
    causes: AtomicU16,
}

impl Wake {
    /// Look again, because of this.
    pub fn wake(&self, cause: Cause) {
        self.note(cause);
        self.notify.notify_one();
    }

    /// Another cause of a look that is made in any case.
    pub fn note(&self, cause: Cause) {
        self.causes.fetch_or(cause.bit(), Ordering::Release);
    }

    /// Waits for a wake.
    pub async fn woken(&self) {
        self.notify.notified().await;
    }

    /// The causes since this was last asked.
    pub fn take_causes(&self) -> impl Iterator<Item = Cause> + use<> {
        let causes = self.causes.swap(0, Ordering::AcqRel);
        Cause::ALL.into_iter().filter(move |cause| causes & cause.bit() != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn wakes_are_one_with_all_their_causes() {
        let wake = Wake::default();
        wake.wake(Cause::Timer);
        wake.wake(Cause::MountTable);
        wake.wake(Cause::MountTable);
        wake.note(Cause::Scrub);
        wake.woken().await;
        let causes: Vec<Cause> = wake.take_causes().collect();
        assert_eq!(causes, [Cause::MountTable, Cause::Scrub, Cause::Timer]);
        assert_eq!(wake.take_causes().count(), 0);
        let again = tokio::time::timeout(std::time::Duration::ZERO, wake.woken());
        assert!(again.await.is_err(), "a cause alone is no wake");
    }

    #[test]
    fn causes_have_words_of_their_own() {
        let words: std::collections::BTreeSet<&str> = Cause::ALL.iter().map(|cause| cause.word()).collect();
        let bits = Cause::ALL.iter().fold(0, |bits, cause| bits | cause.bit());
        assert_eq!((words.len(), bits), (Cause::ALL.len(), 0xff));
    }
}
