//! Committing a write, with what has to follow it.
//!
//! A client may go away in the middle of its request; its handler is then dropped, but a transaction that the store has
//! taken is done all the same. What follows a commit therefore runs in a task of its own, which nobody's leaving ends.

use crate::allocators::Bookkeeping;
use crate::api::Api;
use crate::storage::{Revision, StorageError, Transaction};

/// A transaction that was not done, and what was to follow it, for another try.
pub(super) struct Refused {
    pub error: StorageError,
    pub bookkeeping: Option<Bookkeeping>,
}

impl Api {
    /// Commits `transaction`; `bookkeeping` is settled by its outcome, also when the caller is dropped meanwhile.
    pub(super) async fn commit(
        &self,
        transaction: Transaction,
        bookkeeping: Option<Bookkeeping>,
    ) -> Result<Revision, Refused> {
        let Some(bookkeeping) = bookkeeping else {
            let outcome = self.store.commit(transaction).await;
            return outcome.map_err(|error| Refused { error, bookkeeping: None });
        };
        let store = self.store.clone();
        let task = tokio::spawn(async move {
            match store.commit(transaction).await {
                Ok(revision) => {
                    bookkeeping.stored();
                    Ok(revision)
                }
                Err(error) => Err(Refused { error, bookkeeping: Some(bookkeeping) }),
            }
        });
        // The task neither panics nor is aborted, unless the whole server ends.
        task.await.unwrap_or(Err(Refused { error: StorageError::Closed, bookkeeping: None }))
    }
}
