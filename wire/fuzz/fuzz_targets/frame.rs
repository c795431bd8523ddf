//! Join messages, frame headers and payloads: bounded, and what is read is what would be written.
#![no_main]

use godwit_wire::frame::{COPIES_MAX, FRAME_MAGIC, FrameHeader, HEADER_LEN, JOIN_MAGIC, Join, LANE_VERSION, Payload};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if bytes.len() < HEADER_LEN {
        assert!(Join::decode(bytes).is_err() && FrameHeader::decode(bytes).is_err());
        return;
    }
    // Fixed values, the length and the checksum are put right: a fuzzer cannot guess them, and the code behind
    // them is the subject.
    let mut join = bytes.to_vec();
    join[..4].copy_from_slice(&JOIN_MAGIC.to_le_bytes());
    join[4..6].copy_from_slice(&LANE_VERSION.to_le_bytes());
    if let Ok(read) = Join::decode(&join) {
        assert_eq!(read.encode(), join[..read.encode().len()]);
    }
    let mut frame = bytes.to_vec();
    frame[..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
    frame[30..32].fill(0);
    frame[40..48].fill(0);
    let payload = frame.split_off(HEADER_LEN);
    frame[28] %= 6;
    frame[29] %= 4;
    frame[32..36].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    let Ok(header) = FrameHeader::decode(&frame) else { return };
    assert_eq!(header.encode(), frame[..]);
    let Ok(header) = header.with_payload(header.codec, &payload) else { return };
    let (pages, whole) = (header.pages as usize, header.pages as usize * 4096);
    match header.unpack(payload.into()) {
        Ok(Payload::Data(bytes)) => assert_eq!(bytes.len(), whole),
        Ok(Payload::Delta { bases, difference }) => assert_eq!((bases.len(), difference.len()), (pages, whole)),
        Ok(Payload::Spread { pages: bytes, copies }) => {
            assert_eq!(bytes.len(), whole);
            assert!((1..=COPIES_MAX).contains(&copies.len()));
            assert!(copies.iter().all(|copy| copy.pages > 0 && (copy.at + copy.pages) as usize <= pages));
            assert!(copies.iter().all(|copy| copy.first_slot % 256 + u64::from(copy.pages) <= 256));
        }
        Ok(Payload::Same(hashes)) => assert_eq!(hashes.len(), pages),
        Ok(Payload::Zero) | Err(_) => {}
    }
});
