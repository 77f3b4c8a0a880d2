//! The plugin `tuning`: sets sysctls of the container's namespace, and properties of its link.
//!
//! Inputs: the reference plugin's keys, and a result of the plugins before it, which it passes on. What the link's
//! properties were is kept in a file (see [`backup`](self)), so that DEL restores them for a link that lives on; sysctls
//! go with the namespace and are not restored. It refuses sysctls outside `net`, and those that the machine's
//! administrator does not allow.

mod allowlist;
mod backup;
pub(crate) mod config;
mod properties;
mod sysctls;

use cni::{AddResult, ErrorReply};
use linux::netlink::{Link, Netlink};

use self::{backup::Backup, config::Config, properties::Properties};
use crate::{
    plugin::{Plugin, Request, block_on},
    verify::different,
};

const NO_PREV_RESULT: &str = "Required prevResult missing";

/// See the module.
#[derive(Debug)]
pub struct Tuning;

impl Plugin for Tuning {
    const NAME: &'static str = "tuning";

    fn add(&self, request: &Request) -> Result<AddResult, ErrorReply> {
        let config = Config::read(request)?;
        allowlist::check(&config.sysctls)?;
        let files = sysctls::files(&config.sysctls, &request.ifname)?;
        let mut result = request.required_prev_result(NO_PREV_RESULT)?;
        let netns = request.open_netns()?;
        let mut changed = sysctls::Changed::default();
        let set = netns.run(|| changed.set_all(&files)).map_err(ErrorReply::internal)?;
        let tuned = set.and_then(|()| {
            block_on(async {
                let netlink = Netlink::open_in(&netns).map_err(ErrorReply::internal)?;
                tune_link(request, &config, &netlink).await
            })
        });
        if let Err(error) = tuned {
            let left = netns.run(|| changed.restore()).unwrap_or_else(|error| vec![error.to_string()]);
            return Err(error.with_undo(left));
        }
        if let Some(mac) = config.properties.mac {
            let of_link = result.interfaces.iter_mut().filter(|interface| interface.name == request.ifname);
            of_link.for_each(|interface| interface.mac = Some(mac.to_string()));
        }
        Ok(result)
    }

    fn del(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        let backup = Backup::of(request, &config.data_dir);
        let restored = block_on(async {
            let Some(netns) = request.existing_netns()? else { return Ok(()) };
            let netlink = Netlink::open_in(&netns).map_err(ErrorReply::internal)?;
            let link = netlink.find_link(&request.ifname).await.map_err(ErrorReply::internal)?;
            match (link, backup.read()) {
                (Some(link), Some(before)) => restore(&netlink, &link, &before).await,
                _ => Ok(()),
            }
        });
        // A DEL that never succeeds would help nobody: the runtime would try it again for ever. And after one that did, nobody
        // asks for the file again.
        for error in [restored, backup.remove()].into_iter().filter_map(Result::err) {
            eprintln!("restore {:?}: {error}", request.ifname);
        }
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        let files = sysctls::files(&config.sysctls, &request.ifname)?;
        request.required_prev_result(NO_PREV_RESULT)?;
        let netns = request.open_netns()?;
        netns.run(|| sysctls::compare(&files)).map_err(ErrorReply::internal)??;
        block_on(async {
            let netlink = Netlink::open_in(&netns).map_err(ErrorReply::internal)?;
            let link = netlink.find_link(&request.ifname).await.map_err(ErrorReply::internal)?;
            let link =
                link.ok_or_else(|| different(format!("Cannot find container link {}", request.ifname)))?;
            config.properties.compare(&link)
        })
    }

    fn gc(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        backup::collect(&config.data_dir, &request.network, &request.valid_attachments()?)
    }

    fn status(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        allowlist::check(&config.sysctls)
    }
}

/// Changes the link, once it is on disk what it was.
async fn tune_link(request: &Request, config: &Config, netlink: &Netlink) -> Result<(), ErrorReply> {
    if config.properties.is_empty() {
        return Ok(());
    }
    let failed = |error| ErrorReply::internal(format!("failed to get {:?}: {error}", request.ifname));
    let link = netlink.link(&request.ifname).await.map_err(failed)?;
    let before = config.properties.same_of(&link);
    let backup = Backup::of(request, &config.data_dir);
    let earlier = backup.write(&before)?;
    for (what, change) in config.properties.changes() {
        if let Err(error) = netlink.change_link(link.index, &change).await {
            let error = ErrorReply::internal(format!("failed to set {what} of {:?}: {error}", link.name));
            let undone = restore(netlink, &link, &before).await.and_then(|()| backup.put_back(earlier));
            return Err(error.with_undo(undone.err()));
        }
    }
    Ok(())
}

/// Goes on after a failure.
async fn restore(netlink: &Netlink, link: &Link, before: &Properties) -> Result<(), ErrorReply> {
    let mut errors = Vec::new();
    for (what, change) in before.changes() {
        match netlink.change_link(link.index, &change).await {
            Err(error) if !error.is_gone() => errors.push(format!("failed to restore {what}: {error}")),
            _ => {}
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(ErrorReply::internal(errors.join("; "))) }
}
