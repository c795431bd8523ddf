//! Registers of a thread on x86-64.
//!
//! Field numbers and types are those of CRIU's images/core-x86.proto.

use super::check::schema;

/// `user_x86_regs_entry` (images/core-x86.proto). General registers, `struct user_regs_struct`
/// (`NT_PRSTATUS`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct UserX86RegsEntry {
    /// Register `r15`.
    #[prost(uint64, required, tag = "1")]
    pub r15: u64,
    /// Register `r14`.
    #[prost(uint64, required, tag = "2")]
    pub r14: u64,
    /// Register `r13`.
    #[prost(uint64, required, tag = "3")]
    pub r13: u64,
    /// Register `r12`.
    #[prost(uint64, required, tag = "4")]
    pub r12: u64,
    /// Register `bp`.
    #[prost(uint64, required, tag = "5")]
    pub bp: u64,
    /// Register `bx`.
    #[prost(uint64, required, tag = "6")]
    pub bx: u64,
    /// Register `r11`.
    #[prost(uint64, required, tag = "7")]
    pub r11: u64,
    /// Register `r10`.
    #[prost(uint64, required, tag = "8")]
    pub r10: u64,
    /// Register `r9`.
    #[prost(uint64, required, tag = "9")]
    pub r9: u64,
    /// Register `r8`.
    #[prost(uint64, required, tag = "10")]
    pub r8: u64,
    /// Register `ax`.
    #[prost(uint64, required, tag = "11")]
    pub ax: u64,
    /// Register `cx`.
    #[prost(uint64, required, tag = "12")]
    pub cx: u64,
    /// Register `dx`.
    #[prost(uint64, required, tag = "13")]
    pub dx: u64,
    /// Register `si`.
    #[prost(uint64, required, tag = "14")]
    pub si: u64,
    /// Register `di`.
    #[prost(uint64, required, tag = "15")]
    pub di: u64,
    /// System call number while in a system call, else -1.
    #[prost(uint64, required, tag = "16")]
    pub orig_ax: u64,
    /// Instruction pointer.
    #[prost(uint64, required, tag = "17")]
    pub ip: u64,
    /// Register `cs`.
    #[prost(uint64, required, tag = "18")]
    pub cs: u64,
    /// `eflags`.
    #[prost(uint64, required, tag = "19")]
    pub flags: u64,
    /// Stack pointer.
    #[prost(uint64, required, tag = "20")]
    pub sp: u64,
    /// Register `ss`.
    #[prost(uint64, required, tag = "21")]
    pub ss: u64,
    /// Base address of `fs`.
    #[prost(uint64, required, tag = "22")]
    pub fs_base: u64,
    /// Base address of `gs`.
    #[prost(uint64, required, tag = "23")]
    pub gs_base: u64,
    /// Register `ds`.
    #[prost(uint64, required, tag = "24")]
    pub ds: u64,
    /// Register `es`.
    #[prost(uint64, required, tag = "25")]
    pub es: u64,
    /// Register `fs`.
    #[prost(uint64, required, tag = "26")]
    pub fs: u64,
    /// Register `gs`.
    #[prost(uint64, required, tag = "27")]
    pub gs: u64,
    /// 64-bit or 32-bit task.
    #[prost(enumeration = "UserX86RegsMode", optional, tag = "28", default = "Native")]
    pub mode: Option<i32>,
}

/// `user_x86_cet_entry` (images/core-x86.proto). Shadow stack state (`NT_X86_SHSTK`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct UserX86CetEntry {
    /// `IA32_U_CET`.
    #[prost(uint64, required, tag = "1")]
    pub cet: u64,
    /// Shadow stack pointer.
    #[prost(uint64, required, tag = "2")]
    pub ssp: u64,
}

/// `user_x86_xsave_entry` (images/core-x86.proto). Extended state beyond the FXSAVE area (`NT_X86_XSTATE`);
/// each list is empty if the CPU lacks the feature.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UserX86XsaveEntry {
    /// State components in use; a bit whose component has no member here must be cleared.
    #[prost(uint64, required, tag = "1")]
    pub xstate_bv: u64,
    /// Upper halves of ymm0-15, 64 words.
    #[prost(uint32, repeated, packed = "false", tag = "2")]
    pub ymmh_space: Vec<u32>,
    /// MPX bound registers, 8 words.
    #[prost(uint64, repeated, packed = "false", tag = "3")]
    pub bndreg_state: Vec<u64>,
    /// MPX configuration and status, 8 words.
    #[prost(uint64, repeated, packed = "false", tag = "4")]
    pub bndcsr_state: Vec<u64>,
    /// AVX-512 k0-k7, 8 words.
    #[prost(uint64, repeated, packed = "false", tag = "5")]
    pub opmask_reg: Vec<u64>,
    /// Upper halves of zmm0-15, 64 words.
    #[prost(uint64, repeated, packed = "false", tag = "6")]
    pub zmm_upper: Vec<u64>,
    /// zmm16-31, 128 words.
    #[prost(uint64, repeated, packed = "false", tag = "7")]
    pub hi16_zmm: Vec<u64>,
    /// Protection key rights, 2 words.
    #[prost(uint32, repeated, packed = "false", tag = "8")]
    pub pkru: Vec<u32>,
    /// Shadow stack state.
    #[prost(message, optional, tag = "9")]
    pub cet: Option<UserX86CetEntry>,
}

