//! Taking numbers and words out of a line of bytes.

use super::ParseError;

/// The lines of a text, without their ends; a last empty one is left out.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&b| b == b'\n').filter(|line| !line.is_empty())
}

/// The words of a line, parted by any number of blanks and tabs.
pub(super) fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|&b| b == b' ' || b == b'\t').filter(|word| !word.is_empty())
}

/// Splits at the first `byte`; the byte itself goes.
pub(super) fn split_at_byte(line: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    let at = line.iter().position(|&b| b == byte)?;
    Some((&line[..at], &line[at + 1..]))
}

/// A number in base `radix`, without sign, blanks or prefix.
pub(super) fn unsigned(word: &[u8], radix: u32, field: &'static str) -> Result<u64, ParseError> {
    let plain = !word.is_empty() && word.iter().all(u8::is_ascii_alphanumeric);
    std::str::from_utf8(word)
        .ok()
        .filter(|_| plain)
        .and_then(|text| u64::from_str_radix(text, radix).ok())
        .ok_or_else(|| ParseError::new(field, word))
}

/// A decimal number that may be negative and fits in T.
pub(super) fn decimal<T: std::str::FromStr>(word: &[u8], field: &'static str) -> Result<T, ParseError> {
    std::str::from_utf8(word)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| ParseError::new(field, word))
}

/// A number in base `radix` that fits in 32 bits.
pub(super) fn unsigned32(word: &[u8], radix: u32, field: &'static str) -> Result<u32, ParseError> {
    u32::try_from(unsigned(word, radix, field)?).map_err(|_| ParseError::new(field, word))
}

/// Undoes the kernel's `\ooo` escapes (fs/seq_file.c, mangle_path), leaving alone what is no escape.
pub(super) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = |b: &u8| (b'0'..=b'7').contains(b);
        if first == b'\\' && tail.len() >= 3 && tail[..3].iter().all(octal) && tail[0] <= b'3' {
            out.push((tail[0] - b'0') << 6 | (tail[1] - b'0') << 3 | (tail[2] - b'0'));
            rest = &tail[3..];
        } else {
            out.push(first);
            rest = tail;
        }
    }
    out
}
