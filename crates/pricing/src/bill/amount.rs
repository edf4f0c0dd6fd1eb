//! Exact decimal amounts: converts JSON numbers to [`Decimal`], and multiplies and adds amounts without panicking.
//! Money becomes a binary float in two places only: in [`Calculation::cost_f64`](crate::Calculation::cost_f64), and
//! when a [`Component`](crate::Component) is serialized.

use rust_decimal::Decimal;
use serde_json::{Number, Value};

use crate::PricingError;

/// The largest count (tokens, characters, requests, seconds) that is priced. A unit price of 16 digits times this count
/// still fits into the 28 digits of a [`Decimal`].
pub(crate) const LARGEST_COUNT: u64 = 1_000_000_000_000;

/// Converts a JSON number to the decimal that was written: `2.5e-06` becomes exactly 0.0000025. This works because the
/// shortest decimal form of a float is the literal that it was parsed from.
pub(crate) fn from_number(number: &Number) -> Option<Decimal> {
    if let Some(integer) = number.as_u64() {
        return Some(Decimal::from(integer));
    }
    if let Some(integer) = number.as_i64() {
        return Some(Decimal::from(integer));
    }
    from_float(number.as_f64()?)
}

/// Like [`from_number`], for a float that is already parsed. `None` if it is not finite or needs more than 28 digits.
pub(crate) fn from_float(value: f64) -> Option<Decimal> {
    if !value.is_finite() {
        return None;
    }
    if value == 0.0 {
        return Some(Decimal::ZERO);
    }
    let text = format!("{value:e}");
    Decimal::from_scientific(&text).ok()
}

/// Reads a price: a number, or a number in a string. YAML parsers read `4e-07` as a string.
pub(crate) fn from_value(value: &Value) -> Option<Decimal> {
    match value {
        Value::Number(number) => from_number(number),
        Value::String(text) => {
            let text = text.trim();
            text.parse().ok().or_else(|| from_float(text.parse::<f64>().ok()?))
        }
        _ => None,
    }
}

/// Returns `quantity * unit_price`, or an error if the product exceeds the range of a decimal.
pub(crate) fn multiply(quantity: Decimal, unit_price: Decimal) -> Result<Decimal, PricingError> {
    quantity.checked_mul(unit_price).ok_or(PricingError::AmountTooLarge)
}

/// Returns `left + right`, or an error if the sum exceeds the range of a decimal.
pub(crate) fn add(left: Decimal, right: Decimal) -> Result<Decimal, PricingError> {
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
