//! `namePattern`: comma-separated shell globs with the semantics of Go's `filepath.Match`.
//!
//! Own code because the glob crates differ where it decides over a disk: they negate with `[!…]` (here `^`, and `!` is
//! an ordinary character), let `]` or `-` stand first in a class (an error here), or know `**` and `{a,b}`.

use std::fmt;
use std::str::Chars;

/// A list of globs; a name matches if one of them does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern {
    source: String,
    globs: Vec<Vec<Token>>,
}

/// One step of a glob.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// `*`: any number of characters other than `/`.
    Star,
    /// `?`: one character other than `/`.
    One,
    /// The character itself.
    Literal(char),
    /// `[…]`: one character inside (or, negated, outside) of the ranges.
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl NamePattern {
    /// Parses globs separated by commas. As in the classic program nothing is trimmed, and a comma separates even in
    /// brackets or after a backslash.
    ///
    /// # Errors
    ///
    /// Says which glob is malformed and why, in every case where Go's filepath.Match reports ErrBadPattern.
    pub fn parse(source: &str) -> Result<Self, String> {
        let globs = source
            .split(',')
            .map(|glob| tokens(glob).map_err(|why| format!("bad glob {glob:?}: {why}")))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            source: source.to_owned(),
            globs,
        })
    }

    /// Whether one of the globs matches the whole name.
    pub fn matches(&self, name: &str) -> bool {
        self.globs.iter().any(|glob| glob_matches(glob, name))
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.source
    }
}

/// `*`: every name.
impl Default for NamePattern {
    fn default() -> Self {
        Self {
            source: "*".to_owned(),
            globs: vec![vec![Token::Star]],
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

impl Token {
    fn matches(&self, c: char) -> bool {
        match self {
            Self::Star => false,
            Self::One => c != '/',
            Self::Literal(literal) => *literal == c,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
            }
        }
    }
}

fn tokens(glob: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut chars = glob.chars();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' => Token::Star,
            '?' => Token::One,
            '\\' => Token::Literal(chars.next().ok_or("it ends in a backslash")?),
            '[' => class(&mut chars)?,
            _ => Token::Literal(c),
        });
    }
    Ok(tokens)
}

/// What follows a `[`, up to its `]`.
fn class(chars: &mut Chars<'_>) -> Result<Token, String> {
    let negated = skip(chars, '^');
    let mut ranges = Vec::new();
    while ranges.is_empty() || !skip(chars, ']') {
        let low = class_char(chars)?;
        let high = if skip(chars, '-') {
            class_char(chars)?
        } else {
            low
        };
        ranges.push((low, high));
    }
    Ok(Token::Class { negated, ranges })
}

fn class_char(chars: &mut Chars<'_>) -> Result<char, String> {
    match chars.next() {
        None => Err("a `[` is not closed".to_owned()),
        Some(c @ (']' | '-')) => Err(format!("inside of brackets write `\\{c}` for a `{c}`")),
        Some('\\') => chars
            .next()
            .ok_or_else(|| "it ends in a backslash".to_owned()),
        Some(c) => Ok(c),
    }
}

fn skip(chars: &mut Chars<'_>, expected: char) -> bool {
    let mut ahead = chars.clone();
    let found = ahead.next() == Some(expected);
    if found {
        *chars = ahead;
    }
    found
}

