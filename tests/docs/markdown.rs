//! Reading documents and sources, as far as the tests of the documents need it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

pub type Set = BTreeSet<String>;

pub fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub fn text(path: impl AsRef<Path>) -> String {
    let path = top().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The part of a document under a heading, up to the next one of the same or a higher level.
pub fn section(document: &str, heading: &str) -> String {
    let markdown = text(document);
    let level = heading.chars().take_while(|c| *c == '#').count();
    let mut lines = markdown.lines().skip_while(|line| *line != heading);
    assert!(lines.next().is_some(), "{document} has no heading {heading:?}");
    let ends = |line: &&str| {
        let marks = line.chars().take_while(|c| *c == '#').count();
        marks > 0 && marks <= level
    };
    lines
        .take_while(|line| !ends(line))
        .fold(String::new(), |all, line| all + line + "\n")
}

/// The cells of the rows of a section's tables, without their headers.
pub fn rows(section: &str) -> Vec<Vec<String>> {
    let lines: Vec<&str> = section.lines().collect();
    let is_rule = |line: &str| line.starts_with("|--");
    let is_header = |at: usize| lines.get(at + 1).is_some_and(|next| is_rule(next));
    let body = (0..lines.len()).filter(|at| lines[*at].starts_with("| ") && !is_header(*at));
    body.map(|at| {
        let line = lines[at].trim_matches('|');
        line.split('|').map(|cell| cell.trim().to_owned()).collect()
    })
    .collect()
}

/// What stands in backquotes.
pub fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// What stands in backquotes in one column of a section's tables.
pub fn column(document: &str, heading: &str, column: usize) -> Set {
    let rows = rows(&section(document, heading));
    assert!(!rows.is_empty(), "{document} {heading} has no table");
    rows.iter().flat_map(|row| quoted(&row[column])).collect()
}

/// The string literals of a source text.
pub fn literals(source: &str) -> Set {
    source.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The source between two marks.
pub fn between<'a>(source: &'a str, from: &str, to: &str) -> &'a str {
    let start = source
        .find(from)
        .unwrap_or_else(|| panic!("{from:?} is not in the source"))
        + from.len();
    let rest = &source[start..];
    &rest[..rest.find(to).unwrap_or_else(|| panic!("no {to:?} after {from:?}"))]
}

/// The literal that follows each occurrence of a mark, if nothing but blanks is between.
pub fn literals_after(source: &str, mark: &str) -> Set {
    let after = source
        .match_indices(mark)
        .map(|(at, _)| source[at + mark.len()..].trim_start());
    after
        .filter_map(|rest| rest.strip_prefix('"')?.split('"').next().map(str::to_owned))
        .collect()
}

/// The lines of the code blocks of a document, by block, with the block's language.
pub fn blocks(markdown: &str) -> Vec<(String, Vec<String>)> {
    let mut blocks: Vec<(String, Vec<String>)> = Vec::new();
    let mut open = false;
    for line in markdown.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            if !open {
                blocks.push((language.to_owned(), Vec::new()));
            }
            open = !open;
        } else if open {
            blocks.last_mut().unwrap().1.push(line.to_owned());
        }
    }
    assert!(!open, "a code block does not end");
    blocks
}

/// The anchor that a heading gets on GitHub.
pub fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
