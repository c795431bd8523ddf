//! What this machine's processor can do, in the words of CRIU's `cpuinfo.img` (images/cpuinfo.proto).
//!
//! The source writes it beside a dump, a page server says it in its greeting, and the two are compared before anything is
//! touched. It is what CRIU 4.2 reads itself (compel/arch/x86/src/lib/cpu.c), since a `criu restore --cpu-cap` compares
//! what it reads with the image: words of CPUID, and some bits that are decided here.

use godwit_wire::image::cpuinfo::{CpuinfoX86Entry, CpuinfoX86Vendor};

use crate::sys;

/// Words of the list in its present form ([`CAPABILITY_VER`]).
pub const CAPABILITY_WORDS: usize = 19;
/// The form of the list: 1 had the first 12 words.
pub const CAPABILITY_VER: u32 = 2;

/// Where a word of CPUID goes in the list (`enum cpuid_leafs` there; Linux 4.x had the same order in
/// arch/x86/include/asm/cpufeature.h).
pub mod word {
    /// Leaf 1, EDX.
    pub const LEAF_1_EDX: usize = 0;
    /// Leaf 0x80000001, EDX.
    pub const LEAF_8000_0001_EDX: usize = 1;
    /// Bits of Linux's own.
    pub const LINUX_1: usize = 3;
    /// Leaf 1, ECX.
    pub const LEAF_1_ECX: usize = 4;
    /// Leaf 0x80000001, ECX.
    pub const LEAF_8000_0001_ECX: usize = 6;
    /// Leaf 7, EBX.
    pub const LEAF_7_EBX: usize = 9;
    /// Leaf 0xD, subleaf 1, EAX.
    pub const LEAF_D_1_EAX: usize = 10;
    /// Leaf 7, ECX.
    pub const LEAF_7_ECX: usize = 11;
    /// Leaf 0xF, subleaf 1, EDX.
    pub const LEAF_F_1_EDX: usize = 12;
    /// Leaf 0x80000008, EBX.
    pub const LEAF_8000_0008_EBX: usize = 13;
    /// Leaf 6, EAX.
    pub const LEAF_6_EAX: usize = 14;
    /// Leaf 0x8000000A, EDX.
    pub const LEAF_8000_000A_EDX: usize = 15;
    /// Leaf 0xF, EDX.
    pub const LEAF_F_EDX: usize = 16;
    /// Leaf 0x80000007, EBX.
    pub const LEAF_8000_0007_EBX: usize = 17;
    /// Leaf 7, EDX.
    pub const LEAF_7_EDX: usize = 18;
}

/// `REP MOVS` is fast, in [`word::LINUX_1`].
const REP_GOOD: u32 = 1 << 16;
/// `NOPL`, in [`word::LINUX_1`]: every x86-64 processor.
const NOPL: u32 = 1 << 20;
/// CPUID itself, in [`word::LINUX_1`].
const CPUID: u32 = 1 << 25;
/// Fast `REP MOVSB`, in [`word::LEAF_7_EBX`].
const ERMS: u32 = 1 << 9;
/// XSAVE, in [`word::LEAF_1_ECX`].
const XSAVE: u32 = 1 << 26;
/// Cache occupancy is told, in [`word::LEAF_F_EDX`].
const CQM_LLC: u32 = 1 << 1;

/// Components of the extended state, by their bit in XCR0, with the feature that CRIU wants beside: a word and its bit.
const COMPONENTS: [(u64, usize, u32); 9] = [
    (0, word::LEAF_1_EDX, 0),  // x87: FPU
    (1, word::LEAF_1_EDX, 25), // SSE
    (2, word::LEAF_1_ECX, 28), // upper halves of YMM: AVX
    (3, word::LEAF_7_EBX, 14), // bounds: MPX
    (4, word::LEAF_7_EBX, 14), // and their configuration
    (5, word::LEAF_7_EBX, 16), // masks: AVX512F
    (6, word::LEAF_7_EBX, 16), // upper halves of ZMM0-15
    (7, word::LEAF_7_EBX, 16), // ZMM16-31
    (9, word::LEAF_7_ECX, 3),  // protection keys: PKU
];
/// Components that CRIU leaves out of its mask although it restores them: it takes the *number* of one that belongs to the
/// kernel (10) for its bit, and so clears SSE (bit 1) and the bounds (bit 3). An image that had them would be refused.
const LEFT_OUT_BY_CRIU: u64 = 0b1010;

/// What one call of CPUID answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// This machine's processor; `None` for one whose maker CRIU does not know.
pub fn probe() -> Option<CpuinfoX86Entry> {
    read(sys::cpuid)
}

