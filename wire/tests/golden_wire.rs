//! The bytes of the protocol, fixed: a change here is a change of the protocol (PROTOCOL.md, `wire::version`).
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use bytes::Bytes;
use godwit_wire::control::{Envelope, Hello, HelloAck, RoundAccepted, Seal, ToClient, ToServer};
use godwit_wire::frame::{
    Codec, CopyTo, FrameHeader, Join, Kind, Method, Packer, Payload, Secret, SessionId, copy_table,
    same_payload,
};
use godwit_wire::image::cpuinfo::CpuinfoX86Entry;
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

fn packed(method: Method, pages: &[u8]) -> Option<Bytes> {
    let mut room = vec![0; Packer::room_for(pages.len())];
    let length = Packer::default().pack(method, pages, &mut room)?;
    room.truncate(length);
    Some(room.into())
}

const METHODS: [Method; 4] = [Method::Lz4, Method::Zstd(-7), Method::Zstd(-1), Method::Zstd(19)];

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
    let zstd = FrameHeader { kind: Kind::Data, ..header() }.with_payload(Codec::Zstd, b"packed").unwrap();
    assert_eq!(
        hex(&zstd.encode()),
        "47445746030000000200000001000000fe0000000000000002000000000200000600000010b4f6210000000000000000"
    );
    // The hashes of two pages of the base round, then what the pages differ in: nothing, as one lz4 block.
    let zeros = [&[0x1f, 0, 1, 0][..], &[0xff; 32], &[7, 0x50], &[0; 5]].concat();
    let payload = [&[1; 16][..], &[2; 16], &zeros].concat();
    let delta = FrameHeader { kind: Kind::Delta, ..header() }.with_payload(Codec::Lz4, &payload).unwrap();
    assert_eq!(
        hex(&delta.encode()),
        "47445746030000000200000001000000fe0000000000000002000000030100004b000000786e2ad40000000000000000"
    );
    assert_eq!(FrameHeader::decode(&delta.encode()), Ok(delta));
    let (bases, difference) = (vec![[1; 16], [2; 16]], Bytes::from(vec![0; 8192]));
    assert_eq!(delta.unpack(payload.into()), Ok(Payload::Delta { bases, difference }));
    // Both pages are in slots 5 and 6 of pages file 2 too, the second in slot 255 of pages file 3.
    let copies = copies();
    let payload = [&copy_table(&copies).unwrap()[..], &zeros].concat();
    assert_eq!(
        hex(&payload[..36]),
        "02000000 00000200 02000000 0500000000000000 01000100 03000000 ff00000000000000".replace(' ', "")
    );
    let spread = FrameHeader { kind: Kind::Spread, ..header() }.with_payload(Codec::Lz4, &payload).unwrap();
    assert_eq!(
        hex(&spread.encode()),
        "47445746030000000200000001000000fe0000000000000002000000040100004f000000340512980000000000000000"
    );
    assert_eq!(FrameHeader::decode(&spread.encode()), Ok(spread));
    let pages = Bytes::from(vec![0; 8192]);
    assert_eq!(spread.unpack(payload.into()), Ok(Payload::Spread { pages, copies }));
}

fn copies() -> Vec<CopyTo> {
    let both = CopyTo { at: 0, pages: 2, pages_id: 2, first_slot: 5 };
    vec![both, CopyTo { at: 1, pages: 1, pages_id: 3, first_slot: 255 }]
}

/// A SPREAD frame of two raw pages, its table as it is or as somebody would have it.
fn spread(table: &[u8]) -> (FrameHeader, Vec<u8>) {
    let payload = [table, &[7; 8192]].concat();
    let frame = FrameHeader { kind: Kind::Spread, ..header() }.with_payload(Codec::Raw, &payload).unwrap();
    (frame, payload)
}

