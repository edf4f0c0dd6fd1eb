//! Measures a JSON text without building a tree: its number of elements, its depth, and the bytes that its values take
//! when they are stored. A tree of `[0],[0],...` takes about a hundred times the bytes of the text, and PostgreSQL's
//! `jsonb` writes `1e308` as 309 digits. Both are therefore bounded before a tree is built or a value is stored.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use sha2::{Digest, Sha256};

/// The bounds of a JSON value.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The largest number of bytes as stored: strings as they are, numbers written out, and a byte or two per
    /// separator.
    pub bytes: usize,
    /// The largest number of values of any kind, plus field names.
    pub elements: usize,
    /// The deepest nesting of lists and objects.
    pub depth: usize,
    /// The largest number of bytes in one string.
    pub text: usize,
    /// The largest number of digits in one number, when written out.
    pub digits: usize,
}

impl Bounds {
    /// The bounds of a value that is read but not stored. The sizes of its strings and numbers don't matter.
    pub const fn of_tree(elements: usize, depth: usize) -> Self {
        Self { bytes: usize::MAX, elements, depth, text: usize::MAX, digits: usize::MAX }
    }
}

/// The bound that a value exceeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excess {
    /// The description, which follows the field's name in a message: `contains more than 2000 values`.
    pub what: String,
    /// Whether a size is exceeded (413), rather than the form being wrong (422).
    pub is_size: bool,
}

/// The canonical digest of a value. Equal values have equal digests, whatever the order of their fields and the
/// notation of their numbers.
pub type ValueDigest = [u8; 32];

/// Measures a value and computes its digest. Stops at the first bound that is exceeded, without reading the rest of the
/// text. `Err(None)` means that the text is not JSON.
pub fn check(json: &str, bounds: Bounds) -> Result<ValueDigest, Option<Excess>> {
    let mut walk = Walk::new(bounds);
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let digest = Value { walk: &mut walk, depth: 0 }.deserialize(&mut deserializer);
    match (digest, walk.excess) {
        (_, Some(excess)) => Err(Some(excess)),
        (Err(_), None) => Err(None),
        (Ok(digest), None) => deserializer.end().map(|()| digest).map_err(|_| None),
    }
}

/// The number of digits with which `jsonb` writes a number.
fn digits(number: f64) -> usize {
    if number == 0.0 || !number.is_finite() {
        return 1;
    }
    let shortest = format!("{number:e}");
    let (mantissa, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let mantissa = mantissa.bytes().filter(u8::is_ascii_digit).count();
    let exponent: i64 = exponent.parse().unwrap_or(0);
    let after = usize::try_from(exponent.unsigned_abs()).unwrap_or(usize::MAX);
    if exponent < 0 { after.saturating_add(mantissa) } else { mantissa.max(after.saturating_add(1)) }
}

/// The state of one measurement.
pub struct Walk {
    bounds: Bounds,
    bytes: usize,
    elements: usize,
    /// The bound that the value exceeds, if any.
    pub excess: Option<Excess>,
}

impl Walk {
    /// Starts the measurement of a value.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, bytes: 0, elements: 0, excess: None }
    }

    fn over<E: de::Error>(&mut self, what: String, is_size: bool) -> E {
        self.excess.get_or_insert(Excess { what, is_size });
        E::custom("over its bounds")
    }

    fn count<E: de::Error>(&mut self, bytes: usize) -> Result<(), E> {
        self.elements += 1;
        // A separator and a space.
        self.bytes = self.bytes.saturating_add(bytes).saturating_add(2);
        if self.elements > self.bounds.elements {
            return Err(self.over(format!("contains more than {} values", self.bounds.elements), true));
        }
        if self.bytes > self.bounds.bytes {
            return Err(self.over(format!("is larger than {} bytes", self.bounds.bytes), true));
        }
        Ok(())
    }

    fn text<E: de::Error>(&mut self, text: &str) -> Result<(), E> {
        if text.len() > self.bounds.text {
            return Err(self.over(format!("contains a string of more than {} bytes", self.bounds.text), true));
        }
        self.count(text.len() + 2)
    }

    fn number<E: de::Error>(&mut self, number: f64) -> Result<(), E> {
        let digits = digits(number);
        if digits > self.bounds.digits {
            return Err(self.over(format!("contains a number of more than {} digits", self.bounds.digits), false));
        }
        self.count(digits + 2)
    }
}

/// Reads one value.
pub struct Value<'a> {
    /// The state of the measurement.
    pub walk: &'a mut Walk,
    /// The number of lists and objects that enclose the value.
    pub depth: usize,
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ValueDigest;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<ValueDigest, D::Error> {
        deserializer.deserialize_any(self)
    }
}

fn hashed(kind: &[u8], content: &[u8]) -> ValueDigest {
    let mut hasher = Sha256::new();
    hasher.update(kind);
    hasher.update(content);
    hasher.finalize().into()
}

