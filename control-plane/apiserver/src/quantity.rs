//! Resource quantities: exact decimal numbers with a suffix, in upstream's canonical form.
//!
//! Input: text such as `1.5Gi`, `100m`, `2e3`. Output: a number in nano-units and the family of its suffix, printed as
//! upstream prints it. Refuses what its regular expression refuses. More than nine decimals round up; what does not
//! fit is capped.

use std::fmt;

/// Which suffixes a quantity is printed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Decimal,
    Binary,
    Exponent,
}

const NANO: i128 = 1_000_000_000;

/// An exact quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantity {
    nano: i128,
    family: Family,
}

const DECIMAL: &[(&str, i32)] = &[
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];
const BINARY: &[(&str, u32)] = &[("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

impl Quantity {
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, unsigned) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let (family, scale) = scale_of(suffix)?;
        let magnitude = combine(whole, fraction, scale);
        Some(Quantity { nano: if negative { -magnitude } else { magnitude }, family })
    }

    pub fn is_negative(&self) -> bool {
        self.nano < 0
    }

    /// Whether it has a part below one.
    pub fn is_fractional(&self) -> bool {
        self.nano % NANO != 0
    }

    /// For comparisons: billionths.
    pub fn nano(&self) -> i128 {
        self.nano
    }
}

/// A factor: powers of ten and of two.
struct Scale {
    ten: i32,
    two: u32,
}

fn scale_of(suffix: &str) -> Option<(Family, Scale)> {
    if let Some((_, ten)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Some((Family::Decimal, Scale { ten: *ten, two: 0 }));
    }
    if let Some((_, two)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Some((Family::Binary, Scale { ten: 0, two: *two }));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    Some((Family::Exponent, Scale { ten: exponent.parse::<i8>().ok()?.into(), two: 0 }))
}

/// `whole.fraction` times the scale, in nano-units, rounded away from zero and capped.
fn combine(whole: &str, fraction: &str, scale: Scale) -> i128 {
    const CAP: i128 = i64::MAX as i128 * NANO;
    let mut digits: i128 = 0;
    for c in whole.bytes().chain(fraction.bytes()) {
        digits = digits.saturating_mul(10).saturating_add(i128::from(c - b'0'));
    }
    let mut value = digits.saturating_mul(1i128 << scale.two);
    let power = scale.ten + 9 - i32::try_from(fraction.len()).unwrap_or(i32::MAX - 512);
    for _ in 0..power.clamp(0, 60) {
        value = value.saturating_mul(10);
    }
    for _ in 0..(-power).clamp(0, 60) {
        value = value / 10 + i128::from(value % 10 != 0);
    }
    value.min(CAP)
}

impl fmt::Display for Quantity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return formatter.write_str("0");
        }
        if self.family == Family::Binary && self.nano % NANO == 0 {
            let value = self.nano / NANO;
            // Below 1Ki upstream prints the plain number.
            let found = BINARY.iter().rev().find(|(_, two)| value % (1i128 << two) == 0);
            return match found {
                Some((suffix, two)) => write!(formatter, "{}{suffix}", value >> two),
                None => write!(formatter, "{value}"),
            };
        }
        let (mut value, mut ten) = (self.nano, -9);
        while value % 1000 == 0 && ten < 18 {
            value /= 1000;
            ten += 3;
        }
        if self.family == Family::Exponent {
            return if ten == 0 { write!(formatter, "{value}") } else { write!(formatter, "{value}e{ten}") };
        }
        let suffix = DECIMAL.iter().find(|(_, scale)| *scale == ten).map_or("", |(suffix, _)| suffix);
        write!(formatter, "{value}{suffix}")
    }
}

#[cfg(test)]
mod tests {
    //! Canonical forms, as upstream's own table has them.

    use super::*;

    #[test]
    fn canonical_forms() {
        for (input, expected) in [
            ("0", "0"),
            ("0Ki", "0"),
            ("1", "1"),
            ("100m", "100m"),
            ("0.1", "100m"),
            ("1000m", "1"),
            ("1.5", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("1023", "1023"),
            ("1000", "1k"),
            ("1e3", "1e3"),
            ("12e6", "12e6"),
            ("-1Ki", "-1Ki"),
            (".5", "500m"),
            ("5.", "5"),
            ("0.0000000001", "1n"),
            ("64Mi", "64Mi"),
            ("110", "110"),
            ("2048Ki", "2Mi"),
        ] {
            assert_eq!(Quantity::parse(input).unwrap().to_string(), expected, "{input}");
        }
        for bad in ["", "m", "1.2.3", "1x", "1 Gi", "--1", "1Kii", "."] {
            assert!(Quantity::parse(bad).is_none(), "{bad}");
        }
    }
}
