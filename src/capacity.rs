//! Capacities: rounding and writing as the classic program did, and reading Kubernetes quantities.

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Rounds a capacity in bytes down: to GiB from 10 GiB, else to MiB from 10 MiB, else not at all.
#[must_use]
pub fn round(bytes: u64) -> u64 {
    let unit = if bytes >= 10 * GIB {
        GIB
    } else if bytes >= 10 * MIB {
        MIB
    } else {
        1
    };
    bytes - bytes % unit
}

/// The canonical quantity of a number of bytes: the largest binary suffix that leaves a whole number.
#[must_use]
pub fn quantity(bytes: u64) -> String {
    let suffixes = [
        (KIB.pow(6), "Ei"),
        (KIB.pow(5), "Pi"),
        (KIB.pow(4), "Ti"),
        (GIB, "Gi"),
        (MIB, "Mi"),
        (KIB, "Ki"),
    ];
    suffixes
        .iter()
        .find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit))
        .map_or_else(
            || bytes.to_string(),
            |(unit, suffix)| format!("{}{suffix}", bytes / unit),
        )
}

/// Reads a Kubernetes quantity as bytes, rounded up; `None` if it is none.
/// <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>
#[must_use]
pub fn parse(quantity: &str) -> Option<u64> {
    let quantity = quantity.strip_prefix('+').unwrap_or(quantity);
    let split = quantity.find(|c: char| !(c.is_ascii_digit() || c == '.'));
    let (number, suffix) = quantity.split_at(split.unwrap_or(quantity.len()));
    let (base, exponent): (u128, i32) = match suffix {
        "" => (10, 0),
        "n" => (10, -9),
        "u" => (10, -6),
        "m" => (10, -3),
        "k" => (10, 3),
        "M" => (10, 6),
        "G" => (10, 9),
        "T" => (10, 12),
        "P" => (10, 15),
        "E" => (10, 18),
        "Ki" => (1024, 1),
        "Mi" => (1024, 2),
        "Gi" => (1024, 3),
        "Ti" => (1024, 4),
        "Pi" => (1024, 5),
        "Ei" => (1024, 6),
        exponent => (10, exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // A float would round what is beyond 2^53.
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    if digits == 0 {
        return Some(0);
    }
    let places = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let bytes = match base.checked_pow(exponent.unsigned_abs()) {
        Some(factor) if exponent >= 0 => digits.checked_mul(factor)?.div_ceil(places),
        Some(factor) => digits.div_ceil(places.checked_mul(factor)?),
        None if exponent >= 0 => return None,
        None => 1,
    };
    u64::try_from(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_and_writes_like_the_classic_program() {
        let written = |bytes| quantity(round(bytes));
        assert_eq!(written(10 * GIB + 5), "10Gi");
        assert_eq!(written(10 * GIB - 1), "10239Mi");
        assert_eq!(written(10_000 * MIB - 1), "9999Mi");
        assert_eq!(written(10 * MIB - 1), "10485759");
        assert_eq!(written(100 * KIB), "100Ki");
        assert_eq!(written(1024 * GIB), "1Ti");
        assert_eq!(written(0), "0");
    }

    #[test]
    fn reads_what_it_writes_and_what_others_write() {
        for bytes in [0, 1, 1023, 5 * GIB, 1536 * MIB, 16 * KIB.pow(5), u64::from(u32::MAX)] {
            assert_eq!(parse(&quantity(bytes)), Some(bytes), "{bytes}");
        }
        for (text, bytes) in [
            ("1.5Gi", 1536 * MIB),
            ("1e3", 1000),
            ("2G", 2_000_000_000),
            ("1500m", 2),
            ("12E", 12_000_000_000_000_000_000),
            ("18446744073709551615", u64::MAX),
            ("9007199254740993.0", 9_007_199_254_740_993),
            ("9007199254740993000m", 9_007_199_254_740_993),
            (".5Ki", 512),
            ("+1.", 1),
            ("1e-99", 1),
            ("0e99", 0),
        ] {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "Gi",
            ".",
            "1.2.3",
            "-1",
            "1+1",
            "5Q",
            "99999999999E",
            "1e20",
            "1e2147483647",
            "18446744073709551616",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