impl Value<'_> {
    fn enter<E: de::Error>(&mut self) -> Result<(), E> {
        if self.depth >= self.walk.bounds.depth {
            return Err(self.walk.over(format!("is nested more than {} levels deep", self.walk.bounds.depth), false));
        }
        self.walk.count(2)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ValueDigest;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<ValueDigest, E> {
        self.walk.count(4)?;
        Ok(hashed(b"null", b""))
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<ValueDigest, E> {
        self.walk.count(5)?;
        Ok(hashed(b"bool", &[u8::from(value)]))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<ValueDigest, E> {
        self.walk.count(20)?;
        Ok(hashed(b"number", value.to_string().as_bytes()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<ValueDigest, E> {
        self.walk.count(20)?;
        Ok(hashed(b"number", value.to_string().as_bytes()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<ValueDigest, E> {
        self.walk.number(value)?;
        // 5 and 5.0 are the same number, and so are 0 and -0.0. This notation writes whole doubles without an exponent.
        Ok(hashed(b"number", (value + 0.0).to_string().as_bytes()))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<ValueDigest, E> {
        self.walk.text(value)?;
        Ok(hashed(b"text", value.as_bytes()))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<ValueDigest, A::Error> {
        self.enter()?;
        let depth = self.depth + 1;
        let mut hasher = Sha256::new();
        hasher.update(b"list");
        while let Some(digest) = items.next_element_seed(Value { walk: self.walk, depth })? {
            hasher.update(digest);
        }
        Ok(hasher.finalize().into())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<ValueDigest, A::Error> {
        self.enter()?;
        let depth = self.depth + 1;
        let mut digests = FieldDigests::default();
        while let Some(name) = fields.next_key::<String>()? {
            self.walk.text::<A::Error>(&name)?;
            let value = fields.next_value_seed(Value { walk: self.walk, depth })?;
            digests.add(&name, value);
        }
        Ok(digests.finish())
    }
}

/// Computes the digest of an object, independent of the order of its fields.
#[derive(Default)]
pub struct FieldDigests(Vec<[u8; 32]>);

impl FieldDigests {
    /// Adds the name and the digest of a field.
    pub fn add(&mut self, name: &str, value: ValueDigest) {
        let mut hasher = Sha256::new();
        hasher.update(hashed(b"name", name.as_bytes()));
        hasher.update(value);
        self.0.push(hasher.finalize().into());
    }

    /// Returns the digest of the object.
    pub fn finish(mut self) -> ValueDigest {
        self.0.sort_unstable();
        let mut hasher = Sha256::new();
        hasher.update(b"object");
        for digest in &self.0 {
            hasher.update(digest);
        }
        hasher.finalize().into()
    }
}

/// Skips a value without reading it.
pub fn skip<'de, A: MapAccess<'de>>(fields: &mut A) -> Result<(), A::Error> {
    fields.next_value::<IgnoredAny>().map(|_| ())
}

/// Whether a value contains a NUL anywhere. `jsonb` can't store NUL.
pub fn has_nul(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::String(text) => text.contains('\0'),
        serde_json::Value::Array(items) => items.iter().any(has_nul),
        serde_json::Value::Object(fields) => fields.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Bounds = Bounds { bytes: 1000, elements: 20, depth: 3, text: 100, digits: 64 };

    fn excess(json: &str) -> String {
        check(json, SMALL).expect_err("refused").expect("JSON").what
    }

    #[test]
    fn what_is_over_a_bound_is_named() {
        assert_eq!(excess("[[[[0]]]]"), "is nested more than 3 levels deep");
        assert_eq!(excess(&format!("[{}0]", "0,".repeat(30))), "contains more than 20 values");
        assert_eq!(excess("[1e308]"), "contains a number of more than 64 digits");
        assert_eq!(excess("[1e-300]"), "contains a number of more than 64 digits");
        assert_eq!(excess(&format!("[\"{}\"]", "x".repeat(101))), "contains a string of more than 100 bytes");
        assert_eq!(excess(&format!("[{}0]", "1e60,".repeat(17))), "is larger than 1000 bytes");
        for text in ["[1e400]", "\"\\ud800\"", "{", "[1] x", ""] {
            assert_eq!(check(text, SMALL), Err(None), "{text}");
        }
        assert!(check("[1e30, 1.5e-20, -7, null, true, {\"a\": [\"b\"]}]", SMALL).is_ok());
    }

    #[test]
    fn equal_values_have_equal_digests_and_others_do_not() {
        let digest = |json: &str| check(json, SMALL).expect("within bounds");
        assert_eq!(digest(r#"{"a": 1, "b": [2.50, "x"]}"#), digest(r#"{"b":[2.5,"\u0078"],"a":1.0}"#));
        for other in [r#"{"a": 1, "b": [2.5, "y"]}"#, r#"{"a": "1", "b": [2.5, "x"]}"#, r#"{"a": 1}"#, "[1]", "{}"] {
            assert_ne!(digest(r#"{"a": 1, "b": [2.5, "x"]}"#), digest(other), "{other}");
        }
        assert_ne!(digest(r#"["ab", "c"]"#), digest(r#"["a", "bc"]"#));
        assert_ne!(digest("null"), digest("[]"));
    }
}
