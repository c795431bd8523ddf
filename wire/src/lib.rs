//! Every byte layout that godwit's two programs must agree on: the wire protocol, CRIU's images, the journals.
//!
//! The wire, as a sequence (the bytes are in `PROTOCOL.md`):
//! ```text
//! dumper                                        page server
//!   Hello{versions, features}             ───►
//!                                         ◄───  HelloAck{version, features} | Refused
//!   OpenSession{name, want_restore}       ───►
//!                                         ◄───  SessionOpened{id, secret, epoch} | Refused
//!   ┌ a round, as often as wanted; the last one is the final set
//!   │ RoundBegin PlanChunk* PlanEnd       ───►
//!   │                                     ◄───  RoundAccepted{epoch} | RoundFailed
//!   │ frames on lanes, Image ImageChunk*  ───►
//!   │ Seal | Prepare, ManifestChunk*      ───►
//!   └                                     ◄───  RoundSealed | Prepared | Resend{epoch} | RoundFailed
//!   Restore                               ───►
//!                                         ◄───  Restored (held) | RestoreFailed
//!   Commit{token}                         ───►
//!                                         ◄───  Done | Failed
//! ```
//! **Version rule.** The client offers versions and feature bits, the server selects or refuses by name; unknown bits
//! and unknown messages are refused, never ignored. What an old peer would misread is a new version; what it can do
//! without is a feature bit.
//!
//! Reading order: [`version`], [`control`], [`frame`], [`payload`] and [`copies`] (the messages), [`session`] (their order), [`quic`] (how
//! they travel); [`plan`] (the page list that both sides share), [`image`], [`journal`]; [`error`], [`codec`] and
//! [`fault`] serve them all.
#![forbid(unsafe_code)]

pub mod codec;
pub mod control;
pub mod copies;
pub mod error;
pub mod fault;
pub mod frame;
pub mod image;
pub mod journal;
pub mod payload;
pub mod plan;
pub mod quic;
pub mod session;
pub mod version;
