//! Exact decimal amounts: how JSON numbers become [`Decimal`] and how amounts are multiplied and
//! added without a panic. Money is rounded to a binary float only where it leaves this module's
//! callers, in [`Calculation::cost_f64`](crate::Calculation::cost_f64).

use rust_decimal::Decimal;
use serde_json::{Number, Value};

use crate::PricingError;

/// The largest count (tokens, characters, requests, seconds) that is priced. It leaves room for a
/// 16-digit unit price within the 28 digits of a [`Decimal`].
pub const LARGEST_COUNT: u64 = 1_000_000_000_000;

/// Reads a JSON number as the decimal that was written: `2.5e-06` becomes 0.0000025 exactly,
/// because a float's shortest decimal form is the literal it was parsed from.
pub fn from_number(number: &Number) -> Option<Decimal> {
    if let Some(integer) = number.as_u64() {
        return Some(Decimal::from(integer));
    }
    if let Some(integer) = number.as_i64() {
        return Some(Decimal::from(integer));
    }
    from_float(number.as_f64()?)
}

/// As [`from_number`], for a float that is already parsed. `None` when it is not finite or needs
/// more than 28 digits.
pub fn from_float(value: f64) -> Option<Decimal> {
    if !value.is_finite() {
        return None;
    }
    if value == 0.0 {
        return Some(Decimal::ZERO);
    }
    let text = format!("{value:e}");
    Decimal::from_scientific(&text).ok()
}

/// Reads a price: a number, or a number in a string, as YAML makes of `4e-07`.
pub fn from_value(value: &Value) -> Option<Decimal> {
    match value {
        Value::Number(number) => from_number(number),
        Value::String(text) => {
            let text = text.trim();
            text.parse().ok().or_else(|| from_float(text.parse::<f64>().ok()?))
        }
        _ => None,
    }
}

/// `quantity * unit_price`, or an error when the product leaves the range of a decimal.
pub fn multiply(quantity: Decimal, unit_price: Decimal) -> Result<Decimal, PricingError> {
    quantity.checked_mul(unit_price).ok_or(PricingError::AmountTooLarge)
}

/// `left + right`, or an error when the sum leaves the range of a decimal.
pub fn add(left: Decimal, right: Decimal) -> Result<Decimal, PricingError> {
    left.checked_add(right).ok_or(PricingError::AmountTooLarge)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_keep_the_digits_they_were_written_with() {
        for (value, text) in [
            (json!(2.5e-06), "0.0000025"),
            (json!(1e-10), "0.0000000001"),
            (json!(4.166666666666667e-07), "0.0000004166666666666667"),
            (json!(0.00003), "0.00003"),
            (json!(7), "7"),
            (json!("3e-7"), "0.0000003"),
            (json!(" 0.5 "), "0.5"),
        ] {
            assert_eq!(from_value(&value).map(|d| d.to_string()).as_deref(), Some(text));
        }
        assert_eq!(from_value(&json!("free")), None);
        assert_eq!(from_value(&json!(true)), None);
    }

    #[test]
    fn products_out_of_range_are_errors() {
        assert!(multiply(Decimal::MAX, Decimal::from(2)).is_err());
        assert!(add(Decimal::MAX, Decimal::ONE).is_err());
    }
}
