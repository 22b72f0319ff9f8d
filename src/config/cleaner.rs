//! `blockCleanerCommand`: a native method, the classic script that stands for one, or a command to run.

use std::fmt;

use super::Class;

/// How the block devices of a class are scrubbed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cleaner {
    /// Overwrite with zeros; the default, and what `/scripts/dd_zero.sh` stands for.
    Zero,
    /// Discard all blocks (and zero after it, as a discard promises nothing about later reads); `/scripts/blkdiscard.sh`.
    Discard,
    /// Overwrite with random data, then with zeros; `/scripts/shred.sh`.
    Shred {
        /// How often random data is written, at least once.
        passes: u32,
    },
    /// Remove signatures only: the data stays readable; `/scripts/quick_reset.sh`.
    Quick,
    /// `/scripts/fsclean.sh`, which deletes the files of a filesystem and does nothing for a block device.
    Fsclean,
    /// A program and its arguments, run as given.
    Command(Vec<String>),
}

/// Of `/scripts/shred.sh` without an argument.
const DEFAULT_SHRED_PASSES: u32 = 3;

impl Cleaner {
    /// The cleaner that a `blockCleanerCommand` means. A method may be written in one item (`shred 5`) or in two.
    ///
    /// # Errors
    ///
    /// Says what is wrong with an empty command or with the arguments of a method or classic script.
    pub fn parse(command: &[String]) -> Result<Self, String> {
        let Some(program) = command.first() else {
            return Err("the command is empty: remove it (the default is zero) or name a method or a program".to_owned());
        };
        // The scripts look at their first argument only.
        let argument = command.get(1).map(String::as_str);
        match program.as_str() {
            "" => return Err("the program's name is empty".to_owned()),
            "/scripts/quick_reset.sh" => return Ok(Self::Quick),
            "/scripts/blkdiscard.sh" => return Ok(Self::Discard),
            "/scripts/fsclean.sh" => return Ok(Self::Fsclean),
            "/scripts/dd_zero.sh" => return passes(program, argument).map(|_| Self::Zero),
            "/scripts/shred.sh" => return shred(program, argument),
            _ => {}
        }
        let words: Vec<&str> = program
            .split_whitespace()
            .chain(command.iter().skip(1).map(String::as_str))
            .collect();
        match words.as_slice() {
            ["zero"] => Ok(Self::Zero),
            ["discard"] => Ok(Self::Discard),
            ["quick"] => Ok(Self::Quick),
            ["shred"] => shred("shred", None),
            ["shred", passes] => shred("shred", Some(passes)),
            [method @ ("zero" | "discard" | "quick"), ..] => {
                Err(format!("{method} takes no argument"))
            }
            ["shred", ..] => Err("shred takes one argument, the number of passes".to_owned()),
            _ => Ok(Self::Command(command.to_vec())),
        }
    }
}

impl Class {
    /// How block devices of this class are scrubbed: zeroed where `blockCleanerCommand` is absent.
    pub fn cleaner(&self) -> Cleaner {
        match &self.block_cleaner_command {
            None => Cleaner::Zero,
            // The parser lets no invalid command into a class; to run it as it stands fails, and releases nothing.
            Some(command) => {
                Cleaner::parse(command).unwrap_or_else(|_| Cleaner::Command(command.clone()))
            }
        }
    }

    /// The cleaner as the operator wrote it, such as `/scripts/shred.sh 2`; `zero` where the setting is absent.
    pub fn cleaner_as_written(&self) -> String {
        match &self.block_cleaner_command {
            None => Cleaner::Zero.to_string(),
            Some(command) => command.join(" "),
        }
    }
}

/// The words that an operator would write in `blockCleanerCommand`.
impl fmt::Display for Cleaner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zero => f.write_str("zero"),
            Self::Discard => f.write_str("discard"),
            Self::Shred { passes } => write!(f, "shred {passes}"),
            Self::Quick => f.write_str("quick"),
            Self::Fsclean => f.write_str("/scripts/fsclean.sh"),
            Self::Command(words) => f.write_str(&words.join(" ")),
        }
    }
}

fn shred(method: &str, argument: Option<&str>) -> Result<Cleaner, String> {
    let passes = passes(method, argument)?.unwrap_or(DEFAULT_SHRED_PASSES);
    Ok(Cleaner::Shred { passes })
}

fn passes(method: &str, argument: Option<&str>) -> Result<Option<u32>, String> {
    let Some(argument) = argument else {
        return Ok(None);
    };
    match argument.parse() {
        Ok(passes) if passes > 0 => Ok(Some(passes)),
        _ => Err(format!(
            "{method} takes a number of passes from 1 up, not {argument:?}"
        )),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Cleaner, String> {
        Cleaner::parse(&words.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn methods_and_classic_scripts() {
        for (words, cleaner) in [
            (&["zero"][..], Cleaner::Zero),
            (&["discard"], Cleaner::Discard),
            (&["quick"], Cleaner::Quick),
            (&["shred"], Cleaner::Shred { passes: 3 }),
            (&["shred", "5"], Cleaner::Shred { passes: 5 }),
            (&["shred 5"], Cleaner::Shred { passes: 5 }),
            (&["/scripts/quick_reset.sh"], Cleaner::Quick),
            (&["/scripts/shred.sh"], Cleaner::Shred { passes: 3 }),
            (&["/scripts/shred.sh", "2"], Cleaner::Shred { passes: 2 }),
            (
                &["/scripts/shred.sh", "2", "ignored"],
                Cleaner::Shred { passes: 2 },
            ),
            (&["/scripts/dd_zero.sh"], Cleaner::Zero),
            (&["/scripts/dd_zero.sh", "2"], Cleaner::Zero),
            (&["/scripts/blkdiscard.sh"], Cleaner::Discard),
            (&["/scripts/fsclean.sh"], Cleaner::Fsclean),
        ] {
            assert_eq!(parse(words), Ok(cleaner), "{words:?}");
        }
    }

    #[test]
    fn anything_else_is_a_command() {
        for words in [
            &["/bin/true"][..],
            &["sh", "-c", "wipefs -a x"],
            &["/other/shred.sh", "2"],
            &["Zero"],
            &["zeroed"],
        ] {
            let command = words.iter().map(ToString::to_string).collect();
            assert_eq!(parse(words), Ok(Cleaner::Command(command)), "{words:?}");
        }
    }

    #[test]
    fn wrong_arguments_are_errors_and_not_commands() {
        for words in [
            &[][..],
            &[""],
            &["shred", "0"],
            &["shred", "-1"],
            &["shred", "many"],
            &["shred", "1", "2"],
            &["zero", "2"],
            &["/scripts/shred.sh", "x"],
            &["/scripts/dd_zero.sh", "0"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn what_is_displayed_parses_back() {
        for words in [
            &["zero"][..],
            &["discard"],
            &["quick"],
            &["shred", "7"],
            &["/scripts/fsclean.sh"],
            &["/bin/wipe"],
        ] {
            let cleaner = parse(words).unwrap();
            assert_eq!(parse(&[&cleaner.to_string()]), Ok(cleaner), "{words:?}");
        }
    }
}
