//! Small files about the memory of a task: ksm_stat and numa_maps.

use std::path::PathBuf;

use nix::unistd::Pid;

use super::fields::{lines, unsigned, words};
use super::{LONG_BYTES, ParseError, ProcfsError, SHORT_BYTES, read_parsed};

/// Whether the line `ksm_merge_any: yes` is there (fs/proc/base.c, Linux 6.15; older kernels do not tell).
pub fn parse_ksm_stat(text: &[u8]) -> Result<bool, ParseError> {
    Ok(lines(text).any(|line| line == b"ksm_merge_any: yes"))
}

/// First addresses of the mappings that have a NUMA policy of their own, or their thread's (man 7 numa).
pub fn parse_numa_maps(text: &[u8]) -> Result<Vec<u64>, ParseError> {
    let mut found = Vec::new();
    for line in lines(text) {
        let mut words = words(line);
        let (Some(start), Some(policy)) = (words.next(), words.next()) else {
            return Err(ParseError::new("numa_maps line", line));
        };
        if policy != b"default" && policy != b"local" {
            found.push(unsigned(start, 16, "numa_maps start")?);
        }
    }
    Ok(found)
}

/// Whether the process let all its memory be merged (`PR_SET_MEMORY_MERGE`); an error without CONFIG_KSM.
pub fn merges_any(pid: Pid) -> Result<bool, ProcfsError> {
    read_parsed(&PathBuf::from(format!("/proc/{pid}/ksm_stat")), SHORT_BYTES, parse_ksm_stat)
}

/// As [`parse_numa_maps`]; the kernel walks all page tables for it. An error without CONFIG_NUMA.
pub fn numa_policies(pid: Pid) -> Result<Vec<u64>, ProcfsError> {
    read_parsed(&PathBuf::from(format!("/proc/{pid}/numa_maps")), LONG_BYTES, parse_numa_maps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_of_everything_is_told() {
        assert!(parse_ksm_stat(b"ksm_rmap_items 0\nksm_merge_any: yes\nksm_mergeable: yes\n").unwrap());
        assert!(!parse_ksm_stat(b"ksm_rmap_items 0\nksm_merge_any: no\n").unwrap());
        assert!(!parse_ksm_stat(b"ksm_rmap_items 0\n").unwrap());
    }

    #[test]
    fn mappings_with_a_policy_are_told() {
        let text =
            b"7f00 default file=/a mapped=1\n8f00 bind:0 anon=1\n9f00 interleave:0-1\naf00 local anon=2\n";
        assert_eq!(parse_numa_maps(text).unwrap(), [0x8f00, 0x9f00]);
        assert!(parse_numa_maps(b"7f00\n").is_err());
    }
}
