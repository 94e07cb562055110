//! The folders below a guest's own writes, as a host agent tells them to envd. A build's disk has a
//! folder for each step that changed files. A version lies on folders of several such disks.
//!
//! Text form: drives from the lowest to the highest, each `DRIVE/FOLDERS`, joined by commas.
//! `FOLDERS` is `upper`, or numbers and ranges joined by `+`; a higher number lies above a lower
//! one. `1/1-8,2/1-3+5` has eight folders of drive 1 below four of drive 2.

use std::fmt;
use std::str::FromStr;

/// Most folders of a guest. Their paths must fit into the options of one mount, 4096 bytes.
pub const FOLDERS_MAX: usize = 200;
/// Most read-only drives of a guest, beside its image.
pub const DRIVES_MAX: usize = 8;
/// Number of the guest's own disk. Read-only drives count from 1, in the order of the machine's
/// drives after the own disk.
pub const OWN_DISK: u8 = 0;
/// Word of the kernel's command line before the folders of a guest.
pub const LOWER: &str = "wrenn.lower=";
/// Word of the kernel's command line by which envd runs the steps of a build.
pub const BUILD: &str = "wrenn.build";

/// Folders of one drive, from the lowest to the highest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Folders {
    /// Writes of a capsule, on its own disk.
    Upper,
    /// Folders of steps, by their numbers in growing order.
    Steps(Vec<u32>),
}

/// Folders of a guest by drives, from the lowest to the highest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct Lower(pub Vec<(u8, Folders)>);

/// A text that lists no folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidLower(String);

impl fmt::Display for InvalidLower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` lists no folders of drives", self.0)
    }
}

impl std::error::Error for InvalidLower {}

impl Lower {
    /// Returns drive and name of each folder, from the highest to the lowest, as an overlay wants
    /// them.
    pub fn from_top(&self) -> Vec<(u8, String)> {
        let mut all = Vec::new();
        for (drive, folders) in &self.0 {
            match folders {
                Folders::Upper => all.push((*drive, "upper".to_owned())),
                Folders::Steps(numbers) => {
                    all.extend(numbers.iter().map(|number| (*drive, number.to_string())));
                }
            }
        }
        all.reverse();
        all
    }
}

impl fmt::Display for Folders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Steps(numbers) = self else { return f.write_str("upper") };
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for number in numbers {
            match ranges.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(*number) => *last = *number,
                _ => ranges.push((*number, *number)),
            }
        }
        let texts = ranges.iter().map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        });
        f.write_str(&texts.collect::<Vec<_>>().join("+"))
    }
}

impl fmt::Display for Lower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = self.0.iter().map(|(drive, folders)| format!("{drive}/{folders}"));
        f.write_str(&texts.collect::<Vec<_>>().join(","))
    }
}

impl FromStr for Lower {
    type Err = InvalidLower;

    fn from_str(text: &str) -> Result<Self, InvalidLower> {
        let invalid = || InvalidLower(text.to_owned());
        let mut all = Vec::new();
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let (drive, folders) = part.split_once('/').ok_or_else(invalid)?;
            let drive = drive.parse().ok().filter(|drive| usize::from(*drive) <= DRIVES_MAX);
            let folders = match folders {
                "upper" => Folders::Upper,
                numbers => Folders::Steps(steps(numbers).ok_or_else(invalid)?),
            };
            all.push((drive.ok_or_else(invalid)?, folders));
        }
        let lower = Self(all);
        match lower.from_top().len() <= FOLDERS_MAX {
            true => Ok(lower),
            false => Err(invalid()),
        }
    }
}

/// Reads numbers and ranges in growing order.
fn steps(text: &str) -> Option<Vec<u32>> {
    let mut all: Vec<u32> = Vec::new();
    for range in text.split('+') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        let grows = all.last().is_none_or(|before| *before < first);
        let few = last.checked_sub(first)? < u32::try_from(FOLDERS_MAX).ok()?;
        if !grows || !few {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_round_trip_through_text() {
        for text in ["", "1/upper", "1/1-8,2/1-3+5", "0/7,1/2+4-5", "1/upper,0/1-200"] {
            match text.parse::<Lower>() {
                Ok(lower) => assert_eq!(lower.to_string(), text),
                Err(error) => assert_eq!(text, "1/upper,0/1-200", "{error}"),
            }
        }
        let lower: Lower = "1/1-2,2/upper,0/3".parse().unwrap();
        let folders = [(0, "3"), (2, "upper"), (1, "2"), (1, "1")];
        assert_eq!(lower.from_top(), folders.map(|(drive, name)| (drive, name.to_owned())));
    }

    #[test]
    fn text_that_lists_no_folders_is_refused() {
        for text in ["x", "1", "1/", "/1", "9/1", "1/2-1", "1/2+2", "1/1-4294967295", "1/1,", "1/-"]
        {
            assert!(text.parse::<Lower>().is_err(), "{text}");
        }
    }
}
