//! /proc/PID/auxv: what the kernel told the program at its start (`man 3 getauxval`).

use std::path::PathBuf;

use nix::unistd::Pid;

use super::{ParseError, ProcfsError, SHORT_BYTES, read_parsed};

/// Address of the vDSO's ELF header (include/uapi/linux/auxvec.h).
pub const AT_SYSINFO_EHDR: u64 = 33;

/// Parses pairs of 64-bit words, with the 0, 0 pair that ends them, if it is there.
pub fn parse(bytes: &[u8]) -> Result<Vec<u64>, ParseError> {
    let (words, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() || words.len() % 2 != 0 {
        return Err(ParseError::new("auxv length", bytes.len().to_string().as_bytes()));
    }
    Ok(words.iter().map(|word| u64::from_le_bytes(*word)).collect())
}

/// The value of entry `key`, if the vector has it.
pub fn lookup(words: &[u64], key: u64) -> Option<u64> {
    words
        .as_chunks::<2>()
        .0
        .iter()
        .take_while(|pair| pair[0] != 0)
        .find(|pair| pair[0] == key)
        .map(|pair| pair[1])
}

/// Reads /proc/PID/auxv; empty for kernel threads and zombies.
pub fn read(pid: Pid) -> Result<Vec<u64>, ProcfsError> {
    read_parsed(&PathBuf::from(format!("/proc/{pid}/auxv")), SHORT_BYTES, parse)
}
