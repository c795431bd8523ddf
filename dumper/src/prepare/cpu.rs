//! The processor: where each component of the extended state lies in an XSAVE area.

use std::collections::BTreeMap;

use crate::error::DumpError;
use crate::sys;

/// A component of the extended state that the image format can hold, by its bit in XCR0 (Intel SDM vol. 1,
/// 13.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// Upper halves of YMM0-15.
    Ymm = 2,
    /// MPX bound registers.
    BndRegs = 3,
    /// MPX configuration.
    BndCsr = 4,
    /// AVX-512 mask registers.
    Opmask = 5,
    /// Upper halves of ZMM0-15.
    ZmmHi256 = 6,
    /// ZMM16-31.
    Hi16Zmm = 7,
    /// Protection key rights.
    Pkru = 9,
}

impl Component {
    const ALL: [Component; 7] = [
        Component::Ymm,
        Component::BndRegs,
        Component::BndCsr,
        Component::Opmask,
        Component::ZmmHi256,
        Component::Hi16Zmm,
        Component::Pkru,
    ];

    /// Bytes that the image format has for it: the length of its repeated field in images/core-x86.proto as
    /// restore expects it.
    fn image_len(self) -> usize {
        match self {
            Component::Ymm => 256,
            Component::BndRegs | Component::BndCsr | Component::Opmask => 64,
            Component::ZmmHi256 => 512,
            Component::Hi16Zmm => 1024,
            Component::Pkru => 8,
        }
    }
}

/// AMX tile data: state that the image format has no field for.
const XFEATURE_XTILEDATA: u64 = 1 << 18;

/// Offsets and sizes of the components that this processor and kernel have enabled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XsaveLayout {
    areas: BTreeMap<Component, (usize, usize)>,
}

impl XsaveLayout {
    /// Asks the processor (CPUID leaf 0xD, Intel SDM vol. 2A).
    ///
    /// # Errors
    /// Never.
    pub fn probe() -> Result<XsaveLayout, DumpError> {
        let areas = sys::cpuid::xsave_components()
            .iter()
            .filter_map(|found| {
                let component = Component::ALL.into_iter().find(|known| *known as u32 == found.bit)?;
                Some((component, (found.offset as usize, found.size as usize)))
            })
            .collect();
        Ok(XsaveLayout { areas })
    }

    /// Notes components that this machine has and the image format lacks. Whether a thread uses one is seen in its
    /// state ([`holds_tile_data`]).
    ///
    /// # Errors
    /// Never.
    pub fn warn_of_unknown(&self) -> Result<(), DumpError> {
        let known = |bit: u32| Component::ALL.iter().any(|component| *component as u32 == bit);
        for found in sys::cpuid::xsave_components() {
            if !known(found.bit) {
                tracing::debug!(
                    component = found.bit,
                    "the image format has no field for this processor state"
                );
            }
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn from_offsets(offsets: &[(Component, usize, usize)]) -> XsaveLayout {
        XsaveLayout { areas: offsets.iter().map(|&(c, offset, size)| (c, (offset, size))).collect() }
    }

    /// The bytes of a component in an area in standard layout, as long as the image format's field;
    /// `None` if the processor lacks it or the area ends before.
    pub fn slice<'a>(&self, component: Component, xstate: &'a [u8]) -> Option<&'a [u8]> {
        let &(offset, size) = self.areas.get(&component)?;
        xstate.get(offset..offset + size.min(component.image_len()))
    }
}

/// Whether the state has a component in use that the format cannot hold: AMX tile data.
pub fn holds_tile_data(xstate: &[u8]) -> bool {
    xstate
        .get(512..520)
        .and_then(|word| word.try_into().ok())
        .is_some_and(|word| u64::from_le_bytes(word) & XFEATURE_XTILEDATA != 0)
}
