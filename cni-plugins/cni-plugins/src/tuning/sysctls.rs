//! Sysctls of the network namespace that the calling thread is in.

use std::{collections::BTreeMap, fs, path::PathBuf};

use cni::ErrorReply;

use crate::verify::different;

/// Stands for the container's link.
const LINK: &str = "IFNAME";
const ROOT: &str = "/proc/sys";

/// A file, and what is to be in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    path: PathBuf,
    value: String,
}

/// The files of sysctls by names with dots or slashes between their parts.
pub(super) fn files(sysctls: &BTreeMap<String, String>, ifname: &str) -> Result<Vec<File>, ErrorReply> {
    let file = |(key, value): (&String, &String)| {
        let path = path(key, ifname)?;
        Ok(File { path, value: value.clone() })
    };
    sysctls.iter().map(file).collect()
}

/// The link's name is put in last: it may have dots in it.
fn path(key: &str, ifname: &str) -> Result<PathBuf, ErrorReply> {
    let name = key.replace('.', "/").replacen(LINK, ifname, 1);
    let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty()).collect();
    match parts.as_slice() {
        ["net", _, ..] => Ok([ROOT].iter().chain(&parts).collect()),
        _ => Err(ErrorReply::config(format!("invalid net sysctl key: {name:?}"))),
    }
}

/// What was set, with what was there before.
#[derive(Debug, Default)]
pub(super) struct Changed {
    before: Vec<File>,
}

impl Changed {
    /// Stops at the first that cannot be set.
    pub(super) fn set_all(&mut self, files: &[File]) -> Result<(), ErrorReply> {
        for File { path, value } in files {
            // Some can be written only.
            let before = fs::read_to_string(path);
            fs::write(path, value).map_err(|error| {
                ErrorReply::internal(format!("failed to set sysctl {}: {error}", path.display()))
            })?;
            self.before.extend(before.map(|value| File { path: path.clone(), value }));
        }
        Ok(())
    }

    /// What could not be restored.
    pub(super) fn restore(&self) -> Vec<String> {
        let restore = |File { path, value }: &File| {
            let failed = fs::write(path, value.trim_end()).err()?;
            Some(format!("restore sysctl {}: {failed}", path.display()))
        };
        self.before.iter().rev().filter_map(restore).collect()
    }
}

/// The first difference. The kernel prints tabs between the numbers of a list, whatever was written.
pub(super) fn compare(files: &[File]) -> Result<(), ErrorReply> {
    for File { path, value } in files {
        let found = fs::read_to_string(path);
        let found = found.map_err(|error| ErrorReply::internal(format!("{}: {error}", path.display())))?;
        if !found.split_whitespace().eq(value.split_whitespace()) {
            let (file, found) = (path.display(), found.trim_end());
            let message =
                format!("Error: Tuning configured value of {file} is {value}, current value is {found}");
            return Err(different(message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
