//! MessagePack, value by value. Every length is compared with what is left before it means anything,
//! and nothing is allocated.

/// A value, or the head of a list or map whose values follow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Item<'a> {
    Nil,
    Bool(bool),
    Int(i64),
    /// Only what does not fit 63 bits.
    UInt(u64),
    Float(f64),
    /// Not yet known to be UTF-8.
    Text(&'a [u8]),
    /// Bytes, or an extension.
    Bytes,
    /// So many values follow; there are at least as many bytes.
    Array(usize),
    /// So many keys and values follow; there are at least twice as many bytes.
    Map(usize),
}

/// Mark of a float of eight bytes.
const FLOAT: u8 = 0xcb;
/// Mark of a signed integer of eight bytes.
const INT: u8 = 0xd3;

/// Numbers one behind the other, each behind its mark; at least one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Run<'a> {
    Floats(&'a [[u8; 9]]),
    Ints(&'a [[u8; 9]]),
}

impl Run<'_> {
    pub(super) fn len(self) -> usize {
        match self {
            Self::Floats(values) | Self::Ints(values) => values.len(),
        }
    }
}

/// The number behind a mark.
#[inline]
pub(super) fn eight(value: &[u8; 9]) -> [u8; 8] {
    let [_, number @ ..] = *value;
    number
}

/// Not MessagePack, from this byte on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body is not MessagePack: {why} at byte {at}")]
pub(super) struct Malformed {
    at: usize,
    why: &'static str,
}

