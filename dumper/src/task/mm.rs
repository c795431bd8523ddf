//! The address space of a task: `mm-PID.img` (images/mm.proto).

use nix::unistd::Pid;

use godwit_wire::image::mm::{AioRingEntry, MmEntry};
use godwit_wire::image::vma::VmaEntry;

use super::asked::TaskSays;
use super::files::FileTable;
use super::special;
use crate::error::DumpError;
use crate::procfs::stat::Stat;

/// Words that restore takes at most (`AT_VECTOR_SIZE`, criu/arch/x86/include/asm/types.h): the kernel itself may
/// have more.
const AUXV_WORDS_MAX: usize = 44;

/// The record. The bounds of code, data, arguments and environment come from `/proc/PID/stat`, which shows
/// them to a tracer; the end of the heap, to the byte, from the task.
///
/// # Errors
/// When the executable's link or the auxiliary vector cannot be read.
pub fn entry(
    pid: Pid,
    stat: &Stat,
    says: &TaskSays,
    vmas: Vec<VmaEntry>,
    aios: Vec<AioRingEntry>,
    auxv: Vec<u64>,
    table: &mut FileTable,
) -> Result<MmEntry, DumpError> {
    Ok(MmEntry {
        mm_start_code: stat.start_code,
        mm_end_code: stat.end_code,
        mm_start_data: stat.start_data,
        mm_end_data: stat.end_data,
        mm_start_stack: stat.start_stack,
        mm_start_brk: stat.start_brk,
        mm_brk: says.brk,
        mm_arg_start: stat.arg_start,
        mm_arg_end: stat.arg_end,
        mm_env_start: stat.env_start,
        mm_env_end: stat.env_end,
        exe_file_id: special::file(pid, "exe", table)?,
        mm_saved_auxv: saved_auxv(auxv),
        vmas,
        dumpable: Some(says.dumpable),
        aios,
        thp_disabled: Some(says.thp_disabled),
    })
}

/// The auxiliary vector without its end mark, which the kernel sets anew, in as many words as restore takes.
fn saved_auxv(words: Vec<u64>) -> Vec<u64> {
    let mut words = without_end(words);
    words.truncate(AUXV_WORDS_MAX);
    words
}

/// How many words at the end of an auxiliary vector are not restored, if any.
pub fn auxv_words_lost(words: &[u64]) -> Option<usize> {
    without_end(words.to_vec()).len().checked_sub(AUXV_WORDS_MAX).filter(|lost| *lost > 0)
}

fn without_end(mut words: Vec<u64>) -> Vec<u64> {
    while let [.., 0, _] = words.as_slice() {
        words.truncate(words.len() - 2);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_mark_is_left_out_and_a_long_vector_is_cut() {
        assert_eq!(saved_auxv(vec![33, 5, 16, 0, 0, 0, 0, 0]), [33, 5, 16, 0]);
        assert_eq!(saved_auxv(vec![7; 60]).len(), AUXV_WORDS_MAX);
        assert!(saved_auxv(Vec::new()).is_empty());
        let with_end = |words: usize| [vec![7; words], vec![0, 0]].concat();
        assert_eq!(auxv_words_lost(&with_end(46)), Some(2));
        assert_eq!(auxv_words_lost(&with_end(44)), None);
    }
}
