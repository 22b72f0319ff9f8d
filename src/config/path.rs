//! Paths by their text, without looking at a filesystem.

/// What Go's `filepath.Clean` makes of a path: no repeated or trailing slash, no `.`, `..` resolved by text.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            _ => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cleans_as_go_does() {
        for (path, cleaned) in [
            ("", "."),
            (".", "."),
            ("/", "/"),
            ("//", "/"),
            ("/a/", "/a"),
            ("/a//b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/../a", "/a"),
            ("/..", "/"),
            ("/a/b/..", "/a"),
            ("/a/...", "/a/..."),
            ("a/..", "."),
            ("./a", "a"),
            ("a/../../b", "../b"),
        ] {
            assert_eq!(clean(path), cleaned, "{path:?}");
        }
    }

    proptest! {
        #[test]
        fn cleaning_is_idempotent(path in "[a./]{0,24}") {
            let once = clean(&path);
            prop_assert_eq!(clean(&once), once);
        }

        #[test]
        fn absolute_stays_absolute_and_has_no_dots_left(path in "/[a./]{0,24}") {
            let cleaned = clean(&path);
            prop_assert!(Path::new(&cleaned).is_absolute());
            prop_assert!(!cleaned.split('/').any(|part| part == "." || part == ".."));
        }
    }
}
