//! Join messages, frame headers and payloads: bounded, and what is read is what would be written.
#![no_main]

use godwit_wire::frame::{FrameHeader, HEADER_LEN, Join, Payload};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(join) = Join::decode(bytes) {
        assert_eq!(join.encode(), bytes[..join.encode().len()]);
    }
    let Ok(header) = FrameHeader::decode(bytes) else { return };
    assert_eq!(header.encode(), bytes[..HEADER_LEN]);
    let payload = bytes[HEADER_LEN..].to_vec();
    // The checksum is put right: a fuzzer cannot guess it, and the code behind it is the subject.
    let Ok(header) = header.with_payload(header.codec, &payload) else { return };
    if let Ok(Payload::Data(pages)) = header.unpack(payload.into()) {
        assert_eq!(pages.len(), header.pages as usize * 4096);
    }
});
