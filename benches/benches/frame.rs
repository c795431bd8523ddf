//! Frames: headers, checksums, packing and unpacking, by kind of content.

use std::time::Duration;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use godwit_benches::workload::{Content, fill};
use godwit_wire::frame::{Codec, FrameHeader, Kind, Method, Packer};
use godwit_wire::plan::{EXTENT_SLOTS, PAGE_SIZE};

const EXTENT_LEN: usize = (EXTENT_SLOTS * PAGE_SIZE) as usize;
const CONTENTS: [Content; 3] = [Content::Random, Content::Text, Content::ZeroHeavy];
const ZSTD: Method = Method::Zstd(-1);

fn main() {
    divan::Divan::default().max_time(Duration::from_millis(300)).config_with_args().main();
}

fn header() -> FrameHeader {
    FrameHeader {
        round: 3,
        epoch: 1,
        pages_id: 1,
        first_slot: 7 * EXTENT_SLOTS,
        pages: EXTENT_SLOTS as u32,
        kind: Kind::Data,
        codec: Codec::Raw,
        length: EXTENT_LEN as u32,
        checksum: 0x1234_5678,
    }
}

fn extent(content: Content) -> Vec<u8> {
    let mut memory = vec![0; EXTENT_LEN];
    fill(content, &mut memory);
    memory
}

#[divan::bench]
fn encode_header(bencher: Bencher<'_, '_>) {
    let header = header();
    bencher.counter(ItemsCount::new(1usize)).bench(|| divan::black_box(&header).encode());
}

#[divan::bench]
fn decode_header(bencher: Bencher<'_, '_>) {
    let bytes = header().encode();
    bencher.counter(ItemsCount::new(1usize)).bench(|| FrameHeader::decode(divan::black_box(&bytes)));
}

#[divan::bench]
fn header_with_checksum_of_an_extent(bencher: Bencher<'_, '_>) {
    let payload = extent(Content::Random);
    bencher
        .counter(BytesCount::new(EXTENT_LEN))
        .bench(|| header().with_payload(Codec::Raw, divan::black_box(&payload)));
}

#[divan::bench(args = CONTENTS)]
fn pack_lz4(bencher: Bencher<'_, '_>, content: Content) {
    pack(bencher, Method::Lz4, content);
}

#[divan::bench(args = CONTENTS)]
fn pack_zstd(bencher: Bencher<'_, '_>, content: Content) {
    pack(bencher, ZSTD, content);
}

#[divan::bench(args = [Content::Text, Content::ZeroHeavy])]
fn unpack_lz4(bencher: Bencher<'_, '_>, content: Content) {
    unpack(bencher, Method::Lz4, content);
}

#[divan::bench(args = [Content::Text, Content::ZeroHeavy])]
fn unpack_zstd(bencher: Bencher<'_, '_>, content: Content) {
    unpack(bencher, ZSTD, content);
}

fn pack(bencher: Bencher<'_, '_>, method: Method, content: Content) {
    let block = extent(content);
    let mut packer = Packer::default();
    let mut room = vec![0; Packer::room_for(EXTENT_LEN)];
    bencher
        .counter(BytesCount::new(EXTENT_LEN))
        .bench_local(|| packer.pack(method, divan::black_box(&block), &mut room));
}

fn unpack(bencher: Bencher<'_, '_>, method: Method, content: Content) {
    let block = extent(content);
    let mut room = vec![0; Packer::room_for(EXTENT_LEN)];
    let packed = Packer::default().pack_any(method, &block, &mut room).expect("an extent that packs");
    room.truncate(packed);
    let header = header().with_payload(method.codec(), &room).expect("a payload that shrank");
    let mut pages = vec![0; EXTENT_LEN];
    bencher
        .counter(BytesCount::new(EXTENT_LEN))
        .bench_local(|| header.unpack_into(divan::black_box(&room), &mut pages));
}
