//! A command's output as log lines: bounded in length, in number and in what they contain.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// More of a line is left out. The longest useful ones, of a tool that prints a path, are shorter.
const LINE_BYTES: usize = 1024;
/// More of the last line does not go into errors, events and annotations.
const LAST_CHARACTERS: usize = 300;
/// More lines per second are left out: a tool that prints every block must not fill the node's disk.
const LINES_PER_SECOND: u32 = 100;

/// Cuts bytes into lines and logs them.
pub(super) struct Lines {
    program: String,
    volume: PathBuf,
    /// The line so far.
    line: Vec<u8>,
    /// What did not fit into it, in bytes.
    beyond: usize,
    last: String,
    budget: Budget,
}

impl Lines {
    pub(super) fn new(program: &str, volume: &Path) -> Self {
        Self {
            program: program.to_owned(),
            volume: volume.to_owned(),
            line: Vec::new(),
            beyond: 0,
            last: String::new(),
            budget: Budget {
                since: Instant::now(),
                logged: 0,
                left_out: 0,
            },
        }
    }

    /// Takes in what was written. A carriage return ends a line, too: progress bars use it.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        while let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            self.append(&bytes[..end]);
            self.end_of_line();
            bytes = &bytes[end + 1..];
        }
        self.append(bytes);
    }

    /// There is no more.
    pub(super) fn finish(&mut self) {
        self.end_of_line();
        self.left_out();
    }

    /// The last line, for an error.
    pub(super) fn last_words(&self) -> String {
        if self.last.is_empty() {
            "it wrote nothing".to_owned()
        } else {
            format!("its last line was: {}", self.last)
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        let room = LINE_BYTES.saturating_sub(self.line.len()).min(bytes.len());
        let (fits, rest) = bytes.split_at(room);
        self.line.extend_from_slice(fits);
        self.beyond += rest.len();
    }

    fn end_of_line(&mut self) {
        let mut text: String = String::from_utf8_lossy(&self.line)
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        if self.beyond > 0 {
            text.push_str(&format!("… and {} bytes more", self.beyond));
        }
        self.line.clear();
        self.beyond = 0;
        let text = text.trim();
        if text.is_empty() {
            return;
        }
        self.last = text.chars().take(LAST_CHARACTERS).collect();
        if self.budget.allows(Instant::now()) {
            tracing::info!(command = %self.program, volume = %self.volume.display(), "{text}");
        } else {
            self.budget.left_out += 1;
        }
        if self.budget.logged == 1 {
            self.left_out();
        }
    }

    fn left_out(&mut self) {
        let count = std::mem::take(&mut self.budget.left_out);
        if count > 0 {
            tracing::info!(command = %self.program, volume = %self.volume.display(), count, "lines were left out");
        }
    }
}

/// How many lines may still be logged in this second.
struct Budget {
    since: Instant,
    logged: u32,
    left_out: u64,
}

impl Budget {
    fn allows(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= Duration::from_secs(1) {
            self.since = now;
            self.logged = 0;
        }
        if self.logged >= LINES_PER_SECOND {
            return false;
        }
        self.logged += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Lines {
        let mut lines = Lines::new("wipe", Path::new("/dev/x"));
        pieces.iter().for_each(|piece| lines.feed(piece));
        lines.finish();
        lines
    }

    #[test]
    fn the_last_line_is_the_last_with_text() {
        assert_eq!(lines(&[]).last_words(), "it wrote nothing");
        assert_eq!(lines(&[b"\n\r\n  \n"]).last_words(), "it wrote nothing");
        assert_eq!(lines(&[b"one\ntw", b"o\n\n"]).last_words(), "its last line was: two");
        assert_eq!(lines(&[b"10%\r20%\r", b"30%"]).last_words(), "its last line was: 30%");
        assert_eq!(lines(&[b"a\x00b\x1b[1m\xff"]).last, "a b [1m\u{fffd}");
    }

    #[test]
    fn neither_a_long_line_nor_many_take_memory() {
        let piece = vec![b'x'; 100_000];
        let mut lines = lines(&[&piece, &piece]);
        assert_eq!(lines.last.chars().count(), LAST_CHARACTERS);
        for _ in 0..100 {
            lines.feed(&piece);
            assert!(lines.line.len() <= LINE_BYTES);
        }
        lines.end_of_line();
        assert!(lines.line.is_empty());
    }

    #[test]
    fn a_second_has_so_many_lines() {
        let now = Instant::now();
        let mut budget = Budget {
            since: now,
            logged: 0,
            left_out: 0,
        };
        assert_eq!((0..500).filter(|_| budget.allows(now)).count(), 100);
        assert!(!budget.allows(now + Duration::from_millis(999)));
        assert!(budget.allows(now + Duration::from_secs(1)));
    }
}
