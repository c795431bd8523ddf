//! Versions and feature bits: the client offers, the server selects or refuses by name; nothing is ignored.

use crate::error::Code;

/// ALPN identifier (RFC 7301) of this protocol.
pub const ALPN: &[u8] = b"godwit/1";

/// Protocol versions that this build speaks.
pub const VERSIONS: &[u32] = &[1];

/// Feature bit: frames may be compressed by lz4.
pub const FEATURE_LZ4: u64 = 1 << 0;
/// Feature bit: frames may say that pages are the same as in the base round.
pub const FEATURE_SAME: u64 = 1 << 1;
/// Feature bit: frames may be compressed by zstd.
pub const FEATURE_ZSTD: u64 = 1 << 2;
/// Feature bit: frames may say what pages differ in from those of the base round.
pub const FEATURE_DELTA: u64 = 1 << 3;
/// Feature bit: frames may fill further slots of the round, of other pages files too.
pub const FEATURE_SPREAD: u64 = 1 << 4;

/// Every feature bit that this build knows.
pub const FEATURES: u64 = FEATURE_LZ4 | FEATURE_SAME | FEATURE_ZSTD | FEATURE_DELTA | FEATURE_SPREAD;

/// What both sides agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Protocol version.
    pub version: u32,
    /// Feature bits in use.
    pub features: u64,
}

/// Why there is no agreement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Disagreed {
    /// No version in common.
    #[error(
        "the client offers protocol versions {offered:?}, this server speaks {spoken:?}: install the same release of godwit on both sides"
    )]
    Version {
        /// As offered.
        offered: Vec<u32>,
        /// What this side speaks.
        spoken: Vec<u32>,
    },
    /// Bits that this side does not know.
    #[error(
        "the client asks for features {unknown:#x} that this server does not know (it knows {known:#x}): install the same release of godwit on both sides, or turn them off"
    )]
    Features {
        /// The unknown bits.
        unknown: u64,
        /// The known ones.
        known: u64,
    },
}

impl Disagreed {
    /// The code that travels.
    pub fn code(&self) -> Code {
        match self {
            Disagreed::Version { .. } => Code::Version,
            Disagreed::Features { .. } => Code::Feature,
        }
    }
}

/// The server's side: the highest common version, and the offered features.
///
/// # Errors
/// [`Disagreed`] when no version is common or a feature bit is unknown.
pub fn select(offered: &[u32], features: u64) -> Result<Agreed, Disagreed> {
    let common = offered.iter().copied().filter(|version| VERSIONS.contains(version)).max();
    let Some(version) = common else {
        return Err(Disagreed::Version { offered: offered.to_vec(), spoken: VERSIONS.to_vec() });
    };
    match features & !FEATURES {
        0 => Ok(Agreed { version, features }),
        unknown => Err(Disagreed::Features { unknown, known: FEATURES }),
    }
}

/// The client's side: whether the server's selection is one that was offered.
pub fn was_offered(version: u32, features: u64, offered: &[u32], offered_features: u64) -> bool {
    offered.contains(&version) && features & !offered_features == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn highest_common_version_wins_and_unknown_bits_are_refused() {
        assert_eq!(select(&[1, 7], FEATURE_SAME), Ok(Agreed { version: 1, features: FEATURE_SAME }));
        assert!(matches!(select(&[2, 3], 0), Err(Disagreed::Version { .. })));
        assert!(matches!(select(&[], 0), Err(Disagreed::Version { .. })));
        assert_eq!(
            select(&[1], FEATURE_LZ4 | 1 << 40),
            Err(Disagreed::Features { unknown: 1 << 40, known: FEATURES })
        );
    }

    #[test]
    fn a_selection_that_was_not_offered_is_noticed() {
        assert!(was_offered(1, 0, &[1], FEATURE_LZ4));
        assert!(!was_offered(2, 0, &[1], FEATURE_LZ4));
        assert!(!was_offered(1, FEATURE_SAME, &[1], FEATURE_LZ4));
    }
}
