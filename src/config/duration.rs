//! Go's duration strings: `10s`, `1m30s`, `1.5h`, `300ms`, `0`.

use std::time::Duration;

const UNITS: &[(&str, u64)] = &[
    ("ns", 1),
    ("us", 1_000),
    // U+00B5 micro sign and U+03BC Greek letter mu, as Go takes both.
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Go counts nanoseconds in an int64: about 292 years.
const MAX_NANOS: u128 = i64::MAX as u128;

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// It does not have the form of one.
    #[error(
        "invalid duration {0:?}: write a number and a unit (ns, us, ms, s, m or h), such as 10s or 1m30s"
    )]
    Invalid(String),
    /// A number without a unit.
    #[error("invalid duration {0:?}: the unit is missing, such as in {0}s")]
    NoUnit(String),
    /// Below zero.
    #[error("invalid duration {0:?}: it must not be negative")]
    Negative(String),
    /// Beyond what Go's time.Duration holds.
    #[error("invalid duration {0:?}: it is longer than 292 years")]
    TooLong(String),
}

/// Parses what Go's `time.ParseDuration` takes, negative durations excepted; fractions of a nanosecond are cut off.
///
/// # Errors
///
/// [`DurationError`] quotes the text and says how a duration is written.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let invalid = || DurationError::Invalid(text.to_owned());
    let too_long = || DurationError::TooLong(text.to_owned());
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if unsigned == "0" {
        return Ok(Duration::ZERO);
    }
    if unsigned.is_empty() {
        return Err(invalid());
    }
    let mut nanos: u128 = 0;
    let mut rest = unsigned;
    while !rest.is_empty() {
        let (number, after) = split(rest, |c| c.is_ascii_digit() || c == '.');
        let (unit, after) = split(after, |c| !c.is_ascii_digit() && c != '.');
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(invalid());
        }
        if unit.is_empty() {
            return Err(DurationError::NoUnit(text.to_owned()));
        }
        let scale = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, nanos)| *nanos)
            .ok_or_else(invalid)?;
        let whole: u64 = if whole.is_empty() {
            0
        } else {
            whole.parse().map_err(|_| too_long())?
        };
        nanos += u128::from(whole) * u128::from(scale) + fraction_nanos(fraction, scale);
        if nanos > MAX_NANOS {
            return Err(too_long());
        }
        rest = after;
    }
    if text.starts_with('-') && nanos > 0 {
        return Err(DurationError::Negative(text.to_owned()));
    }
    // MAX_NANOS fits.
    Ok(Duration::from_nanos(
        u64::try_from(nanos).unwrap_or(u64::MAX),
    ))
}

/// The digits after the point, times the unit. More than 18 of them are below a nanosecond in every unit.
fn fraction_nanos(digits: &str, scale: u64) -> u128 {
    let digits = &digits[..digits.len().min(18)];
    let power = 10_u128.pow(u32::try_from(digits.len()).unwrap_or(0));
    digits.parse::<u128>().unwrap_or(0) * u128::from(scale) / power
}

fn split(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        for (text, nanos) in [
            ("0", 0),
            ("-0", 0),
            ("+0", 0),
            ("0s", 0),
            ("-0s", 0),
            ("10s", 10_000_000_000),
            ("+10s", 10_000_000_000),
            ("1m30s", 90_000_000_000),
            ("5m0s", 300_000_000_000),
            ("1.5h", 5_400_000_000_000),
            ("300ms", 300_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("1us", 1_000),
            ("1\u{b5}s", 1_000),
            ("1\u{3bc}s", 1_000),
            ("7ns", 7),
            ("1.9ns", 1),
            ("1h1m1.000000001s", 3_661_000_000_001),
            ("0.3333333333333333333h", 1_199_999_999_999),
            ("1s1s", 2_000_000_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_nanos(nanos)), "{text:?}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for text in [
            "", "-", "s", ".", ".s", "1.2.3s", "1d", "1 s", " 1s", "10S", "1m-30s", "1e3s", "--1s",
            "ten",
        ] {
            assert_eq!(
                parse(text),
                Err(DurationError::Invalid(text.into())),
                "{text:?}"
            );
        }
        for text in ["10", "1m30", "0.5", "00"] {
            assert_eq!(
                parse(text),
                Err(DurationError::NoUnit(text.into())),
                "{text:?}"
            );
        }
    }

    #[test]
    fn negative_and_endless_durations_are_refused() {
        assert_eq!(parse("-5s"), Err(DurationError::Negative("-5s".into())));
        assert!(parse("2562047h").is_ok());
        for text in ["2562048h", "99999999999999999999s", "9223372036854775808ns"] {
            assert_eq!(parse(text), Err(DurationError::TooLong(text.into())));
        }
        let message = DurationError::Negative("-5s".into()).to_string();
        assert_eq!(message, "invalid duration \"-5s\": it must not be negative");
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[-+0-9.hmsun\u{b5}é]{0,24}") {
            let _ = parse(&text);
        }
    }
}
