//! What Kubernetes accepts as names, label keys and label values; the API server refuses a PV for a single bad one.

/// Checks the name of an object such as a StorageClass: a DNS-1123 subdomain.
///
/// # Errors
///
/// Says which rule it breaks.
pub fn check_object_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > 253 {
        return Err("it must have 1 to 253 characters".to_owned());
    }
    let legal = name.split('.').all(|part| {
        has_alphanumeric_ends(part)
            && part
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    });
    if legal {
        Ok(())
    } else {
        Err(
            "use lower-case letters, digits, `-` and `.`, with a letter or digit at both ends"
                .to_owned(),
        )
    }
}

/// Checks the key of a label or taint: `name` or `dns.prefix/name`.
///
/// # Errors
///
/// Says which rule it breaks.
pub fn check_label_key(key: &str) -> Result<(), String> {
    let name = match key.split_once('/') {
        None => key,
        Some((prefix, name)) => {
            check_object_name(prefix)
                .map_err(|why| format!("the prefix before `/` is not legal: {why}"))?;
            name
        }
    };
    if name.is_empty() || name.len() > 63 {
        return Err("the name must have 1 to 63 characters".to_owned());
    }
    check_label_characters(name)
}

/// Checks the value of a label; empty is legal.
///
/// # Errors
///
/// Says which rule it breaks.
pub fn check_label_value(value: &str) -> Result<(), String> {
    if value.len() > 63 {
        return Err("it is longer than 63 characters".to_owned());
    }
    if value.is_empty() {
        Ok(())
    } else {
        check_label_characters(value)
    }
}

fn check_label_characters(text: &str) -> Result<(), String> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if has_alphanumeric_ends(text) && text.bytes().all(legal) {
        return Ok(());
    }
    Err("use letters, digits, `-`, `_` and `.`, with a letter or digit at both ends".to_owned())
}

fn has_alphanumeric_ends(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(a), Some(z)) if a.is_ascii_alphanumeric() && z.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_names() {
        for name in ["a", "fast-disks", "a.b-c.9", &"a".repeat(253)] {
            assert!(check_object_name(name).is_ok(), "{name:?}");
        }
        for name in [
            "",
            "A",
            "a_b",
            "-a",
            "a-",
            ".a",
            "a.",
            "a..b",
            "a.-b",
            "a b",
            "é",
            "a\n",
            &"a".repeat(254),
        ] {
            assert!(check_object_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn label_keys() {
        let long = "a".repeat(63);
        let prefixed = format!("{}/{long}", "b".repeat(253));
        for key in [
            "a",
            "Zone",
            "kubernetes.io/hostname",
            "a_b.c-d",
            &long,
            &prefixed,
        ] {
            assert!(check_label_key(key).is_ok(), "{key:?}");
        }
        let too_long = "a".repeat(64);
        for key in [
            "", "/a", "a/", "a/b/c", "A.io/x", "-a", "a-", "a b", "é", &too_long,
        ] {
            assert!(check_label_key(key).is_err(), "{key:?}");
        }
    }

    #[test]
    fn label_values() {
        for value in ["", "a", "A_b.c-9", &"a".repeat(63)] {
            assert!(check_label_value(value).is_ok(), "{value:?}");
        }
        for value in [
            "-a",
            "a-",
            "a/b",
            "a b",
            "1e+06",
            "é",
            "a\n",
            &"a".repeat(64),
        ] {
            assert!(check_label_value(value).is_err(), "{value:?}");
        }
    }
}
