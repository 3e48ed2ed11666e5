//! Bytes of one connection: however reads cut them, the same packets come out, and the same error at the same place.
//!
//! An input is: a choice (version, side), the number of cuts, the cuts, the bytes.

use bytes::BytesMut;
use tributary_shared::mqtt::{Malformed, Packet, Reader};

use crate::{
    codec::{Side, connected, returns},
    input::Input,
};

/// What a packet may be here; small, so that inputs reach it.
const MAXIMUM: usize = 300;

/// Reads the bytes whole, in pieces, and one by one.
pub fn cut(data: &[u8]) {
    let mut input = Input(data);
    let choice = input.byte();
    let mut side = Side::choose(choice);
    let first = choice & 8 != 0 && side.server;
    let cuts: Vec<usize> = (0..input.below(8)).map(|_| usize::from(input.byte())).collect();
    let bytes = input.0;
    let reader = || {
        let mut reader = match (side.server, first) {
            (true, true) => Reader::server(MAXIMUM),
            (true, false) => connected(side.version),
            (false, _) => Reader::client(side.version, MAXIMUM),
        };
        reader.set_maximum(MAXIMUM);
        reader
    };
    let mut one = reader();
    let whole = read(&mut one, bytes, &[usize::MAX]);
    assert_eq!(read(&mut reader(), bytes, &[1]), whole, "byte by byte");
    if !cuts.is_empty() {
        assert_eq!(read(&mut reader(), bytes, &cuts), whole, "cut at {cuts:?}");
    }
    side.version = one.version().unwrap_or(side.version);
    for packet in &whole.0 {
        let kind = if matches!(packet, Packet::Connect(_)) { 1 } else { 14 };
        if kind == 14 || first {
            returns(packet, kind, side, 7);
        }
    }
}

/// Packets until the end, an error, or an unfinished one.
fn read(reader: &mut Reader, mut bytes: &[u8], cuts: &[usize]) -> (Vec<Packet>, Option<Malformed>) {
    let mut packets = Vec::new();
    let mut buffer = BytesMut::new();
    for cut in cuts.iter().cycle().take(bytes.len() + cuts.len()) {
        let (piece, rest) = bytes.split_at((*cut).clamp(1, bytes.len().max(1)).min(bytes.len()));
        bytes = rest;
        buffer.extend_from_slice(piece);
        loop {
            let before = buffer.len();
            match reader.read(&mut buffer) {
                Ok(Some(packet)) => {
                    assert!(before - buffer.len() >= 2, "a packet has a header");
                    assert!(before - buffer.len() <= MAXIMUM, "the limit is kept");
                    packets.push(packet);
                }
                Ok(None) => {
                    assert!(buffer.len() <= MAXIMUM, "a packet that is too large is refused early");
                    break;
                }
                Err(malformed) => return (packets, Some(malformed)),
            }
        }
    }
    (packets, None)
}
