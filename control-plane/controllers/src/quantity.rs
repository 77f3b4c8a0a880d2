//! Resource quantities as numbers.
//!
//! Input: the text of a quantity ("250m", "1.5Gi", "12e6"). Output: whole units or thousandths, rounded up as upstream
//! does. Pure. Refuses text that is not a quantity.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

#[cfg(test)]
mod tests;

/// Billionths in a unit: the finest that a quantity can say.
const NANO: i128 = 1_000_000_000;
/// Decimal places that are read; further ones only round up.
const PLACES: usize = 9;

/// The quantity in whole units, rounded up; absent where it does not read.
pub fn units(quantity: &Quantity) -> Option<i64> {
    Some(round_up(nanos(&quantity.0)?, NANO))
}

/// The quantity in thousandths, rounded up; absent where it does not read.
pub fn thousandths(quantity: &Quantity) -> Option<i64> {
    Some(round_up(nanos(&quantity.0)?, NANO / 1000))
}

fn round_up(nanos: i128, unit: i128) -> i64 {
    let whole = nanos.div_euclid(unit) + i128::from(nanos.rem_euclid(unit) != 0);
    i64::try_from(whole).unwrap_or(if whole > 0 { i64::MAX } else { i64::MIN })
}

/// The quantity in billionths, saturating.
fn nanos(text: &str) -> Option<i128> {
    let text = text.trim();
    let end = text.find(|letter: char| !matches!(letter, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (negative, digits) = match number.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let value = scale(mantissa(digits)?, suffix)?;
    Some(if negative { -value } else { value })
}

/// A decimal number in billionths.
fn mantissa(digits: &str) -> Option<i128> {
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut value = whole.saturating_mul(NANO);
    let mut place = NANO / 10;
    for digit in fraction.bytes().take(PLACES) {
        value = value.saturating_add(i128::from(digit - b'0') * place);
        place /= 10;
    }
    let finer = fraction.bytes().skip(PLACES).any(|digit| digit != b'0');
    Some(value.saturating_add(i128::from(finer)))
}

fn scale(value: i128, suffix: &str) -> Option<i128> {
    let binary = |power: u32| Some(value.saturating_mul(1_i128 << (10 * power)));
    match suffix {
        "" => Some(value),
        "n" => Some(divide(value, 9)),
        "u" => Some(divide(value, 6)),
        "m" => Some(divide(value, 3)),
        "k" => power(value, 3),
        "M" => power(value, 6),
        "G" => power(value, 9),
        "T" => power(value, 12),
        "P" => power(value, 15),
        "E" => power(value, 18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        other => {
            let exponent = other.strip_prefix('e').or_else(|| other.strip_prefix('E'))?;
            let exponent: i32 = exponent.parse().ok()?;
            match u32::try_from(exponent) {
                Ok(exponent) => power(value, exponent),
                Err(_) => Some(divide(value, exponent.unsigned_abs())),
            }
        }
    }
}

fn power(value: i128, exponent: u32) -> Option<i128> {
    Some(10_i128.checked_pow(exponent).map_or(i128::MAX, |factor| value.saturating_mul(factor)))
}

/// Divides by a power of ten, rounding up.
fn divide(value: i128, exponent: u32) -> i128 {
    match 10_i128.checked_pow(exponent) {
        Some(factor) => value.div_euclid(factor) + i128::from(value.rem_euclid(factor) != 0),
        None => i128::from(value > 0),
    }
}
