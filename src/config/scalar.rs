//! Plain scalars by the rules of YAML 1.1, as Go's yaml.v2 and sigs.k8s.io/yaml apply them.
//!
//! They are neither those of the YAML 1.1 specification (no base-60 numbers, `.inf` but no `0x1.8`) nor those of YAML 1.2.

use std::borrow::Cow;

/// What a plain scalar stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Resolved {
    Null,
    Bool(bool),
    /// Within the ranges of i64 and u64.
    Int(i128),
    Float(f64),
    Text,
}

/// The value of a plain scalar.
pub(super) fn resolve(text: &str) -> Resolved {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Resolved::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            Resolved::Bool(true)
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Resolved::Bool(false)
        }
        ".nan" | ".NaN" | ".NAN" => Resolved::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Resolved::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => Resolved::Float(f64::NEG_INFINITY),
        _ if text.starts_with(|c: char| c.is_ascii_digit() || c == '+' || c == '-') => {
            // Go drops every underscore of what looks like a number, wherever it stands.
            let digits = text.replace('_', "");
            integer(&digits)
                .map(Resolved::Int)
                .or_else(|| float(&digits).map(Resolved::Float))
                .unwrap_or(Resolved::Text)
        }
        _ if text.starts_with('.') => float(text).map_or(Resolved::Text, Resolved::Float),
        _ => Resolved::Text,
    }
}

/// A plain scalar in a string position: booleans and numbers in Go's canonical form, null as nothing.
pub(super) fn to_text(text: &str) -> Cow<'_, str> {
    match resolve(text) {
        Resolved::Null => Cow::Borrowed(""),
        Resolved::Bool(true) => Cow::Borrowed("true"),
        Resolved::Bool(false) => Cow::Borrowed("false"),
        Resolved::Int(number) => Cow::Owned(number.to_string()),
        Resolved::Float(number) => Cow::Owned(format_float(number)),
        Resolved::Text => Cow::Borrowed(text),
    }
}

/// strconv.ParseInt with base 0: a prefix tells the base, and a leading zero alone means octal.
fn integer(text: &str) -> Option<i128> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    // from_str_radix would take a second sign.
    if !digits.starts_with(|c: char| c.is_digit(radix)) {
        return None;
    }
    let magnitude = i128::from_str_radix(digits, radix).ok()?;
    let number = if negative { -magnitude } else { magnitude };
    (i128::from(i64::MIN)..=i128::from(u64::MAX))
        .contains(&number)
        .then_some(number)
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`, within the range of a float64.
fn float(text: &str) -> Option<f64> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
        Some(at) => (&unsigned[..at], Some(&unsigned[at + 1..])),
        None => (unsigned, None),
    };
    let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mantissa_ok =
        all_digits(whole) && all_digits(fraction) && !(whole.is_empty() && fraction.is_empty());
    let exponent_ok = exponent.is_none_or(|e| {
        let e = e.strip_prefix(['-', '+']).unwrap_or(e);
        !e.is_empty() && all_digits(e)
    });
    if !mantissa_ok || !exponent_ok {
        return None;
    }
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

/// `strconv.FormatFloat(number, 'g', -1, 32)`, precision of a float32 included: that is what sigs.k8s.io/yaml calls.
fn format_float(number: f64) -> String {
    #[allow(clippy::cast_possible_truncation)]
    let number = number as f32;
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) {
        return number.to_string();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As printed by sigs.k8s.io/yaml 1.6.0 for a `map[string]string`.
    const TEXTS: &[(&str, &str)] = &[
        ("yes", "true"),
        ("on", "true"),
        ("y", "true"),
        ("TRUE", "true"),
        ("tRUE", "tRUE"),
        ("Off", "false"),
        ("N", "false"),
        ("0o7", "7"),
        ("0O17", "15"),
        ("010", "8"),
        ("-010", "-8"),
        ("+010", "8"),
        ("0x10", "16"),
        ("0X1F", "31"),
        ("-0x10", "-16"),
        ("0b11", "3"),
        ("+0b11", "3"),
        ("-0b11", "-3"),
        ("0_7", "7"),
        ("1_000", "1000"),
        ("1__0", "10"),
        ("_1", "_1"),
        ("1_0.5", "10.5"),
        ("1e3", "1000"),
        ("1e+3", "1000"),
        ("1e6", "1e+06"),
        ("1e-7", "1e-07"),
        ("0.00001", "1e-05"),
        ("123456.7", "123456.7"),
        ("1234567.5", "1.2345675e+06"),
        ("16777217.5", "1.6777218e+07"),
        ("1.10", "1.1"),
        ("1.0", "1"),
        (".5", "0.5"),
        ("5.", "5"),
        ("08", "8"),
        ("+5", "5"),
        ("-0", "0"),
        ("-0.0", "-0"),
        ("null", ""),
        ("~", ""),
        ("", ""),
        ("nULL", "nULL"),
        ("2001-12-14", "2001-12-14"),
        (
            "2001-12-14t21:59:43.10-05:00",
            "2001-12-14t21:59:43.10-05:00",
        ),
        ("1:30", "1:30"),
        ("0x", "0x"),
        ("0b", "0b"),
        ("0b2", "0b2"),
        ("0o8", "0o8"),
        ("0x1p4", "0x1p4"),
        ("0x-1", "0x-1"),
        ("+-5", "+-5"),
        ("+", "+"),
        (".", "."),
        ("1e400", "1e400"),
        ("1,000", "1,000"),
        (".inf", "+Inf"),
        ("-.inf", "-Inf"),
        (".nan", "NaN"),
        ("Infinity", "Infinity"),
        ("9007199254740993", "9007199254740993"),
        ("18446744073709551615", "18446744073709551615"),
        ("18446744073709551616", "1.8446744e+19"),
    ];

    #[test]
    fn plain_scalars_become_the_text_that_go_makes_of_them() {
        for (plain, text) in TEXTS {
            assert_eq!(to_text(plain), *text, "{plain:?}");
        }
    }

    #[test]
    fn multi_byte_characters_are_text() {
        for text in ["é", "-é", "0é", "0xé", ".é", "1é_"] {
            assert_eq!(resolve(text), Resolved::Text, "{text:?}");
        }
    }
}
