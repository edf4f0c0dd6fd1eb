//! The values of fields: strings, ids, and numbers in all forms that the encoding allows.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The text of a value. Its syntax has been checked, and no more.
pub(super) fn raw<'de, A: MapAccess<'de>>(fields: &mut A) -> Result<&'de RawValue, A::Error> {
    fields.next_value()
}

/// Reads a string. `None` if the value is no string.
pub(super) fn text(value: &RawValue) -> Option<Cow<'_, [u8]>> {
    Text::deserialize(value).ok().map(|Text(text)| text)
}

/// A string, as bytes: half of a surrogate pair, which JSON can express, is not UTF-8.
pub(super) struct Text<'de>(pub(super) Cow<'de, [u8]>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string")
            }

            fn visit_borrowed_bytes<E: de::Error>(self, text: &'de [u8]) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_bytes<E: de::Error>(self, text: &[u8]) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_vec())))
            }
        }
        deserializer.deserialize_bytes(TextVisitor)
    }
}

/// Reads an id in hexadecimal. An id of another form is no id.
pub(super) fn id<'de, A: MapAccess<'de>, const BYTES: usize>(fields: &mut A) -> Result<[u8; BYTES], A::Error> {
    let text = text(raw(fields)?).unwrap_or_default();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let bytes: Option<Vec<u8>> = text
        .chunks(2)
        .take(BYTES + 1)
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect();
    Ok(bytes.and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; BYTES]))
}

/// Reads a whole number. Null counts as 0.
pub(super) fn number<T: TryFrom<i128> + Default>(value: &RawValue) -> Result<T, &'static str> {
    match Option::<Whole>::deserialize(value) {
        Ok(Some(Whole(number))) => T::try_from(number).map_err(|_| "a number out of range"),
        Ok(None) => Ok(T::default()),
        Err(_) => Err("not a whole number"),
    }
}

/// A whole number, as a number or as a string.
struct Whole(i128);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WholeVisitor;
        impl Visitor<'_> for WholeVisitor {
            type Value = Whole;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a whole number")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Whole, E> {
                Ok(Whole(number.into()))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Whole, E> {
                Ok(Whole(number.into()))
            }

            #[expect(clippy::cast_possible_truncation, reason = "whole; a number that is too large stays too large")]
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Whole, E> {
                if number.fract() == 0.0 { Ok(Whole(number as i128)) } else { Err(E::custom("not a whole number")) }
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Whole, E> {
                text.parse().map(Whole).map_err(|_| E::custom("not a whole number"))
            }
        }
        deserializer.deserialize_any(WholeVisitor)
    }
}

/// A number with a fraction. JSON has no notation for infinity and the like, so these are strings.
pub(super) struct Double(pub(super) f64);

impl<'de> Deserialize<'de> for Double {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DoubleVisitor;
        impl Visitor<'_> for DoubleVisitor {
            type Value = Double;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a number")
            }

            #[expect(clippy::cast_precision_loss, reason = "the sender chose this type")]
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Double, E> {
                Ok(Double(number as f64))
            }

            #[expect(clippy::cast_precision_loss, reason = "the sender chose this type")]
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Double, E> {
                Ok(Double(number as f64))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Double, E> {
                Ok(Double(number))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Double, E> {
                text.parse().map(Double).map_err(|_| E::custom("not a number"))
            }
        }
        deserializer.deserialize_any(DoubleVisitor)
    }
}
