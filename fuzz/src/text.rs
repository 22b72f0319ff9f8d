//! Inputs that describe something binary, in lines that a person can read and write.

/// The bytes that a text with `\xNN` stands for.
pub(crate) fn unescape(text: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        match tail {
            [b'x', high, low, after @ ..] if byte == b'\\' => {
                if let (Some(high), Some(low)) = (digit(*high), digit(*low)) {
                    bytes.push(high << 4 | low);
                    rest = after;
                    continue;
                }
            }
            _ => {}
        }
        bytes.push(byte);
        rest = tail;
    }
    bytes
}

/// The lines that are `name<separator>value`, values unescaped.
pub(crate) fn fields(data: &[u8], separator: u8) -> impl Iterator<Item = (&str, Vec<u8>)> {
    data.split(|byte| *byte == b'\n').filter_map(move |line| {
        let at = line.iter().position(|byte| *byte == separator)?;
        Some((std::str::from_utf8(&line[..at]).ok()?, unescape(&line[at + 1..])))
    })
}

/// What is shown to people or logged is one line.
#[track_caller]
pub(crate) fn assert_one_line(text: &str) {
    assert!(!text.chars().any(char::is_control), "a control character in {text:?}");
    assert!(!text.trim().is_empty(), "it says nothing");
}
