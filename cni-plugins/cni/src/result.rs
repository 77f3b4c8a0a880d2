//! The result of ADD, in memory as of spec 1.1, read from and written to every version.
//!
//! Owns the conversions. Reading takes the version from the document itself, or from what a plugin was told that names
//! none. Writing an older version drops what that
//! version has no place for; it fails only where nothing would be left (no address for 0.1.0 and 0.2.0).

mod legacy;
mod modern;

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::{Map, Value, json};

use crate::{
    UnknownVersion, Version,
    json::{JsonError, Object},
};

/// What a plugin made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AddResult {
    pub interfaces: Vec<Interface>,
    pub ips: Vec<IpConfig>,
    pub routes: Vec<Route>,
    pub dns: Dns,
}

/// A link that a plugin made or used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Interface {
    pub name: String,
    pub mac: Option<String>,
    /// Bytes.
    pub mtu: Option<u32>,
    /// Path of the network namespace; none on the host.
    pub sandbox: Option<String>,
    pub socket_path: Option<String>,
    pub pci_id: Option<String>,
}

/// An address that a plugin assigned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpConfig {
    /// Position in [`AddResult::interfaces`].
    pub interface: Option<usize>,
    pub address: IpNetwork,
    pub gateway: Option<IpAddr>,
}

/// A route that a plugin made, or that IPAM asks it to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub dst: IpNetwork,
    pub gw: Option<IpAddr>,
    pub mtu: Option<u32>,
    pub advmss: Option<u32>,
    pub priority: Option<u32>,
    pub table: Option<u32>,
    pub scope: Option<u8>,
}

impl Route {
    /// A route with nothing but a destination and a gateway.
    pub fn new(dst: IpNetwork, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// Name resolution for the container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dns {
    pub nameservers: Vec<String>,
    pub domain: Option<String>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

/// A result that cannot be read, or not be written in a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResultError {
    #[error(transparent)]
    Version(#[from] UnknownVersion),
    #[error("result: {0}")]
    Json(#[from] JsonError),
    #[error("result in CNI version {version}: expected at least one address")]
    NoAddress { version: Version },
}

impl AddResult {
    /// Reads a result document of any version.
    ///
    /// # Errors
    /// When the version is unknown, or a key does not have its type.
    pub fn from_json(document: &Map<String, Value>) -> Result<Self, ResultError> {
        let root = Object::root(document);
        let version: Version = root.string("cniVersion")?.unwrap_or_default().parse()?;
        Self::from_json_as(&root, version)
    }

    /// Reads what a plugin answered that was told `version`. An answer that names no version is of that one, and says so
    /// afterwards, to whoever reads it next.
    ///
    /// # Errors
    /// As [`AddResult::from_json`].
    pub fn from_answer(document: &mut Map<String, Value>, version: Version) -> Result<Self, ResultError> {
        if Object::root(document).string("cniVersion")?.unwrap_or_default().is_empty() {
            document.insert("cniVersion".to_owned(), json!(version.as_str()));
        }
        Self::from_json(document)
    }

    /// Reads a result that is known to be of `version`, whatever its own `cniVersion` says.
    ///
    /// # Errors
    /// When a key does not have its type.
    pub fn from_json_as(root: &Object<'_>, version: Version) -> Result<Self, ResultError> {
        let read = if version.has_interfaces() { modern::read(root) } else { legacy::read(root) };
        Ok(read?)
    }

    /// Writes the result document in `version`.
    ///
    /// # Errors
    /// [`ResultError::NoAddress`].
    pub fn to_json(&self, version: Version) -> Result<Value, ResultError> {
        if version.has_interfaces() { Ok(modern::write(self, version)) } else { legacy::write(self, version) }
    }
}

impl Dns {
    /// True when nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads the `dns` key of a result or of a configuration.
    ///
    /// # Errors
    /// When a key does not have its type.
    pub fn read(parent: &Object<'_>) -> Result<Self, JsonError> {
        let Some(dns) = parent.object("dns")? else { return Ok(Self::default()) };
        Ok(Self {
            nameservers: dns.strings("nameservers")?,
            domain: dns.string("domain")?.filter(|domain| !domain.is_empty()).map(str::to_owned),
            search: dns.strings("search")?,
            options: dns.strings("options")?,
        })
    }

    fn write(&self) -> Value {
        let mut map = Map::new();
        let lists =
            [("nameservers", &self.nameservers), ("search", &self.search), ("options", &self.options)];
        for (key, list) in lists {
            if !list.is_empty() {
                map.insert(key.to_owned(), json!(list));
            }
        }
        put(&mut map, "domain", self.domain.as_deref());
        Value::Object(map)
    }
}

impl Route {
    /// Reads one route of a result, or of an IPAM configuration.
    ///
    /// # Errors
    /// When a key does not have its type.
    pub fn read(route: &Object<'_>) -> Result<Self, JsonError> {
        Ok(Self {
            dst: route.required("dst", route.cidr("dst")?)?,
            gw: route.ip("gw")?,
            mtu: positive(route.number("mtu")?),
            advmss: positive(route.number("advmss")?),
            priority: positive(route.number("priority")?),
            table: route.number("table")?,
            scope: route.number("scope")?,
        })
    }

    /// Reads the `routes` key.
    ///
    /// # Errors
    /// As [`Route::read`].
    pub fn read_all(parent: &Object<'_>) -> Result<Vec<Self>, JsonError> {
        let each = parent.array("routes")?.into_iter();
        each.map(|(place, value)| Self::read(&Object::of(value, place)?)).collect()
    }
}

/// Zero stands for "not set" where the reference types have plain integers.
fn positive(number: Option<u32>) -> Option<u32> {
    number.filter(|number| *number > 0)
}

fn put(map: &mut Map<String, Value>, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        map.insert(key.to_owned(), value.into());
    }
}

#[cfg(test)]
mod tests;
