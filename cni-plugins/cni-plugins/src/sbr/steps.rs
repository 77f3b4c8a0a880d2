//! The plan's steps, taken one after another, and taken back.

use cni::ErrorReply;
use linux::netlink::{Error, Netlink};

use super::plan::Step;

/// Takes the steps. When one fails, those before it are undone in reverse.
pub(super) async fn take(netlink: &Netlink, steps: &[Step]) -> Result<(), ErrorReply> {
    for (index, step) in steps.iter().enumerate() {
        let Err(error) = take_one(netlink, step).await else { continue };
        let mut left = Vec::new();
        for done in steps[..index].iter().rev() {
            match undo_one(netlink, done).await {
                Err(error) if !error.is_gone() && !error.is_exists() => left.push(error),
                _ => {}
            }
        }
        return Err(error.with_undo(left));
    }
    Ok(())
}

async fn take_one(netlink: &Netlink, step: &Step) -> Result<(), ErrorReply> {
    let (what, taken) = match step {
        Step::AddRule(rule) => ("Failed to add rule", netlink.add_rule(rule).await),
        Step::AddRoute(route) => ("Failed to add default route", netlink.add_route(route).await),
        Step::CopyRoute(route) => ("Failed to readd route", netlink.replace_route(route).await),
        Step::CopyBeside(route) => ("Failed to readd route", unless_there(netlink.append_route(route).await)),
        Step::DeleteRoute(route) => ("Failed to delete route", netlink.del_route(route).await),
        Step::Hint { route, .. } => ("", tolerate(netlink.replace_route(route).await)),
        Step::TryDelete(route) => ("", tolerate(netlink.del_route(route).await)),
    };
    taken.map_err(|error| ErrorReply::internal(format!("{what}: {error}")))
}

fn tolerate(taken: Result<(), Error>) -> Result<(), Error> {
    if let Err(error) = taken {
        eprintln!("{error}");
    }
    Ok(())
}

/// Two routes may differ in what is not copied.
fn unless_there(added: Result<(), Error>) -> Result<(), Error> {
    match added {
        Err(error) if error.is_exists() => Ok(()),
        added => added,
    }
}

async fn undo_one(netlink: &Netlink, step: &Step) -> Result<(), Error> {
    match step {
        Step::AddRule(rule) => netlink.del_rule(rule).await,
        Step::AddRoute(route) | Step::CopyRoute(route) | Step::CopyBeside(route) => {
            netlink.del_route(route).await
        }
        // Another way to the same place may be there again.
        Step::DeleteRoute(route) | Step::TryDelete(route) => netlink.add_route_beside(route).await,
        Step::Hint { before: Some(before), .. } => netlink.replace_route(before).await,
        Step::Hint { route, before: None } => netlink.del_route(route).await,
    }
}
