//! Strategic merge patch: structs merge field by field, lists by the merge key of the schema table, with the
//! directives `$patch`, `$retainKeys`, `$setElementOrder/…` and `$deleteFromPrimitiveList/…`.
//!
//! A field that the table does not know merges as JSON merge patch does. Refuses a list item without its merge key.

use serde_json::{Map, Value};

use crate::schema::{Field, Schemas, Shape, StructType, TypeId};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVE: &str = "$deleteFromPrimitiveList/";

pub(super) fn apply(
    schemas: &Schemas,
    root: TypeId,
    object: &mut Value,
    patch: &Map<String, Value>,
) -> Result<(), String> {
    let merger = Merger { schemas };
    merger.object(Some(schemas.get(root)), object, patch)
}

struct Merger<'a> {
    schemas: &'a Schemas,
}

impl Merger<'_> {
    fn object(
        &self,
        of: Option<&StructType>,
        object: &mut Value,
        patch: &Map<String, Value>,
    ) -> Result<(), String> {
        if !object.is_object() {
            *object = Value::Object(Map::new());
        }
        let Value::Object(map) = object else { return Ok(()) };
        match patch.get(DIRECTIVE).and_then(Value::as_str) {
            None | Some("merge") => {}
            Some("replace") => map.clear(),
            Some("delete") => {
                map.clear();
                return Ok(());
            }
            Some(other) => return Err(format!("unknown patch type found: {other}")),
        }
        if let Some(kept) = patch.get(RETAIN_KEYS).and_then(Value::as_array) {
            map.retain(|key, _| kept.iter().any(|kept| kept == key));
        }
        for (key, removed) in
            patch.iter().filter_map(|(key, value)| Some((key.strip_prefix(DELETE_PRIMITIVE)?, value)))
        {
            let removed = removed.as_array().map_or(&[][..], Vec::as_slice);
            if let Some(list) = map.get_mut(key).and_then(Value::as_array_mut) {
                list.retain(|item| !removed.contains(item));
            }
        }
        for (key, value) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
            let order = patch.get(&format!("{SET_ORDER}{key}")).and_then(Value::as_array);
            self.member(of.and_then(|of| of.field(key)), map, key, value, order)?;
        }
        for (key, order) in
            patch.iter().filter_map(|(key, value)| Some((key.strip_prefix(SET_ORDER)?, value)))
        {
            if patch.contains_key(key) {
                continue;
            }
            let merge_key = of.and_then(|of| of.field(key)).and_then(|field| field.merge.key);
            let list = map.get_mut(key).and_then(Value::as_array_mut);
            if let (Some(list), Some(order)) = (list, order.as_array()) {
                let before = list.clone();
                reorder(list, &before, order, merge_key);
            }
        }
        Ok(())
    }

    fn member(
        &self,
        field: Option<&Field>,
        map: &mut Map<String, Value>,
        key: &str,
        value: &Value,
        order: Option<&Vec<Value>>,
    ) -> Result<(), String> {
        match value {
            Value::Null => {
                map.remove(key);
            }
            Value::Object(inner) => {
                let of = field.and_then(|field| self.struct_of(&field.shape));
                let is_new = !map.contains_key(key);
                let slot = map.entry(key).or_insert(Value::Null);
                self.object(of, slot, inner)?;
                let emptied = inner.get(DIRECTIVE).and_then(Value::as_str) == Some("delete");
                if emptied && !is_new {
                    map.remove(key);
                }
            }
            Value::Array(items) => {
                let merged = match field {
                    Some(field) if field.merge.merge => {
                        let current = map.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
                        self.list(field, current, items, order)?
                    }
                    _ => items.clone(),
                };
                map.insert(key.to_owned(), merged.into());
            }
            other => {
                map.insert(key.to_owned(), other.clone());
            }
        }
        Ok(())
    }

    fn struct_of(&self, shape: &Shape) -> Option<&StructType> {
        match shape {
            Shape::Struct(id) => Some(self.schemas.get(*id)),
            _ => None,
        }
    }

    fn list(
        &self,
        field: &Field,
        current: Vec<Value>,
        patch: &[Value],
        order: Option<&Vec<Value>>,
    ) -> Result<Vec<Value>, String> {
        let Some(key) = field.merge.key else {
            let mut merged = current.clone();
            merged.extend(patch.iter().filter(|item| !current.contains(item)).cloned());
            if let Some(order) = order {
                reorder(&mut merged, &current, order, None);
            }
            return Ok(merged);
        };
        let replaces =
            patch.iter().any(|item| item.get(DIRECTIVE).is_some_and(|directive| directive == "replace"));
        if replaces {
            let is_directive = |item: &Value| item.get(DIRECTIVE).is_some();
            return Ok(patch.iter().filter(|item| !is_directive(item)).cloned().collect());
        }
        let of = match &field.shape {
            Shape::List(inner) => self.struct_of(inner),
            _ => None,
        };
        let mut merged = current.clone();
        for item in patch {
            let Value::Object(patch) = item else {
                return Err(format!("expected a map in {}, got {item}", field.name));
            };
            let id = patch
                .get(key)
                .ok_or_else(|| format!("map: {item} does not contain declared merge key: {key}"))?;
            if patch.get(DIRECTIVE).is_some_and(|directive| directive == "delete") {
                merged.retain(|existing| existing.get(key) != Some(id));
                continue;
            }
            match merged.iter_mut().find(|existing| existing.get(key) == Some(id)) {
                Some(existing) => self.object(of, existing, patch)?,
                None => {
                    let mut added = Value::Null;
                    self.object(of, &mut added, patch)?;
                    merged.push(added);
                }
            }
        }
        if let Some(order) = order {
            reorder(&mut merged, &current, order, Some(key));
        }
        Ok(merged)
    }
}

/// Orders `list` as the patch asks; what the patch does not name keeps its place relative to `before`.
fn reorder(list: &mut Vec<Value>, before: &[Value], order: &[Value], key: Option<&str>) {
    let id =
        |item: &Value| key.map_or_else(|| item.clone(), |key| item.get(key).cloned().unwrap_or_default());
    let wanted = |item: &Value| order.iter().position(|wanted| id(wanted) == id(item));
    let place = |item: &Value| before.iter().position(|known| id(known) == id(item));
    let (mut named, unnamed): (Vec<Value>, Vec<Value>) =
        std::mem::take(list).into_iter().partition(|item| wanted(item).is_some());
    named.sort_by_key(|item| wanted(item));
    let mut unnamed = unnamed.into_iter().peekable();
    for item in named {
        while unnamed.peek().is_some_and(|other| place(&item).is_some_and(|at| place(other) < Some(at))) {
            list.extend(unnamed.next());
        }
        list.push(item);
    }
    list.extend(unnamed);
}
