//! A hash over the values of rows, which is the same before they are encoded and after they are decoded.

use std::hash::Hasher;

use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Float64Type, Int32Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, PrimitiveArray, RecordBatch};
use arrow_buffer::ArrowNativeType;
use twox_hash::XxHash3_64;

use crate::columns::COLUMNS;

/// What a null counts as among the lengths of texts.
const NULL: u32 = u32::MAX;

/// Hashes rows, however they are cut into batches.
pub(crate) struct ContentHasher {
    columns: Vec<(XxHash3_64, XxHash3_64)>,
    buffer: Vec<u8>,
}

impl ContentHasher {
    pub(crate) fn new() -> Self {
        let columns = (0..COLUMNS).map(|_| (XxHash3_64::new(), XxHash3_64::new())).collect();
        Self { columns, buffer: Vec::new() }
    }

    pub(crate) fn update(&mut self, batch: &RecordBatch) {
        for ((values, shapes), array) in self.columns.iter_mut().zip(batch.columns()) {
            self.buffer.clear();
            if let Some(texts) = array.as_string_opt::<i32>() {
                let ends = texts.value_offsets();
                if let (Some(first), Some(last)) = (ends.first(), ends.last()) {
                    let bytes = texts.value_data().get(first.as_usize()..last.as_usize());
                    values.write(bytes.unwrap_or_default());
                }
                for (row, ends) in ends.windows(2).enumerate() {
                    let length = match ends {
                        [start, end] if texts.is_valid(row) => end.wrapping_sub(*start).cast_unsigned(),
                        _ => NULL,
                    };
                    self.buffer.extend_from_slice(&length.to_le_bytes());
                }
                shapes.write(&self.buffer);
            } else {
                let numbers = primitive::<Int32Type>(array, &mut self.buffer, |value| value.to_le_bytes())
                    || primitive::<Float64Type>(array, &mut self.buffer, |value| value.to_le_bytes())
                    || primitive::<TimestampMicrosecondType>(array, &mut self.buffer, |value| value.to_le_bytes());
                debug_assert!(numbers, "every column is a text, a number or a time");
                values.write(&self.buffer);
                self.buffer.clear();
                self.buffer.extend((0..array.len()).map(|row| u8::from(array.is_valid(row))));
                shapes.write(&self.buffer);
            }
        }
    }

    /// The hash as 16 hexadecimal digits.
    pub(crate) fn finish(&self) -> String {
        let mut whole = XxHash3_64::new();
        for (values, shapes) in &self.columns {
            whole.write(&values.finish().to_le_bytes());
            whole.write(&shapes.finish().to_le_bytes());
        }
        format!("{:016x}", whole.finish())
    }
}

fn primitive<T: ArrowPrimitiveType>(
    array: &ArrayRef,
    buffer: &mut Vec<u8>,
    bytes: impl Fn(T::Native) -> <T::Native as Bytes>::Array,
) -> bool
where
    T::Native: Bytes,
{
    let Some(array) = array.as_primitive_opt::<T>() else { return false };
    let array: &PrimitiveArray<T> = array;
    for value in array {
        buffer.extend_from_slice(bytes(value.unwrap_or_default()).as_ref());
    }
    true
}

/// Numbers that have a fixed number of bytes.
trait Bytes {
    type Array: AsRef<[u8]>;
}

impl Bytes for i32 {
    type Array = [u8; 4];
}

impl Bytes for i64 {
    type Array = [u8; 8];
}

impl Bytes for f64 {
    type Array = [u8; 8];
}
