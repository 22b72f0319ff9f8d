//! Short texts: quantities, durations, ids, globs, paths, cleaners. Every line of the input is tried as each of them; as
//! a glob it is tried on the next line.

use local_volume_provisioner::capacity;
use local_volume_provisioner::config::{Cleaner, clean, duration, names};
use local_volume_provisioner::identity::{Comparison, IdKind, VolumeId, part};
use local_volume_provisioner::name_pattern::NamePattern;
use local_volume_provisioner::scrub;

use crate::text::assert_one_line;

/// Of what grows faster than its input.
const SHORT: usize = 24;

pub(crate) fn target(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let lines: Vec<&str> = text.split('\n').collect();
    for (at, line) in lines.iter().enumerate() {
        quantity(line);
        time(line);
        id(line);
        path(line);
        cleaner(line);
        name(line);
        if let Some(next) = lines.get(at + 1) {
            glob(line, next);
        }
    }
}

fn quantity(text: &str) {
    let bytes = capacity::parse(text);
    if let Some(bytes) = bytes {
        assert_eq!(capacity::parse(&capacity::quantity(bytes)), Some(bytes), "{text:?}");
        let rounded = capacity::round(bytes);
        assert!(rounded <= bytes && capacity::round(rounded) == rounded, "{text:?}");
    }
    if let Some(exact) = exact_quantity(text) {
        assert_eq!(bytes, u64::try_from(exact).ok(), "{text:?}");
    }
    match scrub::limits::parse_bandwidth(text) {
        Ok(rate) => assert_eq!(bytes, Some(rate.get())),
        Err(message) => assert_one_line(&message),
    }
}

/// The value of a quantity, rounded up, by whole numbers only; none if it does not fit or is no plain quantity.
fn exact_quantity(text: &str) -> Option<u128> {
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if number.is_empty() || number.starts_with('.') || fraction.contains('.') || number.len() > 20 {
        return None;
    }
    let exponent: i32 = match suffix.strip_prefix(['e', 'E']).filter(|digits| !digits.is_empty()) {
        Some(exponent) if exponent.starts_with(|c: char| c.is_ascii_digit() || c == '-') => exponent.parse().ok()?,
        Some(_) => return None,
        None => 0,
    };
    let power = |base: u128, exponent| base.pow(exponent);
    let decimals = ["", "k", "M", "G", "T", "P", "E"];
    let binaries = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let place = |list: &[&str]| {
        list.iter()
            .position(|name| *name == suffix)
            .and_then(|at| u32::try_from(at).ok())
    };
    let (up, down) = match (place(&decimals), place(&binaries), suffix) {
        (Some(at), ..) => (power(1000, at), 1),
        (_, Some(at), _) => (power(1024, at), 1),
        (.., "m") => (1, 1000),
        _ if (0..=20).contains(&exponent) && exponent != 0 => (power(10, exponent.unsigned_abs()), 1),
        _ if (-12..0).contains(&exponent) => (1, power(10, exponent.unsigned_abs())),
        _ => return None,
    };
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let below = power(10, u32::try_from(fraction.len()).ok()?) * down;
    Some(digits.checked_mul(up)?.div_ceil(below))
}

fn time(text: &str) {
    match duration::parse(text) {
        Ok(time) => {
            let written = format!("{}ns", time.as_nanos());
            assert_eq!(duration::parse(&written), Ok(time), "{text:?}");
        }
        Err(error) => assert_one_line(&error.to_string()),
    }
}

fn id(text: &str) {
    let id: VolumeId = match text.parse() {
        Ok(id) => id,
        Err(error) => return assert_one_line(&error.to_string()),
    };
    identity(&id);
    if id.kind != IdKind::Volatile {
        let later = id.clone().with(part::BOOT, "another boot");
        assert_ne!(id.compare(&later), Comparison::LostWithReboot, "{id}");
    }
    let bare = VolumeId::new(id.kind);
    assert_eq!(bare.compare(&bare), Comparison::Different, "nothing was compared");
}

