//! The address space of a task: `mm-PID.img` (images/mm.proto).

use nix::unistd::Pid;

use godwit_wire::image::mm::MmEntry;
use godwit_wire::image::vma::VmaEntry;

use super::asked::TaskSays;
use super::files::FileTable;
use super::special;
use crate::error::DumpError;
use crate::procfs::auxv;
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
        mm_saved_auxv: saved_auxv(pid, auxv::read(pid)?),
        vmas,
        dumpable: Some(says.dumpable),
        aios: Vec::new(),
        thp_disabled: Some(says.thp_disabled),
    })
}

/// The auxiliary vector without its end mark, which the kernel sets anew, in as many words as restore takes.
fn saved_auxv(pid: Pid, mut words: Vec<u64>) -> Vec<u64> {
    while let [.., 0, _] = words.as_slice() {
        words.truncate(words.len() - 2);
    }
    if words.len() > AUXV_WORDS_MAX {
        tracing::warn!(%pid, words = words.len(), "the auxiliary vector is longer than CRIU restores; its end is lost");
        words.truncate(AUXV_WORDS_MAX);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_mark_is_left_out_and_a_long_vector_is_cut() {
        let this = Pid::this();
        assert_eq!(saved_auxv(this, vec![33, 5, 16, 0, 0, 0, 0, 0]), [33, 5, 16, 0]);
        assert_eq!(saved_auxv(this, vec![7; 60]).len(), AUXV_WORDS_MAX);
        assert!(saved_auxv(this, Vec::new()).is_empty());
    }
}