/// `user_x86_fpregs_entry` (images/core-x86.proto). The FXSAVE area and, behind it, the extended state.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UserX86FpregsEntry {
    /// x87 control word.
    #[prost(uint32, required, tag = "1")]
    pub cwd: u32,
    /// x87 status word.
    #[prost(uint32, required, tag = "2")]
    pub swd: u32,
    /// x87 abridged tag word.
    #[prost(uint32, required, tag = "3")]
    pub twd: u32,
    /// Last x87 opcode.
    #[prost(uint32, required, tag = "4")]
    pub fop: u32,
    /// Last x87 instruction address.
    #[prost(uint64, required, tag = "5")]
    pub rip: u64,
    /// Last x87 operand address.
    #[prost(uint64, required, tag = "6")]
    pub rdp: u64,
    /// SSE control and status.
    #[prost(uint32, required, tag = "7")]
    pub mxcsr: u32,
    /// Valid bits of `mxcsr`.
    #[prost(uint32, required, tag = "8")]
    pub mxcsr_mask: u32,
    /// x87 registers, 32 words.
    #[prost(uint32, repeated, packed = "false", tag = "9")]
    pub st_space: Vec<u32>,
    /// xmm0-15, 64 words.
    #[prost(uint32, repeated, packed = "false", tag = "10")]
    pub xmm_space: Vec<u32>,
    /// Unused.
    #[prost(uint32, repeated, packed = "false", tag = "11")]
    pub padding: Vec<u32>,
    /// Extended state.
    #[prost(message, optional, tag = "13")]
    pub xsave: Option<UserX86XsaveEntry>,
}

/// `user_desc_t` (images/core-x86.proto). One TLS entry of the GDT, `struct user_desc` (`man 2
/// set_thread_area`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct UserDescT {
    /// GDT slot, 12..=14.
    #[prost(uint32, required, tag = "1")]
    pub entry_number: u32,
    /// Base address.
    #[prost(uint32, required, tag = "2")]
    pub base_addr: u32,
    /// Segment limit, in bytes or pages.
    #[prost(uint32, required, tag = "3")]
    pub limit: u32,
    /// 32-bit segment.
    #[prost(bool, required, tag = "4")]
    pub seg_32bit: bool,
    /// High bit of `contents`.
    #[prost(bool, required, tag = "5")]
    pub contents_h: bool,
    /// Low bit of `contents`.
    #[prost(bool, required, tag = "6")]
    pub contents_l: bool,
    /// Not writable; true for an empty slot.
    #[prost(bool, required, tag = "7", default = "true")]
    pub read_exec_only: bool,
    /// `limit` counts pages.
    #[prost(bool, required, tag = "8")]
    pub limit_in_pages: bool,
    /// Empty slot.
    #[prost(bool, required, tag = "9", default = "true")]
    pub seg_not_present: bool,
    /// Free for the system's use.
    #[prost(bool, required, tag = "10")]
    pub usable: bool,
}

/// `thread_info_x86` (images/core-x86.proto). Registers of a thread on x86-64.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ThreadInfoX86 {
    /// Address from `set_tid_address` (`PR_GET_TID_ADDRESS`).
    #[prost(uint64, required, tag = "1")]
    pub clear_tid_addr: u64,
    /// General registers, after the fix-up of an interrupted system call.
    #[prost(message, required, tag = "2")]
    pub gpregs: UserX86RegsEntry,
    /// Floating point and vector registers.
    #[prost(message, required, tag = "3")]
    pub fpregs: UserX86FpregsEntry,
    /// GDT slots 12, 13 and 14.
    #[prost(message, repeated, tag = "4")]
    pub tls: Vec<UserDescT>,
}

/// Whether a task runs 64-bit or 32-bit code (`user_x86_regs_mode`, images/core-x86.proto).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum UserX86RegsMode {
    /// 64-bit.
    Native = 1,
    /// 32-bit.
    Compat = 2,
}

schema!(
    UserX86RegsEntry,
    "user_x86_regs_entry",
    [
        (1, "r15"),
        (2, "r14"),
        (3, "r13"),
        (4, "r12"),
        (5, "bp"),
        (6, "bx"),
        (7, "r11"),
        (8, "r10"),
        (9, "r9"),
        (10, "r8"),
        (11, "ax"),
        (12, "cx"),
        (13, "dx"),
        (14, "si"),
        (15, "di"),
        (16, "orig_ax"),
        (17, "ip"),
        (18, "cs"),
        (19, "flags"),
        (20, "sp"),
        (21, "ss"),
        (22, "fs_base"),
        (23, "gs_base"),
        (24, "ds"),
        (25, "es"),
        (26, "fs"),
        (27, "gs")
    ],
    []
);

schema!(UserX86CetEntry, "user_x86_cet_entry", [(1, "cet"), (2, "ssp")], []);

schema!(UserX86XsaveEntry, "user_x86_xsave_entry", [(1, "xstate_bv")], [(9, UserX86CetEntry)]);

schema!(
    UserX86FpregsEntry,
    "user_x86_fpregs_entry",
    [(1, "cwd"), (2, "swd"), (3, "twd"), (4, "fop"), (5, "rip"), (6, "rdp"), (7, "mxcsr"), (8, "mxcsr_mask")],
    [(13, UserX86XsaveEntry)]
);

schema!(
    UserDescT,
    "user_desc_t",
    [
        (1, "entry_number"),
        (2, "base_addr"),
        (3, "limit"),
        (4, "seg_32bit"),
        (5, "contents_h"),
        (6, "contents_l"),
        (7, "read_exec_only"),
        (8, "limit_in_pages"),
        (9, "seg_not_present"),
        (10, "usable")
    ],
    []
);

schema!(
    ThreadInfoX86,
    "thread_info_x86",
    [(1, "clear_tid_addr"), (2, "gpregs"), (3, "fpregs")],
    [(2, UserX86RegsEntry), (3, UserX86FpregsEntry), (4, UserDescT)]
);
