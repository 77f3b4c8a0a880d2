//! A copy of a running store, as of one revision.
//!
//! The copy is a store file of its own: put in the place of the original, a server starts from it. It is made in a file without
//! a name in the store's directory, so a killed server leaves nothing, and a slow receiver holds no snapshot of the database open.
//!
//! A cluster that goes back to a backup gives revisions out again that clients saw with other contents. So a copy continues far
//! behind them ([`REVISION_GAP`]) and has no history: whoever resumes from before is told to list again, and a stale
//! resourceVersion never matches. etcd's restore does the same when told `--bump-revision --mark-compacted`.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable};

use super::{BackupError, COMPACTED, META, RECORDS, REVISION, Revision, builder};
use crate::files;

/// How far behind the original's revision a copy continues: more changes than a cluster makes between a backup and its return.
pub(super) const REVISION_GAP: Revision = 1_000_000_000;

/// Copies `database`, whose file is at `path`.
pub(super) fn make(database: &Database, path: &Path) -> Result<File, BackupError> {
    let failed = |reason: String| BackupError::Failed { reason };
    let file = tempfile::tempfile_in(files::directory_of(path));
    let mut file =
        file.map_err(|error| failed(format!("make a temporary file beside the store: {error}")))?;
    let handle = file.try_clone().map_err(|error| failed(error.to_string()))?;
    copy(database, handle).map_err(|error| failed(error.to_string()))?;
    file.seek(SeekFrom::Start(0)).map_err(|error| failed(error.to_string()))?;
    Ok(file)
}

fn copy(database: &Database, file: File) -> Result<(), redb::Error> {
    let snapshot = database.begin_read()?;
    let copy = builder().create_file(file)?;
    let transaction = copy.begin_write()?;
    {
        let mut records = transaction.open_table(RECORDS)?;
        for row in snapshot.open_table(RECORDS)?.iter()? {
            let (revision, record) = row?;
            records.insert(revision.value(), record.value())?;
        }
        let revision = snapshot.open_table(META)?.get(REVISION)?.map_or(0, |revision| revision.value());
        let mut meta = transaction.open_table(META)?;
        for name in [REVISION, COMPACTED] {
            meta.insert(name, revision + REVISION_GAP)?;
        }
    }
    transaction.commit()?;
    Ok(())
}