/// As [`probe`], of the processor that answers so to CPUID: leaf and subleaf.
pub fn read(cpuid: impl Fn(u32, u32) -> Registers) -> Option<CpuinfoX86Entry> {
    let first = cpuid(0, 0);
    let mut maker = [0; 12];
    for (part, register) in maker.chunks_exact_mut(4).zip([first.ebx, first.edx, first.ecx]) {
        part.copy_from_slice(&register.to_le_bytes());
    }
    let vendor = match &maker {
        b"GenuineIntel" => CpuinfoX86Vendor::Intel,
        b"AuthenticAMD" | b"HygonGenuine" => CpuinfoX86Vendor::Amd,
        _ => return None,
    };
    let signature = cpuid(1, 0).eax;
    let (mut family, mut model) = (signature >> 8 & 0xf, signature >> 4 & 0xf);
    if family == 0xf {
        family += signature >> 20 & 0xff;
    }
    if family >= 6 {
        model += (signature >> 16 & 0xf) << 4;
    }
    let mut capability = words(&cpuid, first.eax);
    decide(&mut capability, vendor, family, signature, first.eax);
    let (xfeatures_mask, xsave_size, xsave_size_max) = xsave(&cpuid, &capability);
    Some(CpuinfoX86Entry {
        vendor_id: vendor.into(),
        cpu_family: family & 0xff,
        model: model & 0xff,
        stepping: signature & 0xf,
        capability_ver: CAPABILITY_VER,
        capability: capability.to_vec(),
        model_id: model_name(&cpuid),
        xfeatures_mask: Some(xfeatures_mask),
        xsave_size: Some(xsave_size),
        xsave_size_max: Some(xsave_size_max),
    })
}

/// The words that CPUID has; those behind its last leaf are 0.
fn words(cpuid: &impl Fn(u32, u32) -> Registers, last_leaf: u32) -> [u32; CAPABILITY_WORDS] {
    let mut found = [0; CAPABILITY_WORDS];
    let basic = |leaf| if last_leaf >= leaf { cpuid(leaf, 0) } else { Registers::default() };
    (found[word::LEAF_1_EDX], found[word::LEAF_1_ECX]) = (basic(1).edx, basic(1).ecx);
    found[word::LEAF_6_EAX] = basic(6).eax;
    let seven = basic(7);
    found[word::LEAF_7_EBX] = seven.ebx;
    (found[word::LEAF_7_ECX], found[word::LEAF_7_EDX]) = (seven.ecx, seven.edx);
    if last_leaf >= 0xd {
        found[word::LEAF_D_1_EAX] = cpuid(0xd, 1).eax;
    }
    found[word::LEAF_F_EDX] = basic(0xf).edx;
    if found[word::LEAF_F_EDX] & CQM_LLC != 0 {
        found[word::LEAF_F_1_EDX] = cpuid(0xf, 1).edx;
    }
    let last = cpuid(0x8000_0000, 0).eax;
    let extended = |leaf| if last >= leaf { cpuid(leaf, 0) } else { Registers::default() };
    if last & 0xffff_0000 == 0x8000_0000 {
        let one = extended(0x8000_0001);
        (found[word::LEAF_8000_0001_ECX], found[word::LEAF_8000_0001_EDX]) = (one.ecx, one.edx);
    }
    found[word::LEAF_8000_0007_EBX] = extended(0x8000_0007).ebx;
    found[word::LEAF_8000_000A_EDX] = extended(0x8000_000a).edx;
    found[word::LEAF_8000_0008_EBX] = extended(0x8000_0008).ebx;
    found
}

/// The bits that CPUID does not tell, or tells otherwise.
fn decide(
    found: &mut [u32; CAPABILITY_WORDS],
    vendor: CpuinfoX86Vendor,
    family: u32,
    signature: u32,
    last_leaf: u32,
) {
    found[word::LINUX_1] |= CPUID | NOPL;
    if last_leaf < 0xd {
        found[word::LEAF_1_ECX] &= !XSAVE;
    }
    match (vendor, family) {
        (CpuinfoX86Vendor::Intel, 15) => {
            found[word::LINUX_1] &= !REP_GOOD;
            found[word::LEAF_7_EBX] &= !ERMS;
        }
        (CpuinfoX86Vendor::Intel, 6) => found[word::LINUX_1] |= REP_GOOD,
        (CpuinfoX86Vendor::Amd, family) => {
            // An old sign of 3DNow!, which has a bit of its own.
            found[word::LEAF_1_EDX] &= !(1 << 31);
            let is_late_k8 = (0x0f48..0x0f50).contains(&signature) || signature >= 0x0f58;
            if family >= 0x10 || (family == 0xf && is_late_k8) {
                found[word::LINUX_1] |= REP_GOOD;
            }
        }
        _ => {}
    }
}

