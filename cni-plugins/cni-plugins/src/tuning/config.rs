//! The configuration of `tuning`: the reference plugin's keys, and what `args.cni` puts in their place.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    path::PathBuf,
};

use cni::{
    ErrorReply,
    json::{JsonError, Object},
};
use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, Visitor},
};

use super::properties::Properties;
use crate::{
    hardware_address::{self, Source},
    plugin::{Request, decoding},
};

const DEFAULT_DATA_DIR: &str = "/run/cni/tuning";

/// What to set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// By the names that were given.
    pub(super) sysctls: BTreeMap<String, String>,
    pub(super) properties: Properties,
    /// Where the link's old properties are kept.
    pub(super) data_dir: PathBuf,
}

impl Config {
    pub(crate) fn read(request: &Request) -> Result<Self, ErrorReply> {
        refuse_repeated_sysctls(&request.stdin)?;
        let root = request.root();
        let (sysctls, properties) = settings(&root).map_err(decoding)?;
        let places = [Source::Config, Source::Environment, Source::Runtime, Source::Args];
        let mac = hardware_address::wanted(request, &places)?;
        let data_dir = root.string("dataDir").map_err(decoding)?.filter(|dir| !dir.is_empty());
        Ok(Self {
            sysctls,
            // Off is how a link is, unless somebody else wants it on.
            properties: Properties {
                mac,
                promiscuous: properties.promiscuous.filter(|promiscuous| *promiscuous),
                ..properties
            },
            data_dir: PathBuf::from(data_dir.unwrap_or(DEFAULT_DATA_DIR)),
        })
    }
}

/// The configuration's own, with those of `args.cni` in their place.
fn settings(root: &Object<'_>) -> Result<(BTreeMap<String, String>, Properties), JsonError> {
    let mut sysctls = sysctls(root)?;
    let own = properties(root)?;
    let Some(args) = root.cni_args()? else { return Ok((sysctls, own)) };
    sysctls.extend(self::sysctls(&args)?);
    Ok((sysctls, properties(&args)?.or(own)))
}

/// Without the hardware address, which is looked for in other places too.
fn properties(object: &Object<'_>) -> Result<Properties, JsonError> {
    object.string("mac")?;
    Ok(Properties {
        mac: None,
        promiscuous: object.boolean("promisc")?,
        mtu: object.number::<u32>("mtu")?.filter(|mtu| *mtu > 0),
        all_multicast: object.boolean("allmulti")?,
        tx_queue_len: object.number("txQLen")?,
    })
}

fn sysctls(object: &Object<'_>) -> Result<BTreeMap<String, String>, JsonError> {
    let Some(sysctls) = object.object("sysctl")? else { return Ok(BTreeMap::new()) };
    let read = |key: &str| -> Result<(String, String), JsonError> {
        Ok((key.to_owned(), sysctls.string(key)?.unwrap_or_default().to_owned()))
    };
    sysctls.keys().map(read).collect()
}

/// A key that is there twice: which of its values was meant, nobody knows.
fn refuse_repeated_sysctls(stdin: &[u8]) -> Result<(), ErrorReply> {
    let read = serde_json::from_slice::<Repeats>(stdin);
    match read.map(|root| root.sysctl.and_then(|keys| keys.repeated)) {
        Ok(Some(key)) => {
            Err(ErrorReply::config("duplicated sysctl keys are not allowed").with_details(format!("{key:?}")))
        }
        // Any other fault is found and named when the document is read.
        Ok(None) | Err(_) => Ok(()),
    }
}

#[derive(Deserialize)]
struct Repeats {
    sysctl: Option<Keys>,
}

/// The keys of an object, of which one may be there twice.
struct Keys {
    repeated: Option<String>,
}

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfObject;

        impl<'de> Visitor<'de> for OfObject {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut seen = HashSet::new();
                let mut repeated = None;
                while let Some((key, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
                    if !seen.insert(key.clone()) {
                        repeated = Some(key);
                    }
                }
                Ok(Keys { repeated })
            }

            fn visit_unit<E: Error>(self) -> Result<Keys, E> {
                Ok(Keys { repeated: None })
            }
        }

        deserializer.deserialize_any(OfObject)
    }
}

#[cfg(test)]
mod tests;
