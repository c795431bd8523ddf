//! The bytes of the protocol, fixed: a change here is a change of the protocol (PROTOCOL.md, `wire::version`).

use bytes::Bytes;
use godwit_wire::control::{Envelope, Hello, RoundAccepted, Seal, ToClient, ToServer};
use godwit_wire::frame::{Codec, FrameHeader, Join, Kind, Payload, Secret, SessionId, pack, same_payload};
use proptest::prelude::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn header() -> FrameHeader {
    let (kind, codec) = (Kind::Zero, Codec::Raw);
    FrameHeader {
        round: 3,
        epoch: 2,
        pages_id: 1,
        first_slot: 254,
        pages: 2,
        kind,
        codec,
        length: 0,
        checksum: 0,
    }
}

#[test]
fn lane_bytes() {
    let (session_id, secret) = (SessionId(0x0123_4567_89ab_cdef), Secret([0xaa; 16]));
    let join = Join { session_id, secret, lane: 5, epoch: 2 };
    assert_eq!(
        hex(&join.encode()),
        "4744574a01000000efcdab8967452301aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa05000000020000000000000000000000"
    );
    assert_eq!(Join::decode(&join.encode()), Ok(join));
    let payload = same_payload(&[[1; 16], [2; 16]]);
    let same = FrameHeader { kind: Kind::Same, ..header() }.with_payload(Codec::Raw, &payload).unwrap();
    assert_eq!(
        hex(&same.encode()),
        "47445746030000000200000001000000fe00000000000000020000000200000020000000ab3d6d7b0000000000000000"
    );
    assert_eq!(FrameHeader::decode(&same.encode()), Ok(same));
}

#[test]
fn control_bytes() {
    let hello = Hello { versions: vec![1], features: 3, tool_version: "0.1.0".into() };
    assert_eq!(hex(&ToServer::from(hello).to_wire().unwrap()), "0e0000000a0c0a010110031a05302e312e30");
    let seal = Seal { round: 2, epoch: 1, frames: 300, manifest_size: 9 };
    assert_eq!(hex(&ToServer::from(seal).to_wire().unwrap()), "0b00000042090802100118ac022009");
    let accepted = RoundAccepted { round: 2, epoch: 1 };
    assert_eq!(hex(&ToClient::from(accepted).to_wire().unwrap()), "06000000220408021001");
}

#[test]
fn a_frame_stays_within_its_extent_and_its_length_fits_its_kind() {
    assert_eq!(header().check(), Ok(()));
    let data = |length, codec| FrameHeader { kind: Kind::Data, codec, length, ..header() };
    assert_eq!(data(8192, Codec::Raw).check(), Ok(()));
    for bad in [
        FrameHeader { pages: 3, ..header() },
        FrameHeader { pages: 0, ..header() },
        FrameHeader { first_slot: u64::MAX, pages: 1, ..header() },
        FrameHeader { length: 1, ..header() },
        FrameHeader { codec: Codec::Lz4, ..header() },
        FrameHeader { kind: Kind::Same, length: 31, ..header() },
        data(8191, Codec::Raw),
        data(8192, Codec::Lz4),
    ] {
        assert!(bad.check().is_err(), "{bad:?}");
        assert!(FrameHeader::decode(&bad.encode()).is_err());
    }
}

#[test]
fn damaged_payloads_are_noticed() {
    let pages = Bytes::from(b"godwit! ".repeat(1024));
    let (codec, payload) = pack(&pages);
    assert_eq!(codec, Codec::Lz4);
    let frame = FrameHeader { kind: Kind::Data, ..header() }.with_payload(codec, &payload).unwrap();
    assert_eq!(frame.unpack(payload.clone()), Ok(Payload::Data(pages)));
    let mut flipped = payload.to_vec();
    flipped[3] ^= 1;
    assert!(frame.unpack(flipped.clone().into()).is_err());
    // With a right checksum the lz4 block itself is checked; one page too few is noticed too.
    let forged = frame.with_payload(codec, &payload[..payload.len() - 1]).unwrap();
    assert!(forged.unpack(payload.slice(..payload.len() - 1)).is_err());
    let short = lz4_flex::block::compress(&[7; 4096]);
    let forged = frame.with_payload(Codec::Lz4, &short).unwrap();
    assert!(forged.unpack(short.into()).is_err());
}

#[test]
fn random_data_is_not_packed() {
    let mut noise = vec![0; 1 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let noise = Bytes::from(noise);
    assert_eq!(pack(&noise), (Codec::Raw, noise));
}

proptest! {
    #[test]
    fn any_header_bytes_are_a_bounded_header_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(header) = FrameHeader::decode(&bytes) {
            prop_assert!(header.length <= 1 << 20 && header.pages <= 256);
        }
        let _ = Join::decode(&bytes);
    }

    #[test]
    fn any_lz4_block_gives_the_pages_or_an_error(block in proptest::collection::vec(any::<u8>(), 1..4000)) {
        let frame = FrameHeader { kind: Kind::Data, pages: 1, ..header() };
        let frame = frame.with_payload(Codec::Lz4, &block).unwrap();
        if let Ok(Payload::Data(pages)) = frame.unpack(block.into()) {
            prop_assert_eq!(pages.len(), 4096);
        }
    }
}
