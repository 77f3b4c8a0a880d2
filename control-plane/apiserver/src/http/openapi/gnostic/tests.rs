//! What was encoded, decoded again with field numbers that are written down a second time, against the JSON.

use serde_json::{Map, Value, json};

use super::super::v2;
use super::*;
use crate::kinds::Registry;
use crate::schema::protobuf::wire::{Field, Fields};

fn fields(bytes: &[u8]) -> impl Iterator<Item = (u32, Field<'_>)> {
    Fields(bytes).map(Result::unwrap)
}

fn bytes(field: Field<'_>) -> &[u8] {
    match field {
        Field::Bytes(bytes) => bytes,
        Field::Number(number) => panic!("number {number} where bytes belong"),
    }
}

fn number(field: Field<'_>) -> u64 {
    match field {
        Field::Number(number) => number,
        Field::Bytes(bytes) => panic!("{bytes:?} where a number belongs"),
    }
}

fn text(field: Field<'_>) -> Value {
    std::str::from_utf8(bytes(field)).unwrap().into()
}

/// The only field of a message, and its number.
fn only(field: Field<'_>) -> (u32, Field<'_>) {
    let mut all = fields(bytes(field));
    let one = all.next().unwrap();
    assert!(all.next().is_none());
    one
}

fn any(field: Field<'_>) -> Value {
    let (number, yaml) = only(field);
    assert_eq!(number, 2, "yaml");
    serde_json::from_slice(bytes(yaml)).unwrap()
}

/// A name and the value beside it.
fn named(field: Field<'_>) -> (String, Field<'_>) {
    let [(1, name), (2, value)] = fields(bytes(field)).collect::<Vec<_>>()[..] else { panic!("{field:?}") };
    (text(name).as_str().unwrap().to_owned(), value)
}

fn push(map: &mut Map<String, Value>, key: &str, value: Value) {
    map.entry(key).or_insert_with(|| json!([])).as_array_mut().unwrap().push(value);
}

fn schemas(field: Field<'_>) -> Value {
    let entries = fields(bytes(field)).map(|(number, entry)| {
        assert_eq!(number, 1, "entry of a map");
        let (name, value) = named(entry);
        (name, schema(value))
    });
    Value::Object(entries.collect())
}

fn schema(field: Field<'_>) -> Value {
    let mut map = Map::new();
    for (number_of, field) in fields(bytes(field)) {
        let (key, value) = match number_of {
            1 => ("$ref", text(field)),
            2 => ("format", text(field)),
            3 => ("title", text(field)),
            4 => ("description", text(field)),
            5 => ("default", any(field)),
            7 => ("maximum", f64::from_bits(number(field)).into()),
            9 => ("minimum", f64::from_bits(number(field)).into()),
            12 => ("minLength", number(field).cast_signed().into()),
            13 => ("pattern", text(field)),
            16 => ("uniqueItems", (number(field) == 1).into()),
            19 => {
                push(&mut map, "required", text(field));
                continue;
            }
            20 => {
                push(&mut map, "enum", any(field));
                continue;
            }
            21 => match only(field) {
                (1, inner) => ("additionalProperties", schema(inner)),
                (2, flag) => ("additionalProperties", (number(flag) == 1).into()),
                other => panic!("{other:?}"),
            },
            22 => {
                let names: Vec<Value> = fields(bytes(field)).map(|(_, name)| text(name)).collect();
                ("type", if names.len() == 1 { names[0].clone() } else { names.into() })
            }
            23 => {
                let (number, inner) = only(field);
                assert_eq!(number, 1);
                ("items", schema(inner))
            }
            24 => {
                push(&mut map, "allOf", schema(field));
                continue;
            }
            25 => ("properties", schemas(field)),
            27 => ("readOnly", (number(field) == 1).into()),
            31 => {
                let (name, value) = named(field);
                assert!(name.starts_with("x-"), "{name}");
                map.insert(name, any(value));
                continue;
            }
            other => panic!("field {other} of a schema"),
        };
        assert!(map.insert(key.to_owned(), value).is_none(), "{key} twice");
    }
    Value::Object(map)
}

#[test]
fn every_definition_comes_back() {
    let document = v2(&Registry::build().unwrap());
    let encoded = encode(&document).unwrap();
    let mut found = Vec::new();
    for (number, field) in fields(&encoded) {
        found.push(number);
        match number {
            1 => assert_eq!(text(field), "2.0"),
            2 => {
                let info: Vec<Value> = fields(bytes(field)).map(|(_, part)| text(part)).collect();
                assert_eq!(
                    info,
                    [&document["info"]["title"], &document["info"]["version"]].map(Value::clone)
                );
            }
            8 => assert!(bytes(field).is_empty()),
            9 => {
                let decoded = schemas(field);
                let wanted = document["definitions"].as_object().unwrap();
                assert_eq!(decoded.as_object().unwrap().len(), wanted.len());
                for (name, schema) in wanted {
                    assert_eq!(&decoded[name], schema, "{name}");
                }
            }
            other => panic!("field {other} of the document"),
        }
    }
    found.sort_unstable();
    assert_eq!(found, [1, 2, 8, 9]);
}

#[test]
fn what_custom_types_may_say_comes_back() {
    let wanted = json!({"T": {
        "title": "a \"quoted\" ü\n", "type": ["string", "null"], "default": {"a": [1, null]}, "maximum": 2.5,
        "minimum": -1.0, "minLength": 300, "pattern": "^a$", "uniqueItems": true, "required": ["", "a"],
        "enum": ["a", 1, true], "additionalProperties": false, "items": {"type": "object", "readOnly": true},
        "allOf": [{"$ref": "#/definitions/U"}, {"additionalProperties": true}], "properties": {},
        "x-kubernetes-validations": [{"rule": "self.a: 'b' # no\ttab"}],
    }});
    let encoded = encode(&json!({"definitions": wanted})).unwrap();
    let (number, field) = only(Field::Bytes(&encoded));
    assert_eq!((number, schemas(field)), (9, wanted));
}

#[test]
fn a_short_document_has_these_bytes() {
    let document = json!({"swagger": "2.0", "definitions": {"A": {"type": "string", "x-y": true}}});
    let schema =
        [&[0xb2, 1, 8, 10, 6][..], b"string", &[0xfa, 1, 14, 10, 3], b"x-y", &[18, 7, 18, 5], b"true\n"];
    let schema = schema.concat();
    let entry = [&[10, 1][..], b"A", &[18, schema.len() as u8], &schema].concat();
    let definitions = [&[10, entry.len() as u8][..], &entry].concat();
    let mut wanted = [&[74, definitions.len() as u8][..], &definitions, &[10, 3], b"2.0"].concat();
    let encoded = encode(&document).unwrap();
    // The order of fields is the map's.
    if encoded[0] == 10 {
        wanted.rotate_right(5);
    }
    assert_eq!(encoded, wanted);
}

#[test]
fn nothing_is_left_out_silently() {
    let error = |document: Value| encode(&document).unwrap_err().to_string();
    assert_eq!(
        error(json!({"definitions": {"A": {"oneOf": []}}})),
        "encode openapi v2: Schema has no field \"oneOf\""
    );
    assert_eq!(error(json!({"paths": {"/api": {}}})), "encode openapi v2: Paths has no field \"/api\"");
    assert_eq!(
        error(json!({"definitions": {"A": {"required": "a"}}})),
        "encode openapi v2: Schema.required is not an array"
    );
    assert_eq!(error(json!([])), "encode openapi v2: the document is not an object");
}
