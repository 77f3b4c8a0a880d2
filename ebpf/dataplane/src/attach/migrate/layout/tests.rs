//! Conversions of layouts that grew, shrank and moved.

use proptest::prelude::*;

use super::*;

const U8: Shape = Shape::Number { size: 1, is_signed: false };
const U16: Shape = Shape::Number { size: 2, is_signed: false };
const U32: Shape = Shape::Number { size: 4, is_signed: false };
const U64: Shape = Shape::Number { size: 8, is_signed: false };
const I32: Shape = Shape::Number { size: 4, is_signed: true };
const I8: Shape = Shape::Number { size: 1, is_signed: true };

fn array(element: Shape, length: usize) -> Shape {
    Shape::Array { element: Box::new(element), length }
}

/// Fields one behind the other.
fn structure(fields: &[(&str, Shape)]) -> Shape {
    let mut size = 0;
    let mut placed = Vec::new();
    for (name, shape) in fields {
        placed.push(Field { name: (*name).to_owned(), offset: size, shape: shape.clone() });
        size += shape.size().unwrap();
    }
    Shape::Struct { size, fields: placed }
}

fn convert(old: &Shape, new: &Shape, bytes: &[u8]) -> Option<Vec<u8>> {
    Conversion::between(old, new, &[]).unwrap().apply(bytes)
}

#[test]
fn fields_are_found_by_name_wherever_they_stand() {
    let old = structure(&[("a", U8), ("gone", U16), ("b", U32)]);
    let new = structure(&[("b", U32), ("fresh", U16), ("a", U8)]);
    assert_eq!(convert(&old, &new, &[1, 8, 9, 2, 3, 4, 5]).unwrap(), [2, 3, 4, 5, 0, 0, 1]);
}

#[test]
fn nested_fields_have_names_of_their_own() {
    let old = structure(&[("inner", structure(&[("a", U8), ("b", U8)])), ("a", U8)]);
    let new = structure(&[("a", U8), ("inner", structure(&[("b", U8), ("c", U8)]))]);
    assert_eq!(convert(&old, &new, &[1, 2, 3]).unwrap(), [3, 2, 0]);
}

#[test]
fn arrays_keep_what_both_have_room_for() {
    assert_eq!(convert(&array(U8, 2), &array(U8, 3), &[1, 2]).unwrap(), [1, 2, 0]);
    assert_eq!(convert(&array(U8, 3), &array(U8, 2), &[1, 2, 3]).unwrap(), [1, 2]);
    let pair = |first, second| structure(&[(first, U8), (second, U8)]);
    let (old, new) = (array(pair("a", "b"), 2), array(pair("b", "c"), 2));
    assert_eq!(convert(&old, &new, &[1, 2, 3, 4]).unwrap(), [2, 0, 4, 0]);
}

#[test]
fn numbers_may_change_their_width_as_long_as_they_fit() {
    let number = |shape| structure(&[("slot", shape)]);
    let bytes = |value: u32| value.to_ne_bytes();
    assert_eq!(convert(&number(U32), &number(U16), &bytes(65_535)).unwrap(), 65_535_u16.to_ne_bytes());
    assert_eq!(convert(&number(U32), &number(U16), &bytes(65_536)), None);
    assert_eq!(convert(&number(U32), &number(U64), &bytes(u32::MAX)).unwrap(), 0xffff_ffff_u64.to_ne_bytes());
    let signed = |value: i32| convert(&number(I32), &number(I8), &value.to_ne_bytes());
    assert_eq!(signed(-128).unwrap(), [0x80]);
    assert_eq!(signed(-129), None);
    assert_eq!(signed(200), None);
}

#[test]
fn what_only_its_author_could_convert_is_refused() {
    let with = |name, shape| structure(&[("outer", structure(&[(name, shape)]))]);
    let between = |name, old, new| Conversion::between(&with(name, old), &with(name, new), &[]);
    let path = || "outer.x".to_owned();
    assert_eq!(between("x", U32, I32), Err(Mismatch::Kind { path: path() }));
    assert_eq!(between("x", U32, array(U8, 4)), Err(Mismatch::Kind { path: path() }));
    assert_eq!(between("x", U32, structure(&[("y", U32)])), Err(Mismatch::Kind { path: path() }));
    assert_eq!(between("x_be", U16, U32), Err(Mismatch::Width { path: "outer.x_be".into() }));
    let words = (array(U32, 4), array(U64, 4));
    assert_eq!(between("words_be", words.0, words.1), Err(Mismatch::Width { path: "outer.words_be".into() }));
}

#[test]
fn reserved_bytes_say_nothing() {
    let old = structure(&[("a", U8), ("reserved", U8), ("reserved2", U16)]);
    let new = structure(&[("a", U8), ("b", U8), ("reserved", U16)]);
    assert_eq!(convert(&old, &new, &[1, 7, 8, 9]).unwrap(), [1, 0, 0, 0]);
}

#[test]
fn what_is_to_be_forgotten_is_zero() {
    let shape = structure(&[("a", U8), ("b", U8)]);
    assert_eq!(Conversion::between(&shape, &shape, &["b"]).unwrap().apply(&[1, 2]).unwrap(), [1, 0]);
}

#[test]
fn an_equal_layout_is_one_copy() {
    let shape = structure(&[("a", U8), ("b", array(structure(&[("c", U16)]), 9)), ("d", U64)]);
    let conversion = Conversion::between(&shape, &shape, &[]).unwrap();
    assert_eq!(conversion.steps, [Step::Copy { from: 0, to: 0, length: 27 }]);
    assert_eq!(conversion.apply(&[1; 26]), None, "of another size");
}

#[test]
fn sizes_are_bounded() {
    let huge = |element| array(element, usize::MAX);
    for (old, new) in [
        (huge(U8), U8),
        (huge(U64), huge(U64)),
        (array(structure(&[]), 1 << 40), array(structure(&[("a", array(U8, 0))]), 1 << 40)),
    ] {
        assert_eq!(Conversion::between(&old, &new, &[]), Err(Mismatch::TooLarge));
    }
}

fn shapes() -> impl Strategy<Value = Shape> {
    let number = prop_oneof![Just(U8), Just(U16), Just(U32), Just(U64), Just(I8), Just(I32)];
    number.prop_recursive(3, 16, 4, |inner| {
        let name = prop_oneof![Just("a"), Just("b"), Just("c"), Just("c_be"), Just("reserved")];
        prop_oneof![
            (inner.clone(), 0..4_usize).prop_map(|(element, length)| array(element, length)),
            prop::collection::vec((name, inner), 0..4).prop_map(|fields| structure(&fields)),
        ]
    })
}

proptest! {
    #[test]
    fn a_conversion_gives_whole_values_or_none(old in shapes(), new in shapes(), seed in any::<u8>()) {
        if let Ok(conversion) = Conversion::between(&old, &new, &[]) {
            let bytes: Vec<u8> = (0..old.size().unwrap()).map(|index| seed.wrapping_mul(index as u8)).collect();
            if let Some(converted) = conversion.apply(&bytes) {
                prop_assert_eq!(converted.len(), new.size().unwrap());
            }
        }
    }

    #[test]
    fn an_equal_layout_keeps_every_byte(shape in shapes()) {
        let conversion = Conversion::between(&shape, &shape, &[]).unwrap();
        let bytes = vec![0xa5; shape.size().unwrap()];
        prop_assert_eq!(conversion.apply(&bytes), Some(bytes));
    }
}
