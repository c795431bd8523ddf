//! A manifest that can be read is valid, and is the same when it is written and read again. The end record is put
//! right here, or no input would get past the hash.
#![no_main]

use godwit_wire::image::{ImageKind, ImageWriter, Manifest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut file = ImageWriter::new(ImageKind::Manifest);
    file.raw(bytes);
    let body = file.finish().expect("raw bytes are never oversized");
    let _ = Manifest::decode(&body);
    let hash = *blake3::hash(&body).as_bytes();
    let end = [&[36, 0, 0, 0, 0x22, 34, 0x0a, 32], &hash[..]].concat();
    let Ok(manifest) = Manifest::decode(&[&body[..], &end].concat()) else { return };
    manifest.validate().expect("what was read is valid");
    let again = manifest.encode().expect("a valid manifest can be written");
    assert!(Manifest::decode(&again).expect("what was written can be read") == manifest);
});