#[test]
fn tables_of_copies_that_lie_are_refused() {
    let (frame, payload) = spread(&copy_table(&copies()).unwrap());
    let read = frame.unpack(payload.into()).unwrap();
    assert_eq!(read, Payload::Spread { pages: vec![7; 8192].into(), copies: copies() });
    let entry = |copy: CopyTo| CopyTo { pages_id: 2, ..copy };
    let good = CopyTo { at: 0, pages: 1, pages_id: 2, first_slot: 0 };
    for bad in [
        entry(CopyTo { pages: 0, ..good }),
        entry(CopyTo { at: 2, ..good }),
        entry(CopyTo { at: 1, pages: 2, ..good }),
        entry(CopyTo { at: 65535, ..good }),
        entry(CopyTo { pages: 2, first_slot: 255, ..good }),
        entry(CopyTo { first_slot: u64::MAX, ..good }),
    ] {
        // As a peer writes it that checks nothing.
        let mut table = copy_table(&[good]).unwrap();
        table[4..6].copy_from_slice(&(bad.at as u16).to_le_bytes());
        table[6..8].copy_from_slice(&(bad.pages as u16).to_le_bytes());
        table[12..].copy_from_slice(&bad.first_slot.to_le_bytes());
        let (frame, payload) = spread(&table);
        assert!(frame.unpack(payload.into()).is_err(), "{bad:?}");
    }
    // Counts that do not fit what follows: one entry less, one more, none, and far too many.
    let table = copy_table(&copies()).unwrap();
    for count in [0, 1, 3, 4097, u32::MAX] {
        let (frame, mut payload) = spread(&table);
        payload[..4].copy_from_slice(&count.to_le_bytes());
        let frame = frame.with_payload(Codec::Raw, &payload).unwrap();
        assert!(frame.unpack(payload.into()).is_err(), "{count}");
    }
    assert!(copy_table(&[]).is_err() && copy_table(&[CopyTo { pages: 0, ..good }]).is_err());
    let many = vec![good; 4096];
    assert!(copy_table(&many).is_ok() && copy_table(&[&many[..], &[good]].concat()).is_err());
    let length = |codec, length| FrameHeader { kind: Kind::Spread, codec, length, ..header() }.check();
    let longest = 4 + 4096 * 16;
    for good in
        [length(Codec::Raw, 8212), length(Codec::Raw, longest + 8192), length(Codec::Zstd, longest + 8191)]
    {
        assert_eq!(good, Ok(()));
    }
    for (codec, bad) in
        [(Codec::Raw, 8196), (Codec::Raw, 8211), (Codec::Lz4, 20), (Codec::Raw, longest + 8208)]
    {
        assert!(length(codec, bad).is_err(), "{bad}");
    }
    assert!(length(Codec::Lz4, longest + 8192).is_err());
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
fn a_greeting_of_before_processors_were_told_is_understood() {
    let old = HelloAck { version: 1, features: 3, restore_allowed: true, ..HelloAck::default() };
    let bytes = ToClient::from(old.clone()).to_wire().unwrap();
    assert_eq!(hex(&bytes), "080000000a06080110032001");
    let cpu = CpuinfoX86Entry {
        vendor_id: 1,
        cpu_family: 6,
        capability_ver: 2,
        capability: vec![1, 2],
        ..Default::default()
    };
    let new = HelloAck { cpu: Some(Box::new(cpu)), ..old };
    let bytes = ToClient::from(new.clone()).to_wire().unwrap();
    assert_eq!(hex(&bytes), "180000000a1608011003200 13a0e080110061800200028023001 3002".replace(' ', ""));
    assert_eq!(ToClient::from_wire(&bytes[4..]), Ok(new.into()));
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
        FrameHeader { kind: Kind::Same, codec: Codec::Zstd, length: 32, ..header() },
        FrameHeader { kind: Kind::Delta, codec: Codec::Raw, length: 33, ..header() },
        FrameHeader { kind: Kind::Delta, codec: Codec::Lz4, length: 32, ..header() },
        FrameHeader { kind: Kind::Delta, codec: Codec::Zstd, length: 8192, ..header() },
        data(8191, Codec::Raw),
        data(8192, Codec::Lz4),
        data(8192, Codec::Zstd),
    ] {
        assert!(bad.check().is_err(), "{bad:?}");
        assert!(FrameHeader::decode(&bad.encode()).is_err());
    }
}

#[test]
fn damaged_payloads_are_noticed() {
    let pages = Bytes::from(b"godwit! ".repeat(1024));
    for method in METHODS {
        let (codec, payload) = (method.codec(), packed(method, &pages).unwrap());
        let frame = FrameHeader { kind: Kind::Data, ..header() }.with_payload(codec, &payload).unwrap();
        assert_eq!(frame.unpack(payload.clone()), Ok(Payload::Data(pages.clone())));
        let mut flipped = payload.to_vec();
        flipped[3] ^= 1;
        assert!(frame.unpack(flipped.clone().into()).is_err());
        // With a right checksum the packed pages themselves are checked; one page too few or too many is noticed too.
        let forged = frame.with_payload(codec, &payload[..payload.len() - 1]).unwrap();
        assert!(forged.unpack(payload.slice(..payload.len() - 1)).is_err());
        for other in [4096, 12288] {
            let other = packed(method, &vec![7; other]).unwrap();
            let forged = frame.with_payload(codec, &other).unwrap();
            assert!(forged.unpack(other).is_err(), "{method:?}");
        }
        let mut room = vec![0; 4096];
        assert!(frame.unpack_into(&payload, &mut room).is_err(), "room for one page is none for two");
    }
}