/// An id is kept as text, and is itself when it is read back.
pub(crate) fn identity(id: &VolumeId) {
    let written = id.to_string();
    assert!(
        written.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()),
        "{written:?}"
    );
    assert_eq!(written.parse().as_ref(), Ok(id), "{written:?}");
    assert_eq!(id.overlaps(id), id.compare(id) == Comparison::Same, "{written:?}");
    if id
        .parts
        .keys()
        .any(|key| [part::UUID, part::WWN, part::SERIAL, part::DM].contains(&key.as_ref()))
    {
        let complete = id.get(part::HANDLE).is_some() || id.get(part::SUBTREE).is_none();
        assert!(!complete || id.compare(id) == Comparison::Same, "{written:?}");
    }
}

fn path(text: &str) {
    let once = clean(text);
    assert_eq!(clean(&once), once);
    assert_eq!(once.starts_with('/'), text.starts_with('/'));
    assert!(!once.contains("//") && (once == "/" || !once.ends_with('/')));
    assert!(once.len() <= text.len().max(1));
}

fn cleaner(text: &str) {
    let words: Vec<String> = text.split(',').map(str::to_owned).collect();
    match Cleaner::parse(&words) {
        Ok(Cleaner::Command(command)) => assert_eq!(command, words, "a command is run as given"),
        Ok(cleaner) => assert_eq!(Cleaner::parse(&[cleaner.to_string()]), Ok(cleaner)),
        Err(message) => assert_one_line(&message),
    }
}

/// What is a name is a label's key without a prefix, too, if it is short enough.
fn name(text: &str) {
    if names::check_object_name(text).is_ok() {
        assert!((1..=253).contains(&text.len()));
        assert_eq!(names::check_label_value(text).is_ok(), text.len() <= 63, "{text:?}");
    }
    if let (Ok(()), Some((prefix, _))) = (names::check_label_key(text), text.split_once('/')) {
        assert_eq!(names::check_object_name(prefix), Ok(()), "{text:?}");
    }
}

fn glob(text: &str, name: &str) {
    let pattern = match NamePattern::parse(text) {
        Ok(pattern) => pattern,
        Err(message) => return assert_one_line(&message),
    };
    assert_eq!(pattern.as_str(), text);
    let matches = pattern.matches(name);
    if name.contains('/') || text.len() > SHORT || name.len() > SHORT || text.matches('*').count() > 4 {
        return;
    }
    let by_trying = text.split(',').any(|glob| {
        let glob: Vec<char> = glob.chars().collect();
        let name: Vec<char> = name.chars().collect();
        try_all(&glob, &name)
    });
    assert_eq!(matches, by_trying, "{text:?} on {name:?}");
}

/// Whether a legal glob matches, by trying every length of every star.
fn try_all(glob: &[char], name: &[char]) -> bool {
    match glob {
        [] => name.is_empty(),
        ['*', rest @ ..] => (0..=name.len()).any(|taken| try_all(rest, &name[taken..])),
        ['?', rest @ ..] => !name.is_empty() && try_all(rest, &name[1..]),
        ['\\', literal, rest @ ..] => name.first() == Some(literal) && try_all(rest, &name[1..]),
        ['[', rest @ ..] => {
            let Some((first, name)) = name.split_first() else {
                return false;
            };
            let (inside, rest) = class(rest, *first);
            inside && try_all(rest, name)
        }
        [literal, rest @ ..] => name.first() == Some(literal) && try_all(rest, &name[1..]),
    }
}

/// Whether the class that begins here has the character, and what follows its end.
fn class(glob: &[char], wanted: char) -> (bool, &[char]) {
    let negated = glob.first() == Some(&'^');
    let mut at = usize::from(negated);
    let mut inside = false;
    let next = |at: &mut usize| {
        *at += usize::from(glob[*at] == '\\') + 1;
        glob[*at - 1]
    };
    let mut first = true;
    while first || glob[at] != ']' {
        first = false;
        let low = next(&mut at);
        let mut high = low;
        if glob[at] == '-' {
            at += 1;
            high = next(&mut at);
        }
        inside |= (low..=high).contains(&wanted);
    }
    (inside != negated, &glob[at + 1..])
}
