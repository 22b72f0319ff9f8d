//! Tables on a terminal.

/// A wider cell does not widen its column: one long name shall not push everything else out of sight.
const WIDEST: usize = 40;
/// What is wrapped, but not for a terminal, has lines of this length.
const WIDTH: usize = 100;
/// No line is wrapped to less, however narrow the terminal is.
const NARROWEST: usize = 40;

/// The word before a note that is a command.
pub(super) const COMMAND: &str = "$";

/// A row, and what is said below it: each with the word that it begins with.
pub(super) struct Row {
    pub(super) cells: Vec<String>,
    pub(super) notes: Vec<(&'static str, String)>,
}

/// Lines of aligned columns, separated by two blanks; the last column is not padded.
pub(super) fn align(header: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = header.iter().map(|cell| (*cell).to_owned()).collect();
    let widths = widths(&header, rows.iter().map(Vec::as_slice));
    let lines = std::iter::once(&header).chain(rows);
    lines.map(|row| line(row, &widths)).collect()
}

/// The same, with the notes of each row below it, wrapped to `width` characters.
pub(super) fn with_notes(header: &[&str], rows: &[Row], width: usize) -> String {
    let header: Vec<String> = header.iter().map(|cell| (*cell).to_owned()).collect();
    let widths = widths(&header, rows.iter().map(|row| row.cells.as_slice()));
    let mut text = line(&header, &widths);
    for row in rows {
        text.push_str(&line(&row.cells, &widths));
        for (word, note) in &row.notes {
            let beginning = format!("    {word:<5}");
            // To be copied as it is.
            let width = if *word == COMMAND { usize::MAX } else { width };
            text.push_str(&wrap(&beginning, note, width));
        }
    }
    text
}

fn widths<'a>(header: &[String], rows: impl Iterator<Item = &'a [String]>) -> Vec<usize> {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            let length = cell.chars().count();
            if length <= WIDEST {
                *width = (*width).max(length);
            }
        }
    }
    widths
}

fn line(row: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (cell, width) in row.iter().zip(widths) {
        line.push_str(cell);
        line.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count()) + 2));
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

/// Words after a beginning, in lines of at most `width` characters that begin below the first word. A word that is longer
/// stays whole, so that it can be copied.
pub(super) fn wrap(beginning: &str, text: &str, width: usize) -> String {
    let indent = beginning.chars().count();
    let width = width.max(NARROWEST).max(indent + 1);
    let mut wrapped = beginning.to_owned();
    let mut at = indent;
    for word in text.split(' ') {
        let length = word.chars().count();
        if at > indent {
            if at + 1 + length > width {
                wrapped.push('\n');
                wrapped.extend(std::iter::repeat_n(' ', indent));
                at = indent;
            } else {
                wrapped.push(' ');
                at += 1;
            }
        }
        wrapped.push_str(word);
        at += length;
    }
    wrapped.truncate(wrapped.trim_end().len());
    wrapped.push('\n');
    wrapped
}

/// How wide standard output is; `None` if it is no terminal.
pub(super) fn terminal() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// How wide to write what is wrapped in any case.
pub(super) fn width() -> usize {
    terminal().unwrap_or(WIDTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_by_characters() {
        let rows = vec![vec!["ü".into(), "x".into()], vec!["long".into(), String::new()]];
        assert_eq!(align(&["A", "B"], &rows), "A     B\nü     x\nlong\n");
    }

    #[test]
    fn one_long_cell_does_not_push_the_others_away() {
        let long = "x".repeat(200);
        let rows = vec![vec![long.clone(), "1".into()], vec!["a".into(), "2".into()]];
        let text = align(&["NAME", "B"], &rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], format!("{long}  1"));
        assert_eq!(lines[2], "a     2");
    }

    #[test]
    fn notes_stand_below_their_row_and_are_wrapped() {
        let row = |cell: &str, notes| Row {
            cells: vec![cell.into(), "-".into()],
            notes,
        };
        let long = "a note of many words that does not fit";
        let command = format!("run {}", "x ".repeat(20));
        let rows = [
            row("first", vec![("why", long.to_owned()), (COMMAND, command.clone())]),
            row("second", Vec::new()),
        ];
        assert_eq!(
            with_notes(&["NAME", "B"], &rows, 40),
            format!(
                "NAME    B\nfirst   -\n    why  a note of many words that does\n         not fit\n    $    {}\nsecond  -\n",
                command.trim_end()
            )
        );
    }

    #[test]
    fn a_long_word_stays_whole() {
        let command = "annotate=".to_owned() + &"x".repeat(60);
        let text = wrap("- ", &format!("run {command} now"), 40);
        assert_eq!(text, format!("- run\n  {command}\n  now\n"));
    }
}
