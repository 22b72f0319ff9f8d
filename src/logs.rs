//! The log: how it is written, and how much of it, which can be changed while the process runs.

use std::sync::{Mutex, OnceLock, PoisonError};

use tracing::info;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

/// A process has one log.
static LOG: OnceLock<Log> = OnceLock::new();

struct Log {
    put: Box<dyn Fn(Targets) + Send + Sync>,
    /// As it was asked for at the start, by `-v` or RUST_LOG, and the level of that.
    started: (Targets, Level),
    level: Mutex<Level>,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Changes of state, and what somebody should act on.
    Info,
    /// Decisions, too.
    Debug,
    /// Everything.
    Trace,
}

impl Level {
    /// The level of this name: `info`, `debug` or `trace`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Info, Self::Debug, Self::Trace]
            .into_iter()
            .find(|level| level.name() == name)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    fn filter(self) -> Targets {
        let level = match self {
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        };
        // The client logs every refused request as an error, and so do we, with what follows from it.
        let quiet = ["hyper", "hyper_util", "rustls", "tower"].map(|name| (name, LevelFilter::INFO));
        Targets::new()
            .with_default(level)
            .with_target("kube_client", LevelFilter::OFF)
            .with_targets(quiet)
    }
}

/// Begins to log to standard error: as `-v` says, or RUST_LOG if that is set; as text, or as JSON, a line for each event.
pub fn to_stderr(v: u8, json: bool) {
    let level = match v {
        0..=3 => Level::Info,
        4..=5 => Level::Debug,
        _ => Level::Trace,
    };
    let mut started = (level.filter(), level);
    match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => match text.parse() {
            Ok(asked) => started = (asked, Level::Info),
            Err(error) => eprintln!("RUST_LOG={text:?} is not used: {error}"),
        },
        _ => {}
    }
    let (filter, handle) = reload::Layer::<Targets, Registry>::new(started.0.clone());
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let lines = if json {
        lines.json().boxed()
    } else {
        lines
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .boxed()
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    let log = Log {
        // It fails when the subscriber is gone, which lives as long as the process.
        put: Box::new(move |filter| drop(handle.reload(filter))),
        level: started.1.into(),
        started,
    };
    let _ = LOG.set(log);
}

/// How much is logged now; `None`: this process has not begun to log.
#[must_use]
pub fn level() -> Option<Level> {
    LOG.get()
        .map(|log| *log.level.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Logs as much as this from now on. False: this process has not begun to log.
pub fn set(level: Level) -> bool {
    change(|_| level)
}

/// Turns debug lines on, or off again: then it is logged as from the start, or as `info` if that was more.
pub fn toggle_debug() {
    change(|now| if now >= Level::Debug { Level::Info } else { Level::Debug });
}

fn change(to: impl FnOnce(Level) -> Level) -> bool {
    let Some(log) = LOG.get() else { return false };
    let mut level = log.level.lock().unwrap_or_else(PoisonError::into_inner);
    *level = to(*level);
    let (filter, at) = &log.started;
    (log.put)(if at == &*level { filter.clone() } else { level.filter() });
    info!(level = level.name(), "log level");
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_names() {
        for level in [Level::Info, Level::Debug, Level::Trace] {
            assert_eq!(Level::named(level.name()), Some(level));
        }
        assert_eq!(Level::named("warn"), None);
    }

    #[test]
    fn the_client_is_quiet_at_every_level() {
        for level in [Level::Info, Level::Debug, Level::Trace] {
            let filter = level.filter();
            assert!(!filter.would_enable("kube_client::client", &tracing::Level::ERROR));
            assert!(!filter.would_enable("hyper_util::client", &tracing::Level::DEBUG));
            assert!(filter.would_enable("local_volume_provisioner::run", &tracing::Level::INFO));
        }
    }
}
