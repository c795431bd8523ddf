//! The layout of the XSAVE area in its standard form (CPUID leaf 0xD, Intel SDM volume 1 chapter 13).

use std::arch::x86_64::__cpuid_count;
use std::sync::LazyLock;

/// Where the state of one feature lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Component {
    /// Bit in XCR0 and in the area's XSTATE_BV: 2 AVX, 5 opmask, 6 ZMM_Hi256, 7 Hi16_ZMM, 9 PKRU, 17-18 AMX.
    pub bit: u32,
    /// Offset from the start of the area, in bytes; at least 576.
    pub offset: u32,
    /// Length in bytes.
    pub size: u32,
}

/// The components of this machine's XSAVE area beyond the legacy region, by rising bit; empty without XSAVE.
///
/// Read once: in a virtual machine each CPUID instruction is an exit to the hypervisor.
pub fn xsave_components() -> &'static [Component] {
    static COMPONENTS: LazyLock<Vec<Component>> = LazyLock::new(read_xsave_components);
    &COMPONENTS
}

fn read_xsave_components() -> Vec<Component> {
    const LEAF_FEATURES: u32 = 1;
    const LEAF_XSAVE: u32 = 0xd;
    const OSXSAVE: u32 = 1 << 27;
    let cpuid = |leaf, sub| {
        #[allow(unused_unsafe, reason = "safe from Rust 1.94 on, unsafe in the oldest supported compiler")]
        // SAFETY: every x86-64 processor has CPUID; an unknown leaf answers zeros or the last known one.
        unsafe {
            __cpuid_count(leaf, sub)
        }
    };
    if cpuid(0, 0).eax < LEAF_XSAVE || cpuid(LEAF_FEATURES, 0).ecx & OSXSAVE == 0 {
        return Vec::new();
    }
    let main = cpuid(LEAF_XSAVE, 0);
    let user_features = u64::from(main.eax) | u64::from(main.edx) << 32;
    (2..63)
        .filter(|bit| user_features & (1 << bit) != 0)
        .map(|bit| {
            let leaf = cpuid(LEAF_XSAVE, bit);
            Component { bit, offset: leaf.ebx, size: leaf.eax }
        })
        .filter(|component| component.size != 0)
        .collect()
}
