//! The endpoints that are open to everybody: `/livez`, `/readyz`, `/healthz`, each as a whole or by one of its checks.
//!
//! Input: a path, a query, and the store to ask. Output: upstream's lines, with code 500 when a check fails.

use std::fmt::Write;

use futures::FutureExt;
use http::Response;

use super::{Body, Query, respond};
use crate::storage::Storage;

const TEXT: &str = "text/plain; charset=utf-8";

/// What a check found.
#[derive(Clone, Copy)]
struct Check {
    name: &'static str,
    is_good: bool,
}

/// The server answers, and its store takes writes.
fn checks(store: &dyn Storage) -> [Check; 2] {
    let is_open = store.closed().now_or_never().is_none();
    [Check { name: "ping", is_good: true }, Check { name: "store", is_good: is_open }]
}

/// The answer, where the path is one of the endpoints or of their checks.
pub(super) fn answer(path: &str, query: &str, store: &dyn Storage) -> Option<Response<Body>> {
    let path = path.strip_prefix('/')?;
    let (endpoint, one) = path.split_once('/').unwrap_or((path, ""));
    if !matches!(endpoint, "livez" | "readyz" | "healthz") {
        return None;
    }
    let checks = checks(store);
    if !one.is_empty() {
        let check = checks.iter().find(|check| check.name == one)?;
        return Some(match check.is_good {
            true => respond(200, TEXT, "ok"),
            false => respond(500, TEXT, "internal server error: reason withheld\n"),
        });
    }
    let query = Query::parse(query);
    let mut lines = String::new();
    let mut is_good = true;
    for check in checks {
        let excluded = query.all("exclude").any(|name| name == check.name);
        is_good &= check.is_good || excluded;
        let (sign, found) = match (excluded, check.is_good) {
            (true, _) => ('+', "excluded: ok"),
            (false, true) => ('+', "ok"),
            (false, false) => ('-', "failed: reason withheld"),
        };
        // Writing to a string does not fail.
        let _ = writeln!(lines, "[{sign}]{} {found}", check.name);
    }
    Some(match (is_good, query.has("verbose")) {
        (true, false) => respond(200, TEXT, "ok"),
        (true, true) => respond(200, TEXT, format!("{lines}{endpoint} check passed\n")),
        (false, _) => respond(500, TEXT, format!("{lines}{endpoint} check failed\n")),
    })
}

#[cfg(test)]
mod tests {
    //! What is answered for a store that is open, and for one that is not.

    use futures::future::BoxFuture;
    use http_body_util::BodyExt;

    use super::*;
    use crate::storage::{Backup, BackupError, Revision, StorageError, Transaction};

    struct Store {
        is_open: bool,
    }

    impl Storage for Store {
        fn commit(&self, _: Transaction) -> BoxFuture<'_, Result<Revision, StorageError>> {
            std::future::ready(Err(StorageError::Closed)).boxed()
        }

        fn closed(&self) -> BoxFuture<'_, ()> {
            if self.is_open { std::future::pending().boxed() } else { std::future::ready(()).boxed() }
        }

        fn backup(&self) -> BoxFuture<'_, Result<Backup, BackupError>> {
            std::future::ready(Err(BackupError::Failed { reason: "not in this test".into() })).boxed()
        }
    }

    fn ask(path: &str, is_open: bool) -> Option<(u16, String)> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let response = answer(path, query, &Store { is_open })?;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().now_or_never()?.ok()?.to_bytes();
        Some((code, String::from_utf8_lossy(&bytes).into_owned()))
    }

    #[test]
    fn a_closed_store_fails_the_checks() {
        for (path, open, closed) in [
            (
                "/readyz",
                (200, "ok"),
                (500, "[+]ping ok\n[-]store failed: reason withheld\nreadyz check failed\n"),
            ),
            (
                "/livez?verbose",
                (200, "[+]ping ok\n[+]store ok\nlivez check passed\n"),
                (500, "[+]ping ok\n[-]store failed: reason withheld\nlivez check failed\n"),
            ),
            ("/healthz?exclude=store", (200, "ok"), (200, "ok")),
            ("/readyz/ping", (200, "ok"), (200, "ok")),
            ("/readyz/store", (200, "ok"), (500, "internal server error: reason withheld\n")),
        ] {
            let expected = |(code, text): (u16, &str)| Some((code, text.to_owned()));
            assert_eq!(ask(path, true), expected(open), "{path}");
            assert_eq!(ask(path, false), expected(closed), "{path}");
        }
        assert_eq!((ask("/readyz/nothing", true), ask("/api", true)), (None, None));
    }
}