/// A place in a body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unpacker<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Unpacker<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self { body, at: 0 }
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at >= self.body.len()
    }

    /// The next value; what a list or map holds comes with the next calls.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Item<'a>, Malformed> {
        let start = self.at;
        let [mark] = self.take()?;
        Ok(match mark {
            0x00..=0x7f => Item::Int(mark.into()),
            0x80..=0x8f => self.map(start, u32::from(mark & 0x0f))?,
            0x90..=0x9f => self.array(start, u32::from(mark & 0x0f))?,
            0xa0..=0xbf => Item::Text(self.bytes(start, u32::from(mark & 0x1f))?),
            0xc0 => Item::Nil,
            0xc1 => return Err(Malformed { at: start, why: "a value of no type" }),
            0xc2 => Item::Bool(false),
            0xc3 => Item::Bool(true),
            0xc4..=0xc6 => {
                let len = self.len(mark - 0xc4)?;
                self.bytes(start, len)?;
                Item::Bytes
            }
            0xc7..=0xc9 => {
                let len = self.len(mark - 0xc7)?;
                let [_kind] = self.take()?;
                self.bytes(start, len)?;
                Item::Bytes
            }
            0xca => Item::Float(f32::from_be_bytes(self.take()?).into()),
            0xcb => Item::Float(f64::from_be_bytes(self.take()?)),
            0xcc => Item::Int(u8::from_be_bytes(self.take()?).into()),
            0xcd => Item::Int(u16::from_be_bytes(self.take()?).into()),
            0xce => Item::Int(u32::from_be_bytes(self.take()?).into()),
            0xcf => {
                let value = u64::from_be_bytes(self.take()?);
                i64::try_from(value).map_or(Item::UInt(value), Item::Int)
            }
            0xd0 => Item::Int(i8::from_be_bytes(self.take()?).into()),
            0xd1 => Item::Int(i16::from_be_bytes(self.take()?).into()),
            0xd2 => Item::Int(i32::from_be_bytes(self.take()?).into()),
            0xd3 => Item::Int(i64::from_be_bytes(self.take()?)),
            0xd4..=0xd8 => {
                self.bytes(start, 1 + (1 << (mark - 0xd4)))?;
                Item::Bytes
            }
            0xd9..=0xdb => {
                let len = self.len(mark - 0xd9)?;
                Item::Text(self.bytes(start, len)?)
            }
            0xdc | 0xdd => {
                let len = self.len(mark - 0xdc + 1)?;
                self.array(start, len)?
            }
            0xde | 0xdf => {
                let len = self.len(mark - 0xde + 1)?;
                self.map(start, len)?
            }
            0xe0..=0xff => Item::Int(i8::from_be_bytes([mark]).into()),
        })
    }

    /// Takes the numbers of eight bytes and one type that follow, at most so many: columns of clients
    /// are mostly that, and are passed over several times. `None` if the next value is none.
    #[inline]
    pub(super) fn run(&mut self, most: usize) -> Option<Run<'a>> {
        let rest = self.body.get(self.at..).unwrap_or_default();
        let mark = *rest.first().filter(|mark| matches!(**mark, FLOAT | INT))?;
        let (values, _) = rest.as_chunks::<{ 1 + 8 }>();
        let values = values.get(..values.len().min(most)).unwrap_or_default();
        let count = values.iter().position(|value| value[0] != mark).unwrap_or(values.len());
        let values = values.get(..count).filter(|values| !values.is_empty())?;
        self.at += values.len() * (1 + 8);
        Some(if mark == FLOAT { Run::Floats(values) } else { Run::Ints(values) })
    }

    /// Passes over the next value with all it holds, however deep.
    pub(super) fn skip(&mut self) -> Result<(), Malformed> {
        self.skip_values(1)
    }

    /// As [`Unpacker::skip`], so many of them.
    pub(super) fn skip_values(&mut self, mut values: usize) -> Result<(), Malformed> {
        // No more than the bytes that are left, so it fits; each value has at least one.
        while values > 0 {
            if let Some(run) = self.run(values) {
                values -= run.len();
                continue;
            }
            values -= 1;
            values += match self.next()? {
                Item::Array(len) => len,
                Item::Map(len) => 2 * len,
                _ => 0,
            };
            if values > self.left() {
                return Err(Malformed { at: self.at, why: "more values are announced than there are bytes" });
            }
        }
        Ok(())
    }

    #[inline]
    fn left(&self) -> usize {
        self.body.len().saturating_sub(self.at)
    }

    #[inline]
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let bytes = self.body.get(self.at..).and_then(|rest| rest.first_chunk::<N>());
        let bytes = *bytes.ok_or(Malformed { at: self.at, why: "it breaks off" })?;
        self.at += N;
        Ok(bytes)
    }

    /// A length of 1, 2 or 4 bytes.
    fn len(&mut self, size: u8) -> Result<u32, Malformed> {
        Ok(match size {
            0 => u8::from_be_bytes(self.take()?).into(),
            1 => u16::from_be_bytes(self.take()?).into(),
            _ => u32::from_be_bytes(self.take()?),
        })
    }

    #[inline]
    fn bytes(&mut self, start: usize, len: u32) -> Result<&'a [u8], Malformed> {
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        let bytes = end.and_then(|end| self.body.get(self.at..end));
        let bytes = bytes.ok_or(Malformed { at: start, why: "a text or bytes longer than the body" })?;
        self.at += bytes.len();
        Ok(bytes)
    }

    fn array(&self, start: usize, len: u32) -> Result<Item<'a>, Malformed> {
        let fits = usize::try_from(len).ok().filter(|len| *len <= self.left());
        fits.map(Item::Array).ok_or(Malformed { at: start, why: "a list longer than the body" })
    }

    fn map(&self, start: usize, len: u32) -> Result<Item<'a>, Malformed> {
        let fits = usize::try_from(len).ok().filter(|len| *len <= self.left() / 2);
        fits.map(Item::Map).ok_or(Malformed { at: start, why: "a map longer than the body" })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rmp_serde::encode::to_vec;

    use super::*;

    #[test]
    fn runs_end_where_something_else_begins() {
        let bytes = to_vec(&(1.5, 2.5, -3_000_000_000_i64, 4_000_000_000_i64 << 8, 7, 0.5)).unwrap();
        let mut unpacker = Unpacker::new(&bytes);
        assert_eq!(unpacker.run(9), None);
        assert_eq!(unpacker.next(), Ok(Item::Array(6)));
        let mut one = unpacker;
        let floats = |run: Option<Run<'_>>| match run {
            Some(Run::Floats(values)) => values.iter().map(|v| f64::from_be_bytes(eight(v))).collect(),
            _ => Vec::new(),
        };
        assert_eq!(floats(one.run(1)), [1.5]);
        assert_eq!(floats(unpacker.run(9)), [1.5, 2.5]);
        let Some(Run::Ints(ints)) = unpacker.run(9) else { panic!("{unpacker:?}") };
        assert_eq!(i64::from_be_bytes(eight(&ints[0])), -3_000_000_000);
        while unpacker.run(9).is_none() {
            unpacker.next().unwrap();
        }
        assert!(unpacker.is_at_end() && unpacker.run(1).is_none());
        // Cut off within a value, and nothing asked for.
        let mut cut = Unpacker::new(&bytes[..12]);
        cut.next().unwrap();
        assert_eq!(cut.run(0), None);
        assert_eq!((floats(cut.run(9)), cut.run(9)), (vec![1.5], None));
        assert!(cut.skip().is_err());
    }

    #[test]
    fn every_form_is_read() {
        let of = |bytes: &[u8]| {
            let mut unpacker = Unpacker::new(bytes);
            let item = unpacker.next().map(|item| format!("{item:?}"));
            assert!(item.is_err() || matches!(bytes[0], 0x80..=0x9f | 0xdc..=0xdf) || unpacker.is_at_end());
            item
        };
        for value in [0, 1, 127, 128, 255, 256, 65_535, 65_536, u32::MAX.into(), 1 << 40, i64::MAX] {
            assert_eq!(of(&to_vec(&value).unwrap()).unwrap(), format!("Int({value})"));
            assert_eq!(of(&to_vec(&-value).unwrap()).unwrap(), format!("Int({})", -value));
        }
        assert_eq!(of(&to_vec(&u64::MAX).unwrap()).unwrap(), format!("UInt({})", u64::MAX));
        assert_eq!(of(&to_vec(&1.5f32).unwrap()).unwrap(), "Float(1.5)");
        assert_eq!(of(&to_vec(&-0.25f64).unwrap()).unwrap(), "Float(-0.25)");
        assert_eq!(of(&[0xd2, 0xff, 0xff, 0xff, 0xfe]).unwrap(), "Int(-2)");
        for len in [0, 31, 32, 255, 256, 70_000] {
            let text = "x".repeat(len);
            let bytes = to_vec(&text).unwrap();
            assert_eq!(Unpacker::new(&bytes).next(), Ok(Item::Text(text.as_bytes())));
            let bytes = to_vec(serde_bytes::Bytes::new(text.as_bytes())).unwrap();
            assert_eq!(Unpacker::new(&bytes).next(), Ok(Item::Bytes));
            let bytes = to_vec(&vec![1; len]).unwrap();
            assert_eq!(Unpacker::new(&bytes).next(), Ok(Item::Array(len)));
            let map: std::collections::BTreeMap<usize, bool> = (0..len).map(|n| (n, true)).collect();
            assert_eq!(Unpacker::new(&to_vec(&map).unwrap()).next(), Ok(Item::Map(len)));
        }
        for ext in
            [&[0xd4, 1, 0][..], &[0xd8, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[0xc7, 1, 9, 0]]
        {
            assert_eq!(of(ext).unwrap(), "Bytes");
        }
    }

    #[test]
    fn lengths_are_believed_only_as_far_as_there_are_bytes() {
        for bomb in [
            &[0xdd, 0xff, 0xff, 0xff, 0xff][..],
            &[0xdf, 0xff, 0xff, 0xff, 0xff, 1, 2],
            &[0xdb, 0xff, 0xff, 0xff, 0xff, 1],
            &[0xc6, 0xff, 0xff, 0xff, 0xff],
            &[0xc9, 0xff, 0xff, 0xff, 0xff, 1],
            &[0xdc, 0, 2, 1],
            &[0xdc, 0, 3, 0x92, 1, 1],
            &[0xc1],
            &[],
        ] {
            assert!(Unpacker::new(bomb).skip().is_err(), "{bomb:?}");
        }
        // As deep as long.
        let deep: Vec<u8> = [0x91].repeat(5_000_000).into_iter().chain([0xc0]).collect();
        let mut unpacker = Unpacker::new(&deep);
        unpacker.skip().unwrap();
        assert!(unpacker.is_at_end());
        assert!(Unpacker::new(&deep[..5_000_000]).skip().is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut unpacker = Unpacker::new(&bytes);
            while unpacker.skip().is_ok() {}
            prop_assert!(unpacker.at <= bytes.len());
        }
    }
}
