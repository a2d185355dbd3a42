//! The bytes of a snapshot file, and the errors for bytes that are not a valid one.
//!
//! ```text
//! bytes   what
//! 16      keepcount totals
//! 4       format, little-endian as all numbers here
//! 8       length of the body
//! ..      body: the snapshot in postcard's wire format, keys as their bytes
//! 8       64-bit FNV-1a of everything before
//! ```
//!
//! Each step of FNV-1a is a bijection of the hash for a given byte, and of the byte for a given
//! hash. So a change of one byte always changes the hash.

use super::{Format, Snapshot, failed};
use crate::counter::{FNV_OFFSET, fnv1a};
use crate::error::Result;

const MAGIC: &[u8; 16] = b"keepcount totals";
/// The length of what precedes the body.
pub(super) const HEAD: usize = MAGIC.len() + size_of::<u32>() + size_of::<u64>();
const CHECKSUM: usize = size_of::<u64>();

impl Snapshot {
    /// Returns the bytes of a snapshot file, for an object store, for example.
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`](crate::Error::Snapshot) if it cannot be encoded; no such case is known.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{MemoryStore, Snapshot};
    ///
    /// keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
    ///
    /// let snapshot = MemoryStore::new(&SCHEMA).snapshot();
    /// let bytes = snapshot.to_bytes()?;
    /// assert_eq!(Snapshot::from_bytes(&bytes)?, snapshot);
    /// let error = Snapshot::from_bytes(&bytes[..50]).unwrap_err();
    /// assert!(error.to_string().starts_with("snapshot: it is truncated: 50 of "));
    /// # Ok::<(), keepcount::Error>(())
    /// ```
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let body = postcard::to_allocvec(self)
            .map_err(|cause| failed(format!("it cannot be encoded: {cause}")))?;
        let (format, len) = (Format::NUMBER.to_le_bytes(), (body.len() as u64).to_le_bytes());
        let mut bytes = [MAGIC.as_slice(), &format, &len, &body, &[0; CHECKSUM]].concat();
        if let Some((sealed, checksum)) = bytes.split_last_chunk_mut() {
            *checksum = fnv1a(FNV_OFFSET, sealed).to_le_bytes();
        }
        Ok(bytes)
    }

    /// Reads the bytes of a snapshot file. Takes memory in proportion to their number, whatever
    /// they contain.
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`](crate::Error::Snapshot) with the reason: bytes of something else, of
    /// another format, truncated, with more bytes after their end, or damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::parse(bytes).map_err(failed)
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let (found, whole) = (bytes.len() as u64, whole_len(bytes)?);
        if found < whole {
            return Err(format!("it is truncated: {found} of {whole} bytes"));
        }
        if found > whole {
            return Err(format!("it has bytes after its end, which is at {whole}"));
        }
        let (sealed, checksum) = bytes.split_last_chunk::<CHECKSUM>().ok_or("it is truncated")?;
        if fnv1a(FNV_OFFSET, sealed) != u64::from_le_bytes(*checksum) {
            return Err("it is damaged: its checksum does not match".to_owned());
        }
        match postcard::take_from_bytes(sealed.get(HEAD..).unwrap_or_default()) {
            Ok((snapshot, [])) => Ok(snapshot),
            Ok((_, rest)) => {
                Err(format!("its body cannot be read: {} bytes are left over", rest.len()))
            }
            Err(cause) => Err(format!("its body cannot be read: {cause}")),
        }
    }
}

/// Returns how many bytes there should be, according to the first [`HEAD`] of them.
pub(super) fn whole_len(bytes: &[u8]) -> Result<u64, String> {
    let begun = bytes.get(..MAGIC.len()).unwrap_or(bytes);
    if !MAGIC.starts_with(begun) {
        return Err("it is not a snapshot of keepcount".to_owned());
    }
    let prefix = bytes.get(begun.len()..).and_then(<[u8]>::split_first_chunk);
    let Some((format, Some(len))) = prefix.map(|(format, rest)| (format, rest.first_chunk()))
    else {
        return Err(format!(
            "it is truncated: {} of at least {} bytes",
            bytes.len(),
            HEAD + CHECKSUM
        ));
    };
    match u32::from_le_bytes(*format) {
        Format::NUMBER => Ok(u64::from_le_bytes(*len).saturating_add((HEAD + CHECKSUM) as u64)),
        newer if newer > Format::NUMBER => Err(format!(
            "its format is {newer}, and this version of keepcount reads {} at most",
            Format::NUMBER
        )),
        number => Err(format!("its format is {number}, which no release writes")),
    }
}
