//! Objects and lists, read field by field and element by element, each into its place.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::otlp::json::values::Text;

/// An object that is read field by field.
pub(super) trait Object<'de> {
    /// Reads the value of a field. Must read it, or skip it with [`skip`].
    fn field<A: MapAccess<'de>>(&mut self, name: &str, fields: &mut A) -> Result<(), A::Error>;
}

/// A list whose elements are read one by one.
pub(super) trait List {
    /// Reads the next element. Returns false at the end.
    fn element<'de, A: SeqAccess<'de>>(&mut self, elements: &mut A) -> Result<bool, A::Error>;
}

pub(super) fn skip<'de, A: MapAccess<'de>>(fields: &mut A) -> Result<(), A::Error> {
    fields.next_value::<IgnoredAny>().map(|_| ())
}

/// Reads an object, or null, which counts as an empty object.
pub(super) struct Read<'a, T>(pub(super) &'a mut T);

impl<'de, T: Object<'de>> DeserializeSeed<'de> for Read<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Object<'de>> Visitor<'de> for Read<'_, T> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        while let Some(Text(name)) = fields.next_key::<Text<'de>>()? {
            // A name that is not UTF-8 is none of those that are read.
            self.0.field(std::str::from_utf8(&name).unwrap_or_default(), &mut fields)?;
        }
        Ok(())
    }
}

/// Reads an object that is the element of a list.
pub(super) struct ReadElement<'a, T>(pub(super) &'a mut T);

impl<'de, T: Object<'de>> DeserializeSeed<'de> for ReadElement<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(Read(self.0))
    }
}

/// Reads a list, or null, which counts as an empty list.
pub(super) struct ReadEach<T>(pub(super) T);

impl<'de, T: List> DeserializeSeed<'de> for ReadEach<T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: List> Visitor<'de> for ReadEach<T> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<(), A::Error> {
        while self.0.element(&mut elements)? {}
        Ok(())
    }
}
