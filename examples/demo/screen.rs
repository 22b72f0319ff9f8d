//! What the audience sees: steps, and lines with a time at the right. At most 80 columns, plain ASCII.

use std::io::IsTerminal;
use std::time::Duration;

/// Columns of the text, and of the time beside it; with the indent they stay below 80.
const TEXT: usize = 63;
const TIME: usize = 10;
const INDENT: &str = "    ";

const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "32";
const YELLOW: &str = "33";

/// Whether colours are wanted here: on a terminal that has them, unless <https://no-color.org> says no.
pub(crate) fn colours(stream: &impl IsTerminal) -> bool {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    stream.is_terminal() && variable("NO_COLOR").is_none() && variable("TERM").is_none_or(|term| term != "dumb")
}

/// The screen, and how many steps it has shown.
#[derive(Debug)]
pub(crate) struct Screen {
    colours: bool,
    steps: u32,
}

impl Screen {
    pub(crate) fn new() -> Self {
        Self {
            colours: colours(&std::io::stdout()),
            steps: 0,
        }
    }

    fn paint(&self, style: &str, text: &str) -> String {
        if self.colours && !text.is_empty() {
            format!("\x1b[{style}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    pub(crate) fn title(&self, text: &str) {
        println!("{}\n", self.paint(BOLD, text));
    }

    /// A line above the steps. The value is whole, so that a path in it can be copied.
    pub(crate) fn fact(&self, name: &str, value: &str) {
        println!("{INDENT}{} {value}", self.paint(DIM, &format!("{name:<8}")));
    }

    /// The next step.
    pub(crate) fn step(&mut self, title: &str) {
        self.steps += 1;
        println!("\n{}", self.paint(BOLD, &format!("{:>2}  {title}", self.steps)));
    }

    /// Something that was done, or is.
    pub(crate) fn line(&self, text: &str) {
        println!("{INDENT}{text}");
    }

    /// Something that happened this long after its cause.
    pub(crate) fn timed(&self, text: &str, took: Duration) {
        let time = format!("{:>TIME$}", milliseconds(took));
        println!("{INDENT}{text:<TEXT$}{}", self.paint(GREEN, &time));
    }

    /// A listing: its name, and its lines beside it.
    pub(crate) fn listing(&self, name: &str, lines: &[String]) {
        let nothing = ["(nothing left)".to_owned()];
        let lines = if lines.is_empty() { &nothing } else { lines };
        for (index, line) in lines.iter().enumerate() {
            let name = if index == 0 { name } else { "" };
            println!("{INDENT}{} {line}", self.paint(DIM, &format!("{name:<8}")));
        }
    }

    /// Somebody's words, broken between words.
    pub(crate) fn quote(&self, text: &str) {
        for line in wrapped(text, TEXT + TIME - 2) {
            println!("{INDENT}{} {}", self.paint(YELLOW, "|"), self.paint(YELLOW, &line));
        }
    }

    /// The last line.
    pub(crate) fn summary(&self, told: &str, took: Duration) {
        let text = format!("{told}, in {:.1} s", took.as_secs_f64());
        println!("\n{} {text}", self.paint(GREEN, "done:"));
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// Breaks a text into lines of at most this many characters; a longer word has a line of its own.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
