//! Quantities of the API (`100m`, `1.5Gi`, `2e3`): parsing into exact thousandths.
//!
//! Pure. Rounds up what is smaller than a thousandth, as the API does.

/// An amount in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount(i128);

impl Amount {
    pub fn millis(self) -> i128 {
        self.0
    }

    /// Thousandths in 64 bits; at the edges the nearest value.
    pub fn saturating_millis(self) -> i64 {
        saturate(self.0)
    }

    /// Whole units, rounded up.
    pub fn units(self) -> i64 {
        saturate(self.0.div_euclid(1000) + i128::from(self.0.rem_euclid(1000) != 0))
    }
}

/// More digits than this are no amount of anything on a machine, and could overflow.
const MAX_DIGITS: usize = 18;

/// `None` when the text is not a quantity.
pub fn parse(text: &str) -> Option<Amount> {
    let end = text.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (negative, digits) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let plain = |part: &str| part.len() <= MAX_DIGITS && part.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !plain(whole) || !plain(fraction) {
        return None;
    }
    let (multiplier, divisor) = scale(suffix)?;
    let all: i128 = format!("0{whole}{fraction}").parse().ok()?;
    let numerator = all.checked_mul(multiplier)?.checked_mul(1000)?;
    let denominator = 10_i128.checked_pow(fraction.len() as u32)?.checked_mul(divisor)?;
    let rounded_up = numerator.div_euclid(denominator) + i128::from(numerator.rem_euclid(denominator) != 0);
    Some(Amount(if negative { -rounded_up } else { rounded_up }))
}

/// Multiplier and divisor of a suffix.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    let binary = |power: u32| Some((1_i128 << (10 * power), 1));
    let decimal = |power: u32| Some((10_i128.pow(power), 1));
    let fraction = |power: u32| Some((1, 10_i128.pow(power)));
    match suffix {
        "" => decimal(0),
        "n" => fraction(9),
        "u" => fraction(6),
        "m" => fraction(3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => exponent(suffix),
    }
}

fn exponent(suffix: &str) -> Option<(i128, i128)> {
    let power: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    match power {
        0..=18 => Some((10_i128.pow(power as u32), 1)),
        -18..0 => Some((1, 10_i128.pow(power.unsigned_abs()))),
        _ => None,
    }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}
