//! The compressions of Kafka record batches: what is read from any client, what we write.
//!
//! Holds: the codecs, each with an output limit that is kept while unpacking, so that a bomb stops at the limit.
//! No length that a peer wrote is allocated before it is checked. Not here: the batch around it (`batch`).

use std::{
    cell::RefCell,
    io::{self, Read, Write},
};

use super::BatchError;

/// Attribute bits 0 to 2 of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(i16)]
pub enum Compression {
    None = 0,
    Gzip = 1,
    /// Xerial-framed, as Java writes it; raw blocks are read too.
    Snappy = 2,
    /// Frame format.
    Lz4 = 3,
    Zstd = 4,
}

/// The quickest real level: 7.8x on telemetry, and gateways are slow.
const ZSTD_LEVEL: i32 = 1;
/// The window every zstd stream may ask for, as a power of two: 8 MiB, what the format tells readers to support. A frame may
/// name up to 2 GiB, and that much would be allocated before a byte comes out; it may have more only where the limit of what
/// is unpacked is higher too.
const ZSTD_WINDOW: u32 = 23;
/// The most that zstd itself takes unasked.
const ZSTD_WINDOW_MAX: u32 = 27;
/// What Java's snappy stream opens with.
const XERIAL_MAGIC: &[u8] = b"\x82SNAPPY\0";
/// Then: version 1, compatible with 1.
const XERIAL_VERSION: [u8; 8] = [0, 0, 0, 1, 0, 0, 0, 1];
/// Bytes of a Xerial block before compression, as Java cuts them.
const XERIAL_BLOCK: usize = 32 * 1024;
/// The most a snappy byte can stand for: a copy of 64 bytes takes three.
const SNAPPY_RATIO_MAX: usize = 22;

impl Compression {
    /// From the attributes of a batch.
    pub fn from_attributes(attributes: i16) -> Result<Self, BatchError> {
        match attributes & 0x07 {
            0 => Ok(Self::None),
            1 => Ok(Self::Gzip),
            2 => Ok(Self::Snappy),
            3 => Ok(Self::Lz4),
            4 => Ok(Self::Zstd),
            other => Err(BatchError::UnknownCompression(other)),
        }
    }

    /// Unpacks `packed` into at most `limit` bytes; stops and fails with [`BatchError::TooLarge`] as soon as there are more.
    pub(super) fn unpack(self, packed: &[u8], limit: usize) -> Result<Vec<u8>, BatchError> {
        match self {
            Self::None => Ok(packed.to_vec()),
            Self::Gzip => drain(flate2::read::MultiGzDecoder::new(packed), limit),
            Self::Snappy => unpack_snappy(packed, limit),
            Self::Lz4 => drain(lz4_flex::frame::FrameDecoder::new(packed), limit),
            Self::Zstd => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(packed).map_err(failed)?;
                let window = limit.max(1).ilog2().clamp(ZSTD_WINDOW, ZSTD_WINDOW_MAX);
                decoder.window_log_max(window).map_err(failed)?;
                drain(decoder, limit)
            }
        }
    }

    /// Appends `plain`, packed, to `out`.
    pub(super) fn pack(self, plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::None => out.extend_from_slice(plain),
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::fast());
                encoder.write_all(plain)?;
                encoder.finish()?;
            }
            Self::Snappy => pack_snappy(plain, out)?,
            Self::Lz4 => {
                let mut encoder = lz4_flex::frame::FrameEncoder::new(out);
                encoder.write_all(plain)?;
                encoder.finish().map_err(io::Error::other)?;
            }
            Self::Zstd => out.extend_from_slice(&pack_zstd(plain)?),
        }
        Ok(())
    }
}

fn failed(error: impl std::fmt::Display) -> BatchError {
    BatchError::Decompress(error.to_string())
}

/// Reads to the end, growing as bytes come.
fn drain(reader: impl Read, limit: usize) -> Result<Vec<u8>, BatchError> {
    let mut plain = Vec::new();
    reader.take((limit as u64).saturating_add(1)).read_to_end(&mut plain).map_err(failed)?;
    if plain.len() > limit { Err(BatchError::TooLarge(limit)) } else { Ok(plain) }
}

/// Xerial blocks if the head says so, else one raw block (librdkafka, older clients).
fn unpack_snappy(packed: &[u8], limit: usize) -> Result<Vec<u8>, BatchError> {
    let mut plain = Vec::new();
    let Some(mut rest) =
        packed.strip_prefix(XERIAL_MAGIC).and_then(|r| r.get(XERIAL_VERSION.len()..))
    else {
        unpack_snappy_block(packed, limit, &mut plain)?;
        return Ok(plain);
    };
    while !rest.is_empty() {
        let (head, after) = rest.split_first_chunk().ok_or_else(|| failed("block cut short"))?;
        let length = u32::from_be_bytes(*head) as usize;
        let (block, after) =
            after.split_at_checked(length).ok_or_else(|| failed("block cut short"))?;
        unpack_snappy_block(block, limit, &mut plain)?;
        rest = after;
    }
    Ok(plain)
}

