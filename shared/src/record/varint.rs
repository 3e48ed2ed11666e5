//! Zigzag varints, the numbers inside a record (Kafka protocol, "VARINT" and "VARLONG").

use super::BatchError;

/// Takes a number off the front of `bytes`; `None`: cut short or longer than 64 bits.
pub(super) fn read(bytes: &mut &[u8]) -> Option<i64> {
    let mut value = 0_u64;
    for (index, &byte) in bytes.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if index == 9 && bits > 1 {
            return None;
        }
        value |= bits << (7 * index);
        if byte & 0x80 == 0 {
            *bytes = bytes.get(index + 1..)?;
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

/// Takes `length` and then as many bytes off the front: `Some(None)` for the length -1, which stands for null.
#[expect(clippy::option_option, reason = "malformed, null and bytes are three things")]
pub(super) fn read_bytes<'a>(bytes: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let length = read(bytes)?;
    if length == -1 {
        return Some(None);
    }
    let (taken, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
    *bytes = rest;
    Some(Some(taken))
}

/// Appends a number.
pub(super) fn write(value: i64, out: &mut Vec<u8>) {
    let mut rest = zigzag(value);
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Appends a length and the bytes; -1 for null.
pub(super) fn write_bytes(value: Option<&[u8]>, out: &mut Vec<u8>) {
    match value {
        None => write(-1, out),
        Some(bytes) => {
            write(bytes.len() as i64, out);
            out.extend_from_slice(bytes);
        }
    }
}

/// Bytes [`write`] takes.
pub(super) fn len(value: i64) -> usize {
    (64 - (zigzag(value) | 1).leading_zeros() as usize).div_ceil(7)
}

/// Bytes [`write_bytes`] takes.
pub(super) fn len_bytes(value: Option<&[u8]>) -> usize {
    value.map_or(1, |bytes| len(bytes.len() as i64) + bytes.len())
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// The error of a record in which a number or length is wrong.
pub(super) fn malformed(index: usize, detail: &'static str) -> BatchError {
    BatchError::Record { index, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_kafka_writes_them() {
        for (value, bytes) in [
            (0_i64, &[0x00_u8][..]),
            (-1, &[0x01]),
            (1, &[0x02]),
            (63, &[0x7e]),
            (64, &[0x80, 0x01]),
            (-65, &[0x81, 0x01]),
            (i64::from(i32::MAX), &[0xfe, 0xff, 0xff, 0xff, 0x0f]),
            (i64::MIN, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        ] {
            let mut out = Vec::new();
            write(value, &mut out);
            assert_eq!(out, bytes, "{value}");
            assert_eq!(len(value), bytes.len(), "{value}");
            let mut rest = bytes;
            assert_eq!(read(&mut rest), Some(value));
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn a_number_that_never_ends_is_refused() {
        assert_eq!(read(&mut &[0xff_u8; 9][..]), None);
        assert_eq!(read(&mut &[0xff_u8; 11][..]), None);
        let mut over = [0xff_u8; 10];
        over[9] = 0x02;
        assert_eq!(read(&mut &over[..]), None);
    }

    #[test]
    fn a_length_beyond_the_bytes_is_refused() {
        assert_eq!(read_bytes(&mut &[0x08_u8, 1, 2][..]), None);
        assert_eq!(read_bytes(&mut &[0x03_u8][..]), None, "-2 is no length");
        assert_eq!(read_bytes(&mut &[0x01_u8][..]), Some(None));
    }
}