/// The mask of components, the size of the area with those that are switched on and with all that the processor has.
fn xsave(cpuid: &impl Fn(u32, u32) -> Registers, found: &[u32; CAPABILITY_WORDS]) -> (u64, u32, u32) {
    if found[word::LEAF_1_ECX] & XSAVE == 0 {
        return (0, 0, 0);
    }
    let main = cpuid(0xd, 0);
    let told = u64::from(main.eax) | u64::from(main.edx) << 32;
    let has = |word: usize, bit: u32| found[word] & 1 << bit != 0;
    let known =
        COMPONENTS.iter().filter(|(_, word, bit)| has(*word, *bit)).fold(0, |all, (n, ..)| all | 1 << n);
    (told & known & !LEFT_OUT_BY_CRIU, main.ebx, main.ecx)
}

/// The name, without the blanks that some begin with.
fn model_name(cpuid: &impl Fn(u32, u32) -> Registers) -> Option<String> {
    if cpuid(0x8000_0000, 0).eax < 0x8000_0004 {
        return None;
    }
    let mut bytes = Vec::with_capacity(48);
    for leaf in 0x8000_0002..=0x8000_0004 {
        let Registers { eax, ebx, ecx, edx } = cpuid(leaf, 0);
        [eax, ebx, ecx, edx].iter().for_each(|register| bytes.extend(register.to_le_bytes()));
    }
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text).trim_start_matches(' ').to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A made-up processor of Intel's: AVX-512 without MPX, protection keys, and tile registers.
    fn made_up(leaf: u32, sub: u32) -> Registers {
        let of = |eax, ebx, ecx, edx| Registers { eax, ebx, ecx, edx };
        let text = |at: usize| {
            let mut bytes = [0; 48];
            bytes[..15].copy_from_slice(b"   Made Up 9000");
            u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
        };
        match (leaf, sub) {
            (0, _) => of(0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),
            (1, _) => of(0x0008_06f8, 0, 1 << 26 | 1 << 27 | 1 << 28, 1 | 1 << 24 | 1 << 25),
            (7, _) => of(0, 1 << 16 | ERMS, 1 << 3, 0),
            (0xd, 0) => of(0b10_1110_0111 | 1 << 17, 2696, 11008, 0),
            (0xd, 1) => of(0xf, 0, 0, 0),
            (0x8000_0000, _) => of(0x8000_0004, 0, 0, 0),
            (0x8000_0001, _) => of(0, 0, 1 << 5, 1 << 11),
            (0x8000_0002..=0x8000_0004, _) => {
                let at = (leaf as usize - 0x8000_0002) * 16;
                of(text(at), text(at + 4), text(at + 8), text(at + 12))
            }
            _ => of(0, 0, 0, 0),
        }
    }

    #[test]
    fn words_names_and_sizes_come_from_their_leaves() {
        let found = read(made_up).unwrap();
        assert_eq!(found.vendor_id, i32::from(CpuinfoX86Vendor::Intel));
        assert_eq!((found.cpu_family, found.model, found.stepping), (6, 0x8f, 8));
        assert_eq!(found.model_id.as_deref(), Some("Made Up 9000"));
        assert_eq!(found.capability.len(), CAPABILITY_WORDS);
        assert_eq!(found.capability[word::LINUX_1], REP_GOOD | NOPL | CPUID);
        assert_eq!(found.capability[word::LEAF_7_EBX], 1 << 16 | ERMS);
        assert_eq!(found.capability[word::LEAF_D_1_EAX], 0xf);
        assert_eq!(found.capability[word::LEAF_8000_0001_ECX], 1 << 5);
        // x87, YMM, the three of AVX-512 and the keys: neither SSE, which CRIU leaves out, nor tiles.
        assert_eq!(found.xfeatures_mask, Some(0b10_1110_0101));
        assert_eq!((found.xsave_size, found.xsave_size_max), (Some(2696), Some(11008)));
    }

    #[test]
    fn leaves_behind_the_last_are_not_read() {
        let old = |leaf, sub| match leaf {
            0 => Registers { eax: 1, ..made_up(0, 0) },
            0x8000_0000 => Registers { eax: 0x8000_0001, ..Registers::default() },
            7 | 0xd => panic!("leaf {leaf} is not there"),
            _ => made_up(leaf, sub),
        };
        let found = read(old).unwrap();
        assert_eq!(found.capability[word::LEAF_7_EBX], 0);
        assert_eq!(found.capability[word::LEAF_1_ECX] & XSAVE, 0);
        assert_eq!((found.xfeatures_mask, found.xsave_size, found.model_id), (Some(0), Some(0), None));
        assert_eq!(read(|_, _| Registers::default()), None, "a maker that nobody knows");
    }

    #[test]
    fn this_machine_has_what_every_x86_64_has() {
        let Some(found) = probe() else { return };
        const SSE2: u32 = 1 << 26;
        assert_ne!(found.capability[word::LEAF_1_EDX] & SSE2, 0);
        assert!(found.xsave_size <= found.xsave_size_max, "{found:?}");
    }
}
