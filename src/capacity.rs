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
    let suffixes = [(KIB.pow(6), "Ei"), (KIB.pow(5), "Pi"), (KIB.pow(4), "Ti"), (GIB, "Gi"), (MIB, "Mi"), (KIB, "Ki")];
    suffixes
        .iter()
        .find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit))
        .map_or_else(|| bytes.to_string(), |(unit, suffix)| format!("{}{suffix}", bytes / unit))
}

/// Reads a Kubernetes quantity as bytes, rounded up; `None` if it is none.
/// <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>
#[must_use]
pub fn parse(quantity: &str) -> Option<u64> {
    let split = quantity
        .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '+' || c == '-'))
        .unwrap_or(quantity.len());
    let (number, suffix) = quantity.split_at(split);
    let factor: f64 = match suffix {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        "Ei" => 1024f64.powi(6),
        exponent => 10f64.powi(exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    if let (Ok(whole), true) = (number.parse::<u64>(), factor >= 1.0) {
        // Exact where a float is not: whole numbers of a whole unit.
        return whole.checked_mul(factor as u64);
    }
    let value = (number.parse::<f64>().ok()? * factor).ceil();
    (value >= 0.0 && value < 2f64.powi(64)).then_some(value as u64)
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
        for (text, bytes) in [("1.5Gi", 1536 * MIB), ("1e3", 1000), ("2G", 2_000_000_000), ("1500m", 2), ("12E", 12_000_000_000_000_000_000)] {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
        for text in ["", "Gi", "1.2.3", "-1", "5Q", "99999999999E"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
