//! The variables of a call: which are there, which a verb needs, and the checked request that they make.

use std::path::PathBuf;

use cni::{ErrorReply, code, exec::Verb};

use super::{Request, refuse_own_netns, shared_config};

/// The `CNI_*` variables; an empty one counts as absent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment {
    pub(crate) command: Option<String>,
    pub(crate) container_id: Option<String>,
    pub(crate) netns: Option<String>,
    pub(crate) ifname: Option<String>,
    pub(crate) args: Option<String>,
    pub(crate) path: Option<String>,
    pub(crate) netns_override: Option<String>,
}

impl Environment {
    pub(super) fn of_process() -> Self {
        let read = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            command: read("CNI_COMMAND"),
            container_id: read("CNI_CONTAINERID"),
            netns: read("CNI_NETNS"),
            ifname: read("CNI_IFNAME"),
            args: read("CNI_ARGS"),
            path: read("CNI_PATH"),
            netns_override: read("CNI_NETNS_OVERRIDE"),
        }
    }

    /// That of another plugin, to which the attachment of `request` is delegated.
    pub(super) fn of_delegate(self, request: &Request, verb: Verb) -> Self {
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Self {
            command: text(verb.as_str()),
            container_id: text(&request.container_id),
            netns: request.netns.as_deref().and_then(|path| text(path.to_str()?)),
            ifname: text(&request.ifname),
            ..self
        }
    }

    /// The verb, once everything that it needs is there.
    pub(super) fn verb(&self) -> Result<Verb, ErrorReply> {
        let command = self.command.as_deref().unwrap_or_default();
        let verb = match command {
            "ADD" => Verb::Add,
            "DEL" => Verb::Del,
            "CHECK" => Verb::Check,
            "GC" => Verb::Gc,
            "STATUS" => Verb::Status,
            "VERSION" => Verb::Version,
            _ => return Err(invalid(format!("unknown CNI_COMMAND: {command}"))),
        };
        let attaches = matches!(verb, Verb::Add | Verb::Check);
        let names = attaches || verb == Verb::Del;
        let needed = [
            ("CNI_CONTAINERID", names, &self.container_id),
            ("CNI_NETNS", attaches, &self.netns),
            ("CNI_IFNAME", names, &self.ifname),
            ("CNI_PATH", verb != Verb::Version, &self.path),
        ];
        let missing: Vec<&str> = needed
            .iter()
            .filter(|(_, needed, value)| *needed && value.is_none())
            .map(|(name, ..)| *name)
            .collect();
        if missing.is_empty() {
            Ok(verb)
        } else {
            Err(invalid(format!("required env variables [{}] missing", missing.join(","))))
        }
    }

    /// The checked request of any verb but VERSION.
    pub(crate) fn request(&self, verb: Verb, stdin: Vec<u8>) -> Result<Request, ErrorReply> {
        let (config, network, version) = shared_config(&stdin)?;
        let container_id = self.container_id.clone().unwrap_or_default();
        let ifname = self.ifname.clone().unwrap_or_default();
        if matches!(verb, Verb::Add | Verb::Del | Verb::Check) {
            cni::container_id(&container_id).map_err(|error| invalid(error.to_string()))?;
            cni::interface_name(&ifname).map_err(|error| invalid(error.to_string()))?;
        }
        let allowed = match verb {
            Verb::Check => version.has_check(),
            Verb::Gc | Verb::Status => version.has_gc_and_status(),
            Verb::Add | Verb::Del | Verb::Version => true,
        };
        if !allowed {
            let message = format!("config version does not allow {verb}");
            return Err(ErrorReply::new(code::INCOMPATIBLE_VERSION, message).with_details(version.as_str()));
        }
        let netns = self.netns.as_ref().map(PathBuf::from);
        let overridden = self
            .netns_override
            .as_deref()
            .is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true"));
        let changes = matches!(verb, Verb::Add | Verb::Del);
        if let Some(netns) = netns.as_deref().filter(|_| changes && !overridden) {
            refuse_own_netns(netns)?;
        }
        Ok(Request {
            verb,
            container_id,
            netns,
            ifname,
            raw_args: self.args.clone().unwrap_or_default(),
            path: std::env::split_paths(self.path.as_deref().unwrap_or_default()).collect(),
            network,
            version,
            config,
            stdin,
        })
    }
}

fn invalid(message: String) -> ErrorReply {
    ErrorReply::new(code::INVALID_ENVIRONMENT, message)
}
