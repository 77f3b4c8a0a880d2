//! Which of two values holds. Whole maps are copied in the tests of the dataplane.

use super::*;

#[test]
fn of_two_values_the_one_that_programs_went_on_with_holds() {
    const USED: Range<usize> = 4..8;
    let value = |port: u32, used: u32| [port.to_ne_bytes(), used.to_ne_bytes()].concat();
    let ours = value(1, 7);
    let cases = [
        // Ours did not change: also where the earlier programs led it anew in the same moment, or nothing tells when.
        (true, Some(&USED), value(2, 7), true),
        (true, None, value(2, 7), true),
        (false, Some(&USED), value(2, 8), true),
        (false, Some(&USED), value(2, 7), false),
        (false, Some(&USED), value(2, 6), false),
        (false, None, value(2, 8), false),
    ];
    for (ours_is_copied, used, theirs, expected) in cases {
        assert_eq!(is_theirs(ours_is_copied, used, &theirs, &ours), expected, "{ours_is_copied} {theirs:?}");
    }
}

#[test]
fn numbers_are_read_by_their_width() {
    let value = [1, 0, 0, 0, 2, 0, 0, 0, 3];
    assert_eq!(number(&value, &(4..8)), 2_u32.to_le().into());
    assert_eq!(number(&value, &(0..8)), (2_u64 << 32 | 1).to_le());
    assert_eq!(number(&value, &(8..12)), 0);
}