fn unpack_snappy_block(block: &[u8], limit: usize, plain: &mut Vec<u8>) -> Result<(), BatchError> {
    let length = snap::raw::decompress_len(block).map_err(failed)?;
    if length > block.len().saturating_mul(SNAPPY_RATIO_MAX) {
        return Err(failed("block length is more than its bytes can stand for"));
    }
    if length > limit.saturating_sub(plain.len()) {
        return Err(BatchError::TooLarge(limit));
    }
    let block = snap::raw::Decoder::new().decompress_vec(block).map_err(failed)?;
    plain.extend_from_slice(&block);
    Ok(())
}

fn pack_snappy(plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    out.extend_from_slice(XERIAL_MAGIC);
    out.extend_from_slice(&XERIAL_VERSION);
    let mut encoder = snap::raw::Encoder::new();
    for chunk in plain.chunks(XERIAL_BLOCK) {
        let block = encoder.compress_vec(chunk)?;
        out.extend_from_slice(&(block.len() as u32).to_be_bytes());
        out.extend_from_slice(&block);
    }
    Ok(())
}

thread_local! {
    /// Setting up a zstd context costs more than compressing a small batch.
    static ZSTD: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
}

fn pack_zstd(plain: &[u8]) -> io::Result<Vec<u8>> {
    ZSTD.with_borrow_mut(|slot| {
        let compressor = match slot {
            Some(compressor) => compressor,
            None => slot.insert(zstd::bulk::Compressor::new(ZSTD_LEVEL)?),
        };
        compressor.compress(plain)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Compression; 5] = [
        Compression::None,
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ];

    fn pack(compression: Compression, plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        compression.pack(plain, &mut out).unwrap();
        out
    }

    #[test]
    fn every_codec_gives_back_what_went_in() {
        for compression in ALL {
            for length in [0, 1, 100, 32 * 1024, 200_001] {
                let plain: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
                let packed = pack(compression, &plain);
                assert_eq!(compression.unpack(&packed, plain.len()).unwrap(), plain);
            }
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let bomb = vec![0_u8; 64 * 1024 * 1024];
        for compression in &ALL[1..] {
            let packed = pack(*compression, &bomb);
            assert!(packed.len() < bomb.len() / 20, "{compression:?} {}", packed.len());
            assert_eq!(compression.unpack(&packed, 100_000), Err(BatchError::TooLarge(100_000)));
        }
    }

    #[test]
    fn a_zstd_window_beyond_what_may_be_unpacked_is_refused_before_it_is_allocated() {
        // Magic, a header without single segment, window descriptor, one raw block that is the last: `x`.
        let frame = |exponent: u8| {
            [&[0x28, 0xb5, 0x2f, 0xfd, 0x00, exponent << 3][..], &[0x09, 0, 0, b'x']].concat()
        };
        let unpack = |window: u8, limit| Compression::Zstd.unpack(&frame(window - 10), limit);
        assert_eq!(unpack(23, 1000).unwrap(), b"x");
        assert_eq!(unpack(25, 32 * 1024 * 1024).unwrap(), b"x");
        for (window, limit) in [(24, 1000), (26, 32 * 1024 * 1024), (31, usize::MAX)] {
            assert!(matches!(unpack(window, limit), Err(BatchError::Decompress(_))), "{window}");
        }
    }

    #[test]
    fn raw_snappy_blocks_are_read() {
        let packed = snap::raw::Encoder::new().compress_vec(b"not framed").unwrap();
        assert_eq!(Compression::Snappy.unpack(&packed, 100).unwrap(), b"not framed");
    }

    #[test]
    fn a_snappy_length_that_lies_is_not_allocated() {
        // Varint 2^32 - 1, then one literal byte.
        let lying = [0xff, 0xff, 0xff, 0xff, 0x0f, 0x00, b'x'];
        assert!(matches!(
            Compression::Snappy.unpack(&lying, usize::MAX),
            Err(BatchError::Decompress(_))
        ));
        let mut framed = [XERIAL_MAGIC, &XERIAL_VERSION].concat();
        framed.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 1, 2, 3]);
        assert!(Compression::Snappy.unpack(&framed, usize::MAX).is_err());
    }

    #[test]
    fn garbage_and_cut_bytes_are_an_error() {
        for compression in &ALL[1..] {
            assert!(compression.unpack(b"\x01\x02garbage that is no frame", 1000).is_err());
            let packed = pack(*compression, &[7; 1000]);
            let cut = &packed[..packed.len() - 5];
            assert!(compression.unpack(cut, 10_000).is_err(), "{compression:?}");
        }
    }
}
