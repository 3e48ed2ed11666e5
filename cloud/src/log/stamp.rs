//! PURE. A batch with the log's time instead of its producer's (`log_append_time`).
//!
//! Rewrites maxTimestamp and attribute bit 3, and the CRC over them; readers then take maxTimestamp for every record.

use bytes::BytesMut;
use tributary_shared::record::{Batch, BatchError};

const CRC: std::ops::Range<usize> = 17..21;
const ATTRIBUTES: std::ops::Range<usize> = 21..23;
const MAX_TIMESTAMP: std::ops::Range<usize> = 35..43;
const APPEND_TIME: i16 = 1 << 3;

/// The batch as appended at `now_ms`.
pub(super) fn append_time(batch: &Batch, now_ms: i64) -> Result<Batch, BatchError> {
    let mut bytes = BytesMut::from(&batch.bytes()[..]);
    let attributes = batch.header().attributes | APPEND_TIME;
    let need = MAX_TIMESTAMP.end;
    let short = BatchError::Truncated { have: bytes.len(), need };
    let put = |bytes: &mut BytesMut, at: std::ops::Range<usize>, value: &[u8]| {
        let field = bytes.get_mut(at).ok_or_else(|| short.clone())?;
        field.copy_from_slice(value);
        Ok::<_, BatchError>(())
    };
    put(&mut bytes, ATTRIBUTES, &attributes.to_be_bytes())?;
    put(&mut bytes, MAX_TIMESTAMP, &now_ms.to_be_bytes())?;
    let crc = crc32c::crc32c(bytes.get(ATTRIBUTES.start..).unwrap_or_default());
    put(&mut bytes, CRC, &crc.to_be_bytes())?;
    Batch::trusted(bytes.freeze())
}

/// Whether a batch's records carry the log's time: its maxTimestamp.
pub(super) fn has_append_time(batch: &Batch) -> bool {
    batch.header().attributes & APPEND_TIME != 0
}
