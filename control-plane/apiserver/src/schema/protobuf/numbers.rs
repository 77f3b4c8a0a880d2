//! The table of protobuf field numbers of the served types.
//!
//! Source: `protobuf_numbers.txt`, one type per line, `field=number`, or `field=outer.number` where the message with
//! number `outer` is written inline in JSON (taken from the Kubernetes protos, v1.36). A field that is not there is
//! never read from protobuf.

use std::collections::HashMap;

use super::super::{Field, Schemas, StructType};

const TABLE: &str = include_str!("../protobuf_numbers.txt");

/// Where a field is: its number, behind the number of an inline message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    pub outer: Option<u32>,
    pub number: u32,
}

/// Numbers by type; small enough to be kept as text slices.
#[derive(Debug, Default)]
pub struct Numbers {
    types: HashMap<Box<str>, HashMap<Path, &'static str>>,
}

impl Numbers {
    /// Parses the table for the types that are in `schemas`.
    pub fn build(schemas: &Schemas) -> Self {
        let mut types = HashMap::new();
        for line in TABLE.lines() {
            let mut words = line.split(' ');
            let Some(short) = words.next() else { continue };
            let found = schemas.types.iter().find(|of| {
                let prefix = of.name.strip_suffix(short);
                prefix.is_some_and(|prefix| prefix.starts_with("io.k8s.") && prefix.ends_with('.'))
            });
            let Some(found) = found else { continue };
            let fields = words.filter_map(|word| {
                let (field, path) = word.split_once('=')?;
                let path = match path.split_once('.') {
                    Some((outer, number)) => {
                        Path { outer: Some(outer.parse().ok()?), number: number.parse().ok()? }
                    }
                    None => Path { outer: None, number: path.parse().ok()? },
                };
                Some((path, field))
            });
            types.insert(found.name.clone(), fields.collect());
        }
        Numbers { types }
    }

    pub(super) fn field<'a>(&self, of: &'a StructType, path: Path) -> Option<&'a Field> {
        of.field(self.types.get(&of.name)?.get(&path)?)
    }

    pub(super) fn is_inline(&self, of: &StructType, number: u32) -> bool {
        self.types.get(&of.name).is_some_and(|fields| fields.keys().any(|path| path.outer == Some(number)))
    }
}
