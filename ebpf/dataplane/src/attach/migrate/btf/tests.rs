//! Type information as a compiler would write it, and bytes that nobody would.

use proptest::prelude::*;

use super::*;

/// Types by their words, from number 1 on, and strings.
fn information(types: &[&[u32]], strings: &[u8]) -> Vec<u8> {
    let types: Vec<u8> = types.concat().into_iter().flat_map(u32::to_ne_bytes).collect();
    let (length, strings_length) = (types.len() as u32, strings.len() as u32);
    let mut bytes = MAGIC.to_ne_bytes().to_vec();
    bytes.extend([1, 0]);
    bytes.extend([24, 0, length, length, strings_length].into_iter().flat_map(u32::to_ne_bytes));
    bytes.extend(types);
    bytes.extend(strings);
    bytes
}

/// The word of a type's kind.
fn says(kind: u32, parts: u32) -> u32 {
    kind << 24 | parts
}

const STRINGS: &[u8] = b"\0u32\0sides\0port_be\0";
const SIDES: u32 = 5;
const PORT: u32 = 11;

fn example() -> Vec<u8> {
    information(
        &[
            &[1, says(kind::INT, 0), 4, 32],
            &[0, says(kind::PTR, 0), 1],
            &[0, says(kind::ARRAY, 0), 0, 1, 1, 2],
            &[0, says(kind::TYPEDEF, 0), 3],
            &[0, says(kind::INT, 0), 2, 1 << 24 | 16],
            &[0, says(kind::STRUCT, 2), 12, SIDES, 4, 0, PORT, 5, 64],
        ],
        STRINGS,
    )
}

#[test]
fn a_structure_is_its_fields() {
    let bytes = example();
    let number = |size, is_signed| Shape::Number { size, is_signed };
    let sides = Shape::Array { element: Box::new(number(4, false)), length: 2 };
    let fields = vec![
        Field { name: "sides".into(), offset: 0, shape: sides },
        Field { name: "port_be".into(), offset: 8, shape: number(2, true) },
    ];
    assert_eq!(Btf::parse(&bytes).unwrap().shape(6), Ok(Shape::Struct { size: 12, fields }));
}

#[test]
fn what_no_map_is_made_of_is_refused() {
    let bytes = example();
    let types = Btf::parse(&bytes).unwrap();
    assert_eq!(types.shape(2), Err(BtfError::Unsupported { id: 2, kind: kind::PTR }));
    for id in [0, 7, u32::MAX] {
        assert_eq!(types.shape(id), Err(BtfError::Malformed));
    }
}

#[test]
fn a_type_that_holds_itself_ends() {
    let fields = [0, says(kind::STRUCT, 2), 8, 0, 1, 0, 0, 1, 0];
    for types in [&[&[0, says(kind::TYPEDEF, 0), 1][..]], &[&fields[..]]] {
        let bytes = information(types, STRINGS);
        assert_eq!(Btf::parse(&bytes).unwrap().shape(1), Err(BtfError::TooLarge));
    }
}

#[test]
fn a_field_behind_its_structure_is_refused() {
    let number: &[u32] = &[1, says(kind::INT, 0), 4, 32];
    let bytes = information(&[number, &[0, says(kind::STRUCT, 1), 4, PORT, 1, 8]], STRINGS);
    assert_eq!(Btf::parse(&bytes).unwrap().shape(2), Err(BtfError::Malformed));
}

#[test]
fn names_are_bounded() {
    let shape = |strings: &[u8]| {
        let number: &[u32] = &[0, says(kind::INT, 0), 4, 32];
        let bytes = information(&[number, &[0, says(kind::STRUCT, 1), 4, 1, 1, 0]], strings);
        Btf::parse(&bytes).unwrap().shape(2)
    };
    let named = |length: usize| [&b"\0"[..], &vec![b'n'; length], b"\0"].concat();
    assert!(shape(&named(MAX_NAME - 1)).is_ok());
    assert_eq!(shape(&named(MAX_NAME)), Err(BtfError::LongName));
    assert_eq!(shape(b"\0name"), Err(BtfError::Malformed));
}

fn read(bytes: &[u8]) {
    if let Ok(types) = Btf::parse(bytes) {
        for id in 0..16 {
            let _shape = types.shape(id);
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        read(&bytes);
    }

    #[test]
    fn no_types_make_it_panic(types in prop::collection::vec(any::<u32>(), 0..64), strings in prop::collection::vec(any::<u8>(), 0..32)) {
        read(&information(&[&types], &strings));
    }

    #[test]
    fn no_change_makes_it_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = example();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        read(&bytes);
    }
}
