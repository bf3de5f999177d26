//! The bytes of a record, which are not copied to stand one behind the other.

use std::fmt;

use bytes::Bytes;
use crc32c::crc32c_append;

use super::RECORD_HEADER;

/// A record's replicated part, in one piece or in two; clones share the bytes.
#[derive(Clone)]
pub struct Raw {
    /// The whole, or the header alone.
    first: Bytes,
    /// Payload and padding if `first` is the header alone, else nothing.
    second: Bytes,
    /// [`super::Draft::kept`], if there is a second piece.
    kept: bool,
}

impl Raw {
    /// Of a header and what stands behind it.
    pub(super) fn two(header: Bytes, rest: Bytes, kept: bool) -> Self {
        debug_assert_eq!(header.len(), RECORD_HEADER);
        Self { first: header, second: rest, kept }
    }

    /// The header, which is enough for the edge that keeps the payload: `None` if none is known to keep it.
    pub(crate) fn for_its_edge(&self) -> Option<&Bytes> {
        self.kept.then_some(&self.first)
    }

    /// The pieces in order, none of them empty.
    pub fn parts(&self) -> impl Iterator<Item = &Bytes> {
        [&self.first, &self.second].into_iter().filter(|part| !part.is_empty())
    }

    /// The same, taken out.
    pub fn into_parts(self) -> impl Iterator<Item = Bytes> {
        [self.first, self.second].into_iter().filter(|part| !part.is_empty())
    }

    /// Bytes of all pieces.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "there is a header at least")]
    pub fn len(&self) -> usize {
        self.first.len() + self.second.len()
    }

    /// The bytes in one piece, copied if they are in two.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        if self.second.is_empty() {
            self.first.clone()
        } else {
            [&*self.first, &*self.second].concat().into()
        }
    }

    /// CRC-32C of all of them.
    pub(super) fn digest(&self) -> u32 {
        self.parts().fold(0, |digest, part| crc32c_append(digest, part))
    }

    /// The fixed part.
    pub(in crate::wal) fn header(&self) -> &[u8] {
        self.first.get(..RECORD_HEADER).unwrap_or(&self.first)
    }

    /// What stands behind it.
    fn rest(&self) -> &[u8] {
        if self.second.is_empty() {
            self.first.get(RECORD_HEADER..).unwrap_or_default()
        } else {
            &self.second
        }
    }
}

impl From<Bytes> for Raw {
    fn from(whole: Bytes) -> Self {
        Self { first: whole, second: Bytes::new(), kept: false }
    }
}

impl PartialEq for Raw {
    fn eq(&self, other: &Self) -> bool {
        self.header() == other.header() && self.rest() == other.rest()
    }
}

impl Eq for Raw {}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Raw({} bytes)", self.len())
    }
}
