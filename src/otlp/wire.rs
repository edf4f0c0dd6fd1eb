//! The wire format of Protocol Buffers (<https://protobuf.dev/programming-guides/encoding/>), read in place. Nothing is
//! copied, and a message within a message is a slice until somebody reads its fields, so nesting costs nothing.

use crate::otlp::DecodeError;

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum FieldValue<'a> {
    Varint(u64),
    Fixed64(u64),
    /// A string, bytes, or a message.
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// The fields of a message, in the order in which they were written.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| DecodeError::malformed("it is cut off"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut number = 0_u64;
        for shift in (0..70).step_by(7) {
            let byte = self.take(1)?.first().copied().unwrap_or_default();
            let bits = u64::from(byte & 0x7f);
            // The tenth byte holds the last bit.
            if shift == 63 && bits > 1 {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(DecodeError::malformed("a number has more than 64 bits"))
    }

    fn field(&mut self) -> Result<(u32, FieldValue<'a>), DecodeError> {
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok().filter(|number| (1..1 << 29).contains(number));
        let number = number.ok_or_else(|| DecodeError::malformed("a field has a wrong number"))?;
        let value = match key & 7 {
            0 => FieldValue::Varint(self.varint()?),
            1 => FieldValue::Fixed64(u64::from_le_bytes(fixed(self.take(8)?))),
            2 => {
                let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                FieldValue::Bytes(self.take(length)?)
            }
            5 => FieldValue::Fixed32(u32::from_le_bytes(fixed(self.take(4)?))),
            // Groups are the form of messages within messages from before 2008. OTLP has none.
            _ => return Err(DecodeError::malformed("a field has a wrong type")),
        };
        Ok((number, value))
    }
}

/// Stops after the first error.
impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, FieldValue<'a>), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

fn fixed<const COUNT: usize>(bytes: &[u8]) -> [u8; COUNT] {
    bytes.first_chunk().copied().unwrap_or([0; COUNT])
}

/// Writes a field with a number. 0 is the default, which is not written.
pub(super) fn put_number(message: &mut Vec<u8>, field: u8, number: u64) {
    if number != 0 {
        message.push(field << 3);
        put_varint(message, number);
    }
}

/// Writes a field with a string or a message.
pub(super) fn put_bytes(message: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    message.push(field << 3 | 2);
    put_varint(message, u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    message.extend_from_slice(bytes);
}

fn put_varint(message: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        message.push(u8::try_from(number & 0x7f).unwrap_or_default() | 0x80);
        number >>= 7;
    }
    message.push(u8::try_from(number).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(message: &[u8]) -> Result<Vec<(u32, FieldValue<'_>)>, DecodeError> {
        Fields::of(message).collect()
    }

    #[test]
    fn fields_of_every_type_are_read() {
        let message = [0x08, 0x96, 0x01, 0x11, 1, 0, 0, 0, 0, 0, 0, 0x80, 0x1a, 2, b'h', b'i', 0x25, 2, 0, 0, 0];
        assert_eq!(
            fields(&message).expect("fields"),
            [
                (1, FieldValue::Varint(150)),
                (2, FieldValue::Fixed64(0x8000_0000_0000_0001)),
                (3, FieldValue::Bytes(b"hi")),
                (4, FieldValue::Fixed32(2)),
            ]
        );
        assert!(fields(&[]).expect("no fields").is_empty());
    }

    #[test]
    fn numbers_survive_writing_and_reading() {
        for number in [1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut message = Vec::new();
            put_number(&mut message, 7, number);
            put_bytes(&mut message, 2, b"x");
            let expected = [(7, FieldValue::Varint(number)), (2, FieldValue::Bytes(b"x"))];
            assert_eq!(fields(&message).expect("fields"), expected);
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for message in [
            &[0x08][..],
            &[0x80],
            &[0x0a, 5, 1],
            // A length that no machine can address.
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            // Eleven bytes of a number, and a tenth byte with too many bits.
            &[0x08, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1],
            &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
            // A group, and field number 0.
            &[0x0b, 0x0c],
            &[0x00, 1],
            b"{\"resourceSpans\":[]}",
        ] {
            assert!(fields(message).is_err(), "{message:?}");
        }
    }
}
