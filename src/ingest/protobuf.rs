//! The wire format of protobuf: varints, and fields one behind the other. All of it is borrowed from the body.
//!
//! Why beside the crate for it: that makes a text of its own of each part of each endpoint, which costs five times what reading the whole batch costs here.

use std::borrow::Cow;

use crate::histogram::codec::put_varint;

/// The bytes are no protobuf, or not of the expected kind.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The end comes within a field.
    #[error("it is cut off")]
    CutOff,
    /// A varint of over 64 bits, a field without a number, or a kind of field that nothing writes any more.
    #[error("it has bytes that are no field")]
    NoField,
    /// A field is there in another type.
    #[error("field {0} is of another type")]
    Type(u32),
}

/// What stands in a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number, or several unpacked ones of a column.
    Varint(u64),
    /// A text, a message or a packed column.
    Bytes(&'a [u8]),
    /// Four or eight bytes, which no field of ours is.
    Fixed,
}

/// The last byte of a varint has its highest bit clear.
const GOES_ON: u8 = 0x80;

/// Takes a varint off the front.
///
/// # Errors
/// When there is none.
#[inline]
pub fn take_varint(bytes: &mut &[u8]) -> Result<u64, Broken> {
    if let Some(word) = bytes.first_chunk::<4>() {
        let word = u32::from_le_bytes(*word);
        let last = !word & 0x8080_8080;
        if last != 0 {
            // Without a branch on the length, which cannot be foretold: up to the last byte, then seven bits of each moved together.
            let sevens = word & (last ^ (last - 1)) & 0x7f7f_7f7f;
            let pairs = (sevens & 0x007f_007f) | (sevens & 0x7f00_7f00) >> 1;
            *bytes = &bytes[last.trailing_zeros() as usize / 8 + 1..];
            return Ok(u64::from((pairs & 0x3fff) | (pairs & 0x3fff_0000) >> 2));
        }
    }
    take_varint_by_bytes(bytes)
}

/// Likewise, of numbers that are mostly below 128.
///
/// # Errors
/// When there is none.
#[inline]
pub fn take_small_varint(bytes: &mut &[u8]) -> Result<u64, Broken> {
    match bytes.split_first() {
        Some((byte, rest)) if byte & GOES_ON == 0 => {
            *bytes = rest;
            Ok(u64::from(*byte))
        }
        _ => take_varint(bytes),
    }
}

/// Near the end of the bytes, and for those longer than four bytes.
#[cold]
fn take_varint_by_bytes(bytes: &mut &[u8]) -> Result<u64, Broken> {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if at == 9 && *byte > 1 {
            return Err(Broken::NoField);
        }
        value |= u64::from(byte & !GOES_ON) << (7 * at);
        if byte & GOES_ON == 0 {
            *bytes = &bytes[at + 1..];
            return Ok(value);
        }
    }
    Err(Broken::CutOff)
}

/// The fields of a message: number and value.
#[derive(Clone, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self) -> Result<(u32, Value<'a>), Broken> {
        let key = take_varint(&mut self.0)?;
        let number = u32::try_from(key >> 3).ok().filter(|n| *n > 0).ok_or(Broken::NoField)?;
        let value = match key & 7 {
            0 => Value::Varint(take_varint(&mut self.0)?),
            1 => self.bytes(8).map(|_| Value::Fixed)?,
            2 => {
                let len = take_varint(&mut self.0)?;
                Value::Bytes(self.bytes(len)?)
            }
            5 => self.bytes(4).map(|_| Value::Fixed)?,
            _ => return Err(Broken::NoField),
        };
        Ok((number, value))
    }

    fn bytes(&mut self, len: u64) -> Result<&'a [u8], Broken> {
        let (bytes, rest) = usize::try_from(len).ok().and_then(|len| self.0.split_at_checked(len)).ok_or(Broken::CutOff)?;
        self.0 = rest;
        Ok(bytes)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), Broken>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.take();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// The numbers of a repeated field, as they were packed.
#[derive(Clone, Debug, Default)]
pub struct Column<'a>(Cow<'a, [u8]>);

impl<'a> Column<'a> {
    /// Adds what stands in a field. A packed column mostly comes in one piece and is borrowed then; pieces and single numbers are put together.
    ///
    /// # Errors
    /// When the last number of a piece is cut off, or it is no column.
    pub fn add(&mut self, number: u32, value: Value<'a>) -> Result<(), Broken> {
        match value {
            Value::Bytes(bytes) if bytes.last().is_some_and(|b| b & GOES_ON != 0) => return Err(Broken::CutOff),
            Value::Bytes(bytes) if self.0.is_empty() => self.0 = Cow::Borrowed(bytes),
            Value::Bytes(bytes) => self.0.to_mut().extend_from_slice(bytes),
            Value::Varint(value) => put_varint(self.0.to_mut(), value),
            Value::Fixed => return Err(Broken::Type(number)),
        }
        Ok(())
    }

    /// How many numbers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().filter(|b| **b & GOES_ON == 0).count()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes from which [`take_varint`] takes the numbers.
    #[must_use]
    pub fn packed(&self) -> &[u8] {
        &self.0
    }
}

/// A signed number out of its zigzag form.
#[must_use]
pub fn signed(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_varint_is_read_as_it_was_written_whatever_stands_behind(shift in 0u32..64, value: u64, behind in prop::collection::vec(any::<u8>(), 0..12)) {
            let value = value >> shift;
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let len = bytes.len();
            for cut in 0..len {
                prop_assert_eq!(take_varint(&mut &bytes[..cut]), Err(Broken::CutOff));
            }
            bytes.extend_from_slice(&behind);
            let mut rest = &bytes[..];
            prop_assert_eq!(take_varint(&mut rest), Ok(value));
            prop_assert_eq!(rest, &behind[..]);
            prop_assert_eq!(take_varint_by_bytes(&mut &bytes[..]), Ok(value));
            prop_assert_eq!(take_small_varint(&mut &bytes[..]), Ok(value));
        }
    }

    #[test]
    fn numbers_may_be_longer_than_they_need_and_not_longer_than_64_bits() {
        assert_eq!(take_varint(&mut &[0x81, 0x80, 0x00][..]), Ok(1));
        assert_eq!(take_varint(&mut &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01][..]), Ok(u64::MAX));
        assert_eq!(take_varint(&mut &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02][..]), Err(Broken::NoField));
        assert_eq!(take_varint(&mut &[0xff; 12][..]), Err(Broken::NoField));
    }

    #[test]
    fn signs_are_in_the_lowest_bit() {
        assert_eq!([0, 1, 2, 3, u64::MAX - 1, u64::MAX].map(signed), [0, -1, 1, -2, i64::MAX, i64::MIN]);
    }

    #[test]
    fn a_column_is_the_same_packed_in_pieces_or_number_by_number() {
        let mut column = Column::default();
        for value in [Value::Bytes(&[1, 0x80, 0x01]), Value::Varint(300), Value::Bytes(&[]), Value::Bytes(&[7])] {
            column.add(3, value).unwrap();
        }
        assert_eq!((column.packed(), column.len()), (&[1, 0x80, 0x01, 0xac, 0x02, 7][..], 4));
        assert_eq!(column.add(3, Value::Bytes(&[1, 0x80])), Err(Broken::CutOff));
        assert_eq!(column.add(3, Value::Fixed), Err(Broken::Type(3)));
    }
}