/// Whenever a match fails the last star takes one character more: no recursion, and at most glob times name steps.
fn glob_matches(glob: &[Token], name: &str) -> bool {
    let mut at = 0;
    let mut rest = name.chars();
    let mut retry: Option<(usize, Chars<'_>)> = None;
    loop {
        if glob.get(at) == Some(&Token::Star) {
            at += 1;
            retry = Some((at, rest.clone()));
            continue;
        }
        let mut after = rest.clone();
        match (glob.get(at), after.next()) {
            (None, None) => return true,
            (Some(token), Some(c)) if token.matches(c) => {
                at += 1;
                rest = after;
                continue;
            }
            _ => {}
        }
        let Some((star, mut from)) = retry.take() else {
            return false;
        };
        match from.next() {
            None | Some('/') => return false,
            Some(_) => {
                at = star;
                rest = from.clone();
                retry = Some((star, from));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As answered by Go's filepath.Match.
    const MATCHES: &[(&str, &str, bool)] = &[
        ("*", "ab", true),
        ("*", "", true),
        ("*", "a/b", false),
        ("**", "x", true),
        ("a**b", "ab", true),
        ("", "", true),
        ("", "a", false),
        ("a?c", "abc", true),
        ("a?c", "a/c", false),
        ("a?c", "ac", false),
        ("abc", "abcd", false),
        ("abcd", "abc", false),
        ("nvme*n[0-9]", "nvme0n1", true),
        ("nvme*n[0-9]", "nvme0n1p1", false),
        ("*a*b*", "xxaxxbxx", true),
        ("*a*b", "xxaxxbx", false),
        ("*.img", "disk.img.img", true),
        ("[^a-z]", "A", true),
        ("[^a-z]", "a", false),
        ("[^a]", "/", true),
        ("[^^]", "^", false),
        ("[a^]", "^", true),
        ("[!a]", "!", true),
        ("[!a]", "b", false),
        ("[z-a]", "m", false),
        ("[\\]]", "]", true),
        ("[a\\-b]", "-", true),
        ("]", "]", true),
        ("\\*", "*", true),
        ("\\*", "a", false),
        ("{a}", "a", false),
        ("é?", "éü", true),
        ("[à-ü]", "é", true),
        ("sd*,nvme*", "nvme1", true),
        ("sd*,nvme*", "sda", true),
        ("sd*,nvme*", "vda", false),
        ("sd*, nvme*", "nvme1", false),
    ];

    #[test]
    fn globs_match_as_in_go() {
        for (pattern, name, matches) in MATCHES {
            assert_eq!(
                NamePattern::parse(pattern).unwrap().matches(name),
                *matches,
                "{pattern:?} {name:?}"
            );
        }
    }

    #[test]
    fn bad_globs_are_refused() {
        for pattern in [
            "[", "[]", "[^]", "[^]a]", "[]a]", "[-a]", "[a-]", "[a-b-c]", "[a", "[a\\", "a\\",
            "a[", "*[", "x*[^", "[a,b]", "ok,[", "\\,a",
        ] {
            assert!(NamePattern::parse(pattern).is_err(), "{pattern:?}");
        }
        assert_eq!(
            NamePattern::parse("ok,[x").unwrap_err(),
            "bad glob \"[x\": a `[` is not closed"
        );
    }

    #[test]
    fn the_default_matches_everything_and_is_written_as_a_star() {
        assert!(NamePattern::default().matches("anything"));
        assert_eq!(NamePattern::default(), NamePattern::parse("*").unwrap());
        assert_eq!(
            NamePattern::parse("a*,b\\*").unwrap().to_string(),
            "a*,b\\*"
        );
    }

    #[test]
    fn many_stars_do_not_take_exponential_time() {
        let pattern = NamePattern::parse(&("a*".repeat(100) + "b")).unwrap();
        assert!(!pattern.matches(&"a".repeat(200)));
    }

    proptest! {
        #[test]
        fn parsing_and_matching_never_panic(pattern in "[-a\\[\\]^*?,é\\\\]{0,12}", name in ".{0,12}") {
            if let Ok(pattern) = NamePattern::parse(&pattern) {
                let _ = pattern.matches(&name);
            }
        }

        #[test]
        fn an_escaped_name_matches_itself_only(name in "[^,/]{1,12}", other in "[^,/]{1,12}") {
            let escaped: String = name.chars().flat_map(|c| ['\\', c]).collect();
            let pattern = NamePattern::parse(&escaped).unwrap();
            prop_assert!(pattern.matches(&name));
            prop_assert_eq!(pattern.matches(&other), name == other);
        }
    }
}
