//! Examining a store that no server has open: redb's own structure, and what this store promises on top of it.
//!
//! Input: a file, and what the caller knows of values. Output: what is in it, or what is wrong with it. The file is only read: a
//! store that a power cut left is repaired in memory, as the next start would do on disk. Refuses a file that is in use.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, StorageError, TableError,
    TableHandle,
};

use super::overlay::Overlay;
use super::record::Record;
use super::{COMPACTED, META, RECORDS, REVISION, Revision, builder, survive};
use crate::storage::{Key, Write};

/// Findings that are told, at most.
const MAX_FINDINGS: usize = 20;

/// Says what is wrong with a key's value, if anything is.
pub type Audit = fn(&Key, &[u8]) -> Option<String>;

/// What is in a sound store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub revision: Revision,
    /// The history starts after this revision.
    pub compacted: Revision,
    /// Live keys.
    pub keys: usize,
    pub records: usize,
    /// Records that a later commit removes.
    pub obsolete: usize,
    /// Whether the last server closed the store; otherwise the next one repairs it.
    pub closed: bool,
}

/// What is wrong, in the order of the file; the first [`MAX_FINDINGS`] are kept.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    told: Vec<String>,
    more: usize,
}

impl Findings {
    fn add(&mut self, finding: String) {
        if self.told.len() < MAX_FINDINGS {
            self.told.push(finding);
        } else {
            self.more += 1;
        }
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.told.join("; "))?;
        if self.more > 0 { write!(f, "; and {} more", self.more) } else { Ok(()) }
    }
}

/// Why a store is not sound, or cannot be examined.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("check {path}", path = path.display())]
    Open { path: PathBuf, source: std::io::Error },
    #[error(
        "check {path}: in use by a running server; make a backup with `orlopctl store backup` and check that",
        path = path.display()
    )]
    InUse { path: PathBuf },
    #[error("check {path}: not a store: {reason}", path = path.display())]
    NotAStore { path: PathBuf, reason: String },
    #[error("check {path}: damaged: {findings}", path = path.display())]
    Damaged { path: PathBuf, findings: Findings },
}

/// Examines the store at `path`.
pub fn check(path: &Path, audit: Audit) -> Result<Report, CheckError> {
    let failed = |source| CheckError::Open { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() || found.len() == 0 {
        let reason = if found.is_file() { "the file is empty" } else { "not a regular file" };
        return Err(CheckError::NotAStore { path: path.to_owned(), reason: reason.into() });
    }
    examine(Overlay::new(file).map_err(|error| refused(path, error))?, path, audit)
}

/// Examines the store on `backend`, which it may write to; `path` is for errors.
pub(super) fn examine(backend: impl StorageBackend, path: &Path, audit: Audit) -> Result<Report, CheckError> {
    survive(|| look(backend, path, audit)).unwrap_or_else(|reason| {
        let findings = Findings { told: vec![reason], more: 0 };
        Err(CheckError::Damaged { path: path.to_owned(), findings })
    })
}

fn look(backend: impl StorageBackend, path: &Path, audit: Audit) -> Result<Report, CheckError> {
    let damaged = |findings| CheckError::Damaged { path: path.to_owned(), findings };
    let repaired = Rc::new(Cell::new(false));
    let notice = repaired.clone();
    let database = builder().set_repair_callback(move |_| notice.set(true)).create_with_backend(backend);
    let mut database = database.map_err(|error| refused(path, error))?;
    let mut findings = Findings::default();
    match database.check_integrity() {
        Ok(true) => {}
        Ok(false) => findings.add("pages do not match their checksums or are accounted for wrongly".into()),
        Err(error) => return Err(refused(path, error)),
    }
    let read = read(&database, audit, &mut findings);
    let report = read.unwrap_or_else(|error| {
        findings.add(error.to_string());
        Report::default()
    });
    if !findings.told.is_empty() {
        return Err(damaged(findings));
    }
    Ok(Report { closed: !repaired.get(), ..report })
}

/// What redb's refusal means to the one who asked.
fn refused(path: &Path, error: DatabaseError) -> CheckError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => CheckError::InUse { path },
        DatabaseError::UpgradeRequired(version) => {
            CheckError::NotAStore { path, reason: format!("a redb file of format {version}") }
        }
        DatabaseError::Storage(StorageError::Io(error))
            if error.kind() == std::io::ErrorKind::InvalidData =>
        {
            CheckError::NotAStore { path, reason: error.to_string() }
        }
        other => {
            let mut findings = Findings::default();
            findings.add(other.to_string());
            CheckError::Damaged { path, findings }
        }
    }
}

