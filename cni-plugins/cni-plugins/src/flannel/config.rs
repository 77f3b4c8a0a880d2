//! The configuration of `flannel`, and the one that it makes for the plugin that does the work. Pure.

use std::path::PathBuf;

use cni::{ErrorReply, json::JsonError};
use serde_json::{Map, Value, json};

use super::subnet_env::SubnetEnv;
use crate::plugin::{Request, decoding};

const DEFAULT_SUBNET_FILE: &str = "/run/flannel/subnet.env";
const DEFAULT_DATA_DIR: &str = "/var/lib/cni/flannel";

/// What to delegate to, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(super) subnet_file: PathBuf,
    pub(super) data_dir: PathBuf,
    delegate: Map<String, Value>,
    ipam: Map<String, Value>,
}

impl Config {
    pub(crate) fn read(request: &Request) -> Result<Self, ErrorReply> {
        let root = request.root();
        let path = |key: &str, default: &str| -> Result<PathBuf, ErrorReply> {
            let given = root.string(key).map_err(decoding)?.filter(|path| !path.is_empty());
            Ok(PathBuf::from(given.unwrap_or(default)))
        };
        let object = |key: &str| -> Result<Map<String, Value>, ErrorReply> {
            root.object(key).map_err(decoding)?;
            Ok(root.value(key).and_then(Value::as_object).cloned().unwrap_or_default())
        };
        let delegate = object("delegate")?;
        if delegate.get("type").is_some_and(|named| !named.is_string()) {
            let message = "'delegate' dictionary, if present, must have (string) 'type' field";
            return Err(ErrorReply::internal(message));
        }
        for key in ["name", "ipam"] {
            if delegate.contains_key(key) {
                let message =
                    format!("'delegate' dictionary must not have '{key}' field, it'll be set by flannel");
                return Err(ErrorReply::internal(message));
            }
        }
        let ipam = object("ipam")?;
        if ipam.get("routes").is_some_and(|routes| !routes.is_array() && !routes.is_null()) {
            return Err(decoding(JsonError::key("ipam.routes", "expected an array")));
        }
        Ok(Self {
            subnet_file: path("subnetFile", DEFAULT_SUBNET_FILE)?,
            data_dir: path("dataDir", DEFAULT_DATA_DIR)?,
            delegate,
            ipam,
        })
    }

    /// The other plugin's configuration: what the user wrote, completed with what the daemon says.
    pub(super) fn delegate(
        &self,
        request: &Request,
        subnet: &SubnetEnv,
    ) -> Result<Map<String, Value>, ErrorReply> {
        let mut made = self.delegate.clone();
        let mut default = |key: &str, value: Value| {
            made.entry(key.to_owned()).or_insert(value);
        };
        default("type", json!("bridge"));
        // One of both masquerades.
        default("ipMasq", json!(!subnet.masquerades));
        default("mtu", json!(subnet.mtu));
        if made.get("type").and_then(Value::as_str) == Some("bridge") {
            made.entry("isGateway".to_owned()).or_insert(json!(true));
        }
        made.insert("name".to_owned(), json!(request.network));
        made.insert("ipam".to_owned(), Value::Object(self.ipam(subnet)));
        for key in ["cniVersion", "runtimeConfig"] {
            if let Some(value) = request.root().value(key) {
                made.insert(key.to_owned(), value.clone());
            }
        }
        Ok(made)
    }

    /// Addresses of the node's subnets, and routes to the whole networks.
    fn ipam(&self, subnet: &SubnetEnv) -> Map<String, Value> {
        let mut ipam = self.ipam.clone();
        ipam.entry("type".to_owned()).or_insert(json!("host-local"));
        let ranges: Vec<Value> =
            subnet.subnets().map(|subnet| json!([{"subnet": subnet.to_string()}])).collect();
        ipam.insert("ranges".to_owned(), Value::Array(ranges));
        let mut routes = ipam.get("routes").and_then(Value::as_array).cloned().unwrap_or_default();
        routes.extend(subnet.networks().map(|network| json!({"dst": network.to_string()})));
        ipam.insert("routes".to_owned(), Value::Array(routes));
        ipam
    }
}

#[cfg(test)]
mod tests;
