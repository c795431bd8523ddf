//! Bounded reads of primitive values from a byte slice; the one error is that the bytes ended too early.

/// The bytes ended before the value did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} needs {need} bytes at offset {at}, but only {have} are left")]
pub struct Truncated {
    /// Which value was being read.
    pub what: &'static str,
    /// Offset of the value, in bytes.
    pub at: usize,
    /// Bytes that the value needs.
    pub need: usize,
    /// Bytes that were left.
    pub have: usize,
}

/// Reads little-endian values from the front of a slice.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the front of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0 }
    }

    /// The next `need` bytes.
    ///
    /// # Errors
    /// [`Truncated`] when fewer are left; nothing is consumed then.
    pub fn take(&mut self, what: &'static str, need: usize) -> Result<&'a [u8], Truncated> {
        let rest = &self.bytes[self.at..];
        let Some(taken) = rest.get(..need) else {
            return Err(Truncated { what, at: self.at, need, have: rest.len() });
        };
        self.at += need;
        Ok(taken)
    }

    /// The next `N` bytes as an array.
    ///
    /// # Errors
    /// [`Truncated`] when fewer are left.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Truncated> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(what, N)?);
        Ok(array)
    }

    /// A byte.
    ///
    /// # Errors
    /// [`Truncated`] at the end.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, Truncated> {
        Ok(self.array::<1>(what)?[0])
    }

    /// A 16-bit integer.
    ///
    /// # Errors
    /// [`Truncated`] near the end.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, Truncated> {
        self.array(what).map(u16::from_le_bytes)
    }

    /// A 32-bit integer.
    ///
    /// # Errors
    /// [`Truncated`] near the end.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, Truncated> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// A 64-bit integer.
    ///
    /// # Errors
    /// [`Truncated`] near the end.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, Truncated> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Bytes not read yet.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_little_endian_and_names_what_is_missing() {
        let mut reader = Reader::new(&[1, 2, 0, 3, 0, 0, 0, 9]);
        assert_eq!(reader.u8("a").unwrap(), 1);
        assert_eq!(reader.u16("b").unwrap(), 2);
        assert_eq!(reader.u32("c").unwrap(), 3);
        let missing = reader.u64("d").unwrap_err();
        assert_eq!(missing, Truncated { what: "d", at: 7, need: 8, have: 1 });
        assert_eq!(reader.left(), 1);
    }
}