fn read(database: &Database, audit: Audit, findings: &mut Findings) -> Result<Report, redb::Error> {
    let snapshot = database.begin_read()?;
    for table in snapshot.list_tables()? {
        if ![RECORDS.name(), META.name()].contains(&table.name()) {
            findings.add(format!("a table {:?}, which this version does not know", table.name()));
        }
    }
    let (records, meta) = match (snapshot.open_table(RECORDS), snapshot.open_table(META)) {
        (Ok(records), Ok(meta)) => (records, meta),
        (Err(error), _) | (_, Err(error)) => {
            findings.add(table_problem(error)?);
            return Ok(Report::default());
        }
    };
    let number = |name| meta.get(name).map(|value| value.map_or(0, |value| value.value()));
    let mut auditor = Auditor::new(number(REVISION)?, number(COMPACTED)?, audit);
    for row in records.iter()? {
        let (revision, record) = row?;
        auditor.record(revision.value(), record.value(), findings);
    }
    Ok(auditor.end(findings))
}

/// A table that is not there or is another one is a finding; that it cannot be read is an error.
fn table_problem(error: TableError) -> Result<String, redb::Error> {
    match error {
        TableError::Storage(error) => Err(error.into()),
        other => Ok(other.to_string()),
    }
}

/// Reads records in the order of their revisions and holds them against the store's promises.
struct Auditor {
    report: Report,
    audit: Audit,
    /// The next revision that has to be there: from `compacted` on none is missing.
    next: Revision,
    live: HashSet<Key>,
}

impl Auditor {
    fn new(revision: Revision, compacted: Revision, audit: Audit) -> Self {
        let report = Report { revision, compacted, ..Report::default() };
        Auditor { report, audit, next: compacted.saturating_add(1), live: HashSet::new() }
    }

    fn record(&mut self, revision: Revision, bytes: &[u8], findings: &mut Findings) {
        self.report.records += 1;
        if revision > self.report.revision {
            findings
                .add(format!("record {revision}: newer than the store's revision {}", self.report.revision));
        } else if revision > self.report.compacted {
            self.expect(revision, findings);
            self.next = revision + 1;
        }
        let Some(write) = Record::decode(bytes) else {
            findings.add(format!("record {revision}: does not parse"));
            return;
        };
        if let Some(problem) = self.problem(&write) {
            findings.add(format!("record {revision}: key {:?}: {problem}", write.key().0));
        }
        self.follow(write, revision <= self.report.compacted);
    }

    /// Revisions from `next` to the one before `revision` are missing.
    fn expect(&self, revision: Revision, findings: &mut Findings) {
        match revision - self.next {
            0 => {}
            1 => findings.add(format!("record {}: missing from the history", self.next)),
            _ => findings.add(format!("records {} to {}: missing from the history", self.next, revision - 1)),
        }
    }

    fn problem(&self, write: &Write) -> Option<String> {
        let (storage, _, name) = write.key().parts();
        if storage.is_empty() || name.is_empty() || name.contains('/') {
            return Some("not of the form kind/namespace/name".into());
        }
        match write {
            Write::Put { key, value } | Write::Delete { key, last: value } => (self.audit)(key, value),
        }
    }

    fn follow(&mut self, write: Write, compacted: bool) {
        let (key, deleted) = match write {
            Write::Put { key, .. } => (key, false),
            Write::Delete { key, .. } => (key, true),
        };
        let was_live = if deleted { self.live.remove(&key) } else { !self.live.insert(key) };
        if compacted {
            self.report.obsolete += usize::from(was_live) + usize::from(deleted);
        }
    }

    fn end(mut self, findings: &mut Findings) -> Report {
        if self.report.compacted > self.report.revision {
            let (compacted, revision) = (self.report.compacted, self.report.revision);
            findings.add(format!("compacted up to {compacted}, behind the store's revision {revision}"));
        } else {
            self.expect(self.report.revision + 1, findings);
        }
        self.report.keys = self.live.len();
        self.report
    }
}

#[cfg(test)]
mod tests;