#[test]
fn random_data_is_not_packed_and_soon_not_tried() {
    let mut noise = vec![0; 1 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    assert!(METHODS.iter().all(|method| packed(*method, &noise).is_none()));
    let (mut packer, mut room) = (Packer::default(), vec![0; Packer::room_for(8192)]);
    (0..9).for_each(|_| assert_eq!(packer.pack(Method::Lz4, &noise[..4096], &mut room), None));
    let text = b"godwit! ".repeat(512);
    let packed: Vec<bool> = (0..16).map(|_| packer.pack(Method::Lz4, &text, &mut room).is_some()).collect();
    let first = packed.iter().position(|packed| *packed).unwrap();
    assert!((1..8).contains(&first), "{packed:?}");
    assert!(packed[first..].iter().all(|packed| *packed), "one that shrinks and all are tried again");
}

#[test]
fn a_page_that_does_not_shrink_does_not_keep_the_others_from_it() {
    let mut pages = b"godwit! ".repeat(1 << 17);
    blake3::Hasher::new().finalize_xof().fill(&mut pages[..4096]);
    assert!(METHODS.iter().all(|method| packed(*method, &pages).is_some()));
}

proptest! {
    /// As a peer may send it: whatever is read is within the frame and within extents.
    #[test]
    fn any_table_of_copies_is_bounded_or_an_error(
        entries in proptest::collection::vec((0u16..5, 0u16..4, any::<u32>(), 0u64..600), 0..6),
        count in proptest::option::of(0u32..8),
        cut in 0usize..40,
        is_packed in any::<bool>(),
    ) {
        let mut table = (count.unwrap_or(entries.len() as u32)).to_le_bytes().to_vec();
        for (at, pages, pages_id, first_slot) in &entries {
            table.extend([&at.to_le_bytes()[..], &pages.to_le_bytes(), &pages_id.to_le_bytes()].concat());
            table.extend(first_slot.to_le_bytes());
        }
        let pages = vec![7; 8192];
        let codec = if is_packed { Codec::Lz4 } else { Codec::Raw };
        let pages = if is_packed { packed(Method::Lz4, &pages).unwrap() } else { pages.into() };
        let payload = [&table[..], &pages].concat();
        let payload = &payload[..payload.len().saturating_sub(cut.saturating_sub(30))];
        let frame = FrameHeader { kind: Kind::Spread, ..header() };
        let Ok(frame) = frame.with_payload(codec, payload) else { return Ok(()) };
        if let Ok(Payload::Spread { pages, copies }) = frame.unpack(payload.to_vec().into()) {
            prop_assert_eq!(pages, vec![7; 8192]);
            prop_assert_eq!(copies.len(), entries.len());
            for copy in copies {
                prop_assert!(copy.pages > 0 && copy.at + copy.pages <= 2);
                prop_assert!(copy.first_slot % 256 + u64::from(copy.pages) <= 256);
            }
        }
    }

    #[test]
    fn any_header_bytes_are_a_bounded_header_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(header) = FrameHeader::decode(&bytes) {
            let table = if header.kind == Kind::Spread { 4 + 4096 * 16 } else { 0 };
            prop_assert!(header.length <= (1 << 20) + table && header.pages <= 256);
        }
        let _ = Join::decode(&bytes);
    }

    #[test]
    fn any_packed_payload_gives_the_pages_or_an_error(
        mut block in proptest::collection::vec(any::<u8>(), 20..4000),
        (kind, codec, is_framed) in (0usize..2, 0usize..2, any::<bool>()),
    ) {
        let kind = [Kind::Data, Kind::Delta][kind];
        let codec = [Codec::Lz4, Codec::Zstd][codec];
        // The first bytes of a zstd frame, which a random block never has.
        let at = if kind == Kind::Delta { 16 } else { 0 };
        if is_framed && block.len() > at + 4 {
            block[at..at + 4].copy_from_slice(&[0x28, 0xb5, 0x2f, 0xfd]);
        }
        let frame = FrameHeader { kind, pages: 1, ..header() };
        let frame = frame.with_payload(codec, &block).unwrap();
        match frame.unpack(block.into()) {
            Ok(Payload::Data(pages)) => prop_assert_eq!(pages.len(), 4096),
            Ok(Payload::Delta { bases, difference }) => {
                prop_assert_eq!((bases.len(), difference.len()), (1, 4096));
            }
            Ok(other) => prop_assert!(false, "{:?}", other),
            Err(_) => {}
        }
    }

    #[test]
    fn what_was_packed_comes_back(
        words in proptest::collection::vec(0u8..4, 1..200),
        pages in 1u32..40,
        method in 0usize..4,
    ) {
        let method = METHODS[method];
        let bytes: Vec<u8> = words.iter().copied().cycle().take(pages as usize * 4096).collect();
        let mut room = vec![0; Packer::room_for(bytes.len())];
        let length = Packer::default().pack_any(method, &bytes, &mut room).unwrap();
        let frame = FrameHeader { kind: Kind::Data, first_slot: 0, pages, ..header() };
        let frame = frame.with_payload(method.codec(), &room[..length]).unwrap();
        let mut back = vec![9; bytes.len()];
        frame.verify(&room[..length]).unwrap();
        frame.unpack_into(&room[..length], &mut back).unwrap();
        prop_assert_eq!(back, bytes);
    }
}
