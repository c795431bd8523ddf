//! The registers of a thread, as `core-TID.img` holds them (images/core-x86.proto).

use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::unistd::Pid;

use godwit_wire::image::core_x86::{
    ThreadInfoX86, UserDescT, UserX86FpregsEntry, UserX86RegsEntry, UserX86XsaveEntry,
};

use crate::prepare::cpu::{Component, XsaveLayout};
use crate::sys::ptrace::{self, Regs, UserDesc};

/// Size of the legacy FXSAVE area, in bytes (Intel SDM vol. 1, 10.5.1).
const FXSAVE_SIZE: usize = 512;
/// Offset of `xstate_bv`, the first word of the XSAVE header (Intel SDM vol. 1, 13.4.2).
const XSTATE_BV: usize = FXSAVE_SIZE;

/// `user_x86_regs_mode`: a 64-bit task.
const MODE_NATIVE: i32 = 1;

/// Why a thread's floating point state does not fit the image format.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CoreError {
    /// The kernel gave less than an XSAVE area.
    #[error("the extended state is {len} bytes, less than its header")]
    ShortState {
        /// Bytes that were read.
        len: usize,
    },
}

/// Builds the register part of a core image.
///
/// `regs` are the registers after the restart fix-up, `xstate` is the NT_X86_XSTATE regset in the standard
/// layout (arch/x86/kernel/fpu/regset.c), `clear_tid_addr` the thread's `CLONE_CHILD_CLEARTID` address.
///
/// # Errors
/// [`CoreError::ShortState`] when `xstate` lacks its header.
pub fn thread_info(
    regs: &Regs,
    xstate: &[u8],
    layout: &XsaveLayout,
    clear_tid_addr: u64,
    tls: Vec<UserDescT>,
) -> Result<ThreadInfoX86, CoreError> {
    Ok(ThreadInfoX86 { clear_tid_addr, gpregs: gpregs(regs), fpregs: fpregs(xstate, layout)?, tls })
}

fn gpregs(regs: &Regs) -> UserX86RegsEntry {
    UserX86RegsEntry {
        r15: regs.r15,
        r14: regs.r14,
        r13: regs.r13,
        r12: regs.r12,
        bp: regs.rbp,
        bx: regs.rbx,
        r11: regs.r11,
        r10: regs.r10,
        r9: regs.r9,
        r8: regs.r8,
        ax: regs.rax,
        cx: regs.rcx,
        dx: regs.rdx,
        si: regs.rsi,
        di: regs.rdi,
        orig_ax: regs.orig_rax,
        ip: regs.rip,
        cs: regs.cs,
        flags: regs.eflags,
        sp: regs.rsp,
        ss: regs.ss,
        fs_base: regs.fs_base,
        gs_base: regs.gs_base,
        ds: regs.ds,
        es: regs.es,
        fs: regs.fs,
        gs: regs.gs,
        mode: Some(MODE_NATIVE),
    }
}

fn fpregs(xstate: &[u8], layout: &XsaveLayout) -> Result<UserX86FpregsEntry, CoreError> {
    if xstate.len() < XSTATE_BV + 64 {
        return Err(CoreError::ShortState { len: xstate.len() });
    }
    let half = |at: usize| u32::from(u16::from_le_bytes([xstate[at], xstate[at + 1]]));
    Ok(UserX86FpregsEntry {
        cwd: half(0),
        swd: half(2),
        twd: half(4),
        fop: half(6),
        rip: words64(&xstate[8..16])[0],
        rdp: words64(&xstate[16..24])[0],
        mxcsr: words32(&xstate[24..28])[0],
        mxcsr_mask: words32(&xstate[28..32])[0],
        st_space: words32(&xstate[32..160]),
        xmm_space: words32(&xstate[160..416]),
        padding: Vec::new(),
        xsave: Some(xsave(xstate, layout)),
    })
}

/// The extended components that the format has a field for. A bit of `xstate_bv` without a field is
/// cleared: restore would take stale bytes for that component otherwise.
fn xsave(xstate: &[u8], layout: &XsaveLayout) -> UserX86XsaveEntry {
    let mut kept: u64 = 0b11;
    let mut area = |component: Component| -> &[u8] {
        match layout.slice(component, xstate) {
            Some(bytes) => {
                kept |= 1 << component as u32;
                bytes
            }
            None => &[],
        }
    };
    let ymmh = area(Component::Ymm);
    let bndreg = area(Component::BndRegs);
    let bndcsr = area(Component::BndCsr);
    let opmask = area(Component::Opmask);
    let zmm_upper = area(Component::ZmmHi256);
    let hi16_zmm = area(Component::Hi16Zmm);
    let pkru = area(Component::Pkru);
    UserX86XsaveEntry {
        xstate_bv: words64(&xstate[XSTATE_BV..XSTATE_BV + 8])[0] & kept,
        ymmh_space: words32(ymmh),
        bndreg_state: words64(bndreg),
        bndcsr_state: words64(bndcsr),
        opmask_reg: words64(opmask),
        zmm_upper: words64(zmm_upper),
        hi16_zmm: words64(hi16_zmm),
        pkru: words32(pkru),
        cet: None,
    }
}

/// First of the three thread-local entries of the GDT (arch/x86/include/asm/segment.h).
const TLS_FIRST: u32 = 12;

/// The three thread-local entries of the GDT of a thread that is stopped by us. A kernel without 32-bit programs has
/// none that could be set, and does not tell: they are then marked absent.
///
/// # Errors
/// The kernel's answer, when it is another.
pub fn tls(tid: Pid) -> nix::Result<Vec<UserDescT>> {
    /// Whether the kernel has said that it has none: it is not asked of every thread.
    static HAS_NONE: AtomicBool = AtomicBool::new(false);
    let entry = |number| {
        let told = match HAS_NONE.load(Ordering::Relaxed) {
            true => Err(Errno::EIO),
            false => ptrace::thread_area(tid, number),
        };
        match told {
            Ok(desc) => Ok(tls_entry(&desc)),
            Err(Errno::EIO | Errno::ENOSYS) => {
                HAS_NONE.store(true, Ordering::Relaxed);
                Ok(tls_entry(&UserDesc { flags: TLS_ABSENT, entry_number: number, ..UserDesc::default() }))
            }
            Err(errno) => Err(errno),
        }
    };
    (TLS_FIRST..TLS_FIRST + 3).map(entry).collect()
}

/// Flags of an empty entry: read_exec_only and seg_not_present (arch/x86/kernel/tls.c, fill_user_desc).
const TLS_ABSENT: u32 = 1 << 3 | 1 << 5;

fn tls_entry(desc: &UserDesc) -> UserDescT {
    let has = |bit: u32| desc.flags & 1 << bit != 0;
    UserDescT {
        entry_number: desc.entry_number,
        base_addr: desc.base_addr,
        limit: desc.limit,
        seg_32bit: has(0),
        contents_l: has(1),
        contents_h: has(2),
        read_exec_only: has(3),
        limit_in_pages: has(4),
        seg_not_present: has(5),
        usable: has(6),
    }
}

fn words32(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect()
}

fn words64(bytes: &[u8]) -> Vec<u64> {
    bytes
        .chunks_exact(8)
        .map(|word| {
            u64::from_le_bytes([word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7]])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(bv: u64) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..2696u32).map(|at| at as u8).collect();
        bytes[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&bv.to_le_bytes());
        bytes
    }

    #[test]
    fn every_component_of_the_layout_is_sliced_and_a_bit_without_a_field_is_cleared() {
        let layout = XsaveLayout::from_offsets(&[(Component::Ymm, 576, 256), (Component::Pkru, 2688, 8)]);
        let entry = fpregs(&state(u64::MAX), &layout).unwrap();
        assert_eq!(entry.st_space.len(), 32);
        assert_eq!(entry.xmm_space.len(), 64);
        let xsave = entry.xsave.unwrap();
        assert_eq!(xsave.ymmh_space.len(), 64);
        assert_eq!(xsave.pkru.len(), 2);
        assert!(xsave.zmm_upper.is_empty());
        assert_eq!(xsave.xstate_bv, 0b111 | 1 << 9);
    }

    #[test]
    fn the_bits_of_a_segment_are_told_apart() {
        let empty = tls_entry(&UserDesc { entry_number: 13, flags: TLS_ABSENT, ..UserDesc::default() });
        assert!(empty.read_exec_only && empty.seg_not_present && !empty.usable && !empty.contents_h);
        let used = tls_entry(&UserDesc { base_addr: 7, flags: 0b101_0101, ..UserDesc::default() });
        assert!(used.seg_32bit && used.contents_h && !used.contents_l && used.limit_in_pages && used.usable);
        assert!(!used.read_exec_only && !used.seg_not_present);
    }

    #[test]
    fn a_state_without_its_header_is_refused() {
        let layout = XsaveLayout::from_offsets(&[]);
        assert_eq!(fpregs(&[0; 512], &layout), Err(CoreError::ShortState { len: 512 }));
    }
}
