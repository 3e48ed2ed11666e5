//! What to send for one stored row, given what the cloud expects next of its epoch. Pure.
//!
//! ```text
//! expected:      none / = s     inside the row        >= end      < s
//! outcome:       the row        its rest              done        a gap up to s, then the row
//! ```
//! The last case cannot be filled any more (a restored image, rows that were damaged): it is declared, never skipped.
//!
//! A row travels as it is stored. It is made into new batches, with the same sequences, only where it has to be: the cloud
//! has part of it, it is too long for the cloud or the line, it is being searched for a message that is refused, or it is
//! old and says so in a header.

use std::ops::Range;

use bytes::Bytes;
use tributary_shared::record::{
    Batch, BatchBuilder, BatchError, Compression, Header, Record, batch::Producer,
};

use crate::{link::Upload, store::OutboundRow};

/// Sequences of one upload: the cloud counts them in 32 bits.
const COUNT_MAX: u64 = 1 << 31;

/// Bytes a batch may unpack to, far above what the store makes.
const UNPACKED_MAX: usize = 32 * 1024 * 1024;

/// A batch of fewer records is sent as it is: compressing it gains little.
const COMPRESS_FROM: usize = 10;

/// Bytes of a PUBLISH beside its payload, generously.
const AROUND: usize = 1024;

/// These sequences of a row cannot be sent, for ever: they are to be given up for this reason.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unsendable {
    pub(super) range: Range<u64>,
    pub(super) why: String,
}

/// Header of a record that was sent after newer ones of its lane.
const HISTORICAL: &str = "historical";

/// What batches have to be like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape<'a> {
    /// The longest packet the cloud takes.
    pub(super) packet_bytes: usize,
    /// Longer ones are sent in parts if they have parts.
    pub(super) line_bytes: usize,
    /// Sequences at which batches begin.
    pub(super) cuts: &'a [u64],
    /// Records get the header that says they are late.
    pub(super) historical: bool,
}

/// The uploads for `row`, in order; none: the cloud has all of it.
pub(super) fn plan(
    row: &OutboundRow,
    expected: Option<u64>,
    shape: Shape<'_>,
) -> Result<Vec<Upload>, Unsendable> {
    let mut uploads = Vec::new();
    let unsendable = |why: String| Unsendable { range: row.s..row.end(), why };
    let damaged = |error: BatchError| unsendable(format!("damaged on disk: {error}"));
    let expected = expected.unwrap_or(row.s);
    if expected >= row.end() {
        return Ok(uploads);
    }
    if expected < row.s {
        gap(row.epoch, expected, row.s, "missing", &mut uploads).map_err(damaged)?;
    }
    let from = expected.max(row.s);
    match (&row.reason, &row.body) {
        (Some(reason), _) => {
            gap(row.epoch, from, row.end(), reason, &mut uploads).map_err(damaged)?;
        }
        (None, None) => return Err(unsendable("has no body".to_owned())),
        (None, Some(body)) => {
            let batch = Batch::parse(body.clone()).map_err(damaged)?;
            let cut = shape.cuts.iter().any(|cut| (from + 1..row.end()).contains(cut));
            let fits = body.len() + AROUND <= shape.packet_bytes
                && (body.len() <= shape.line_bytes || row.n == 1);
            if from == row.s && fits && !cut && !shape.historical {
                uploads.push(Upload {
                    epoch: row.epoch,
                    s: row.s,
                    n: row.n,
                    gap: None,
                    payload: body.clone(),
                });
            } else {
                let mut records = batch.records(UNPACKED_MAX).map_err(damaged)?;
                let mut rest = records.get_mut((from - row.s) as usize..).unwrap_or_default();
                if shape.historical {
                    for record in rest.iter_mut() {
                        record.headers.push(historical());
                    }
                }
                let mut s = from;
                let inside = |cut: &&u64| (from + 1..row.end()).contains(*cut);
                for cut in shape.cuts.iter().filter(inside).chain([&row.end()]) {
                    let n = ((cut - s) as usize).min(rest.len());
                    let (piece, after) = rest.split_at_mut(n);
                    if !piece.is_empty() {
                        split(row.epoch, s, piece, shape, &mut uploads)?;
                    }
                    (s, rest) = (*cut, after);
                }
            }
        }
    }
    Ok(uploads)
}

fn historical() -> Header {
    Header { name: HISTORICAL.into(), value: Some(Bytes::from_static(b"true")) }
}

/// New batches of these records, halved until each fits.
fn split(
    epoch: i64,
    s: u64,
    records: &[Record],
    shape: Shape<'_>,
    uploads: &mut Vec<Upload>,
) -> Result<(), Unsendable> {
    let unsendable = |why| Unsendable { range: s..s + records.len() as u64, why };
    let compression =
        if records.len() >= COMPRESS_FROM { Compression::Zstd } else { Compression::None };
    let payload = seal(epoch, s, records, compression)
        .map_err(|error| unsendable(format!("cannot be made a batch: {error}")))?;
    let short = payload.len() <= shape.line_bytes || records.len() == 1;
    if short && payload.len() + AROUND <= shape.packet_bytes {
        uploads.push(Upload { epoch, s, n: records.len() as u64, gap: None, payload });
        return Ok(());
    }
    if records.len() < 2 {
        let most = shape.packet_bytes;
        return Err(unsendable(format!("larger than the {most} bytes the cloud takes")));
    }
    let (first, second) = records.split_at(records.len() / 2);
    split(epoch, s, first, shape, uploads)?;
    split(epoch, s + first.len() as u64, second, shape, uploads)
}

/// Declares [from, to) as given up; the payload says the same as one JSON record, for readers of the raw bytes.
fn gap(
    epoch: i64,
    mut from: u64,
    to: u64,
    reason: &str,
    uploads: &mut Vec<Upload>,
) -> Result<(), BatchError> {
    while from < to {
        let n = (to - from).min(COUNT_MAX);
        let said = serde_json::json!({ "from": from, "to": from + n, "reason": reason });
        let record = Record {
            value: Some(Bytes::from(said.to_string())),
            timestamp_ms: tributary_shared::clock::wall_ms(),
            headers: vec![Header {
                name: "tributary.gap".into(),
                value: Some(Bytes::copy_from_slice(reason.as_bytes())),
            }],
            ..Record::default()
        };
        let payload = seal(epoch, from, &[record], Compression::None)?;
        uploads.push(Upload { epoch, s: from, n, gap: Some(reason.to_owned()), payload });
        from += n;
    }
    Ok(())
}

fn seal(
    epoch: i64,
    s: u64,
    records: &[Record],
    compression: Compression,
) -> Result<Bytes, BatchError> {
    let mut builder = BatchBuilder::new();
    for record in records {
        builder.push(record);
    }
    let producer = Producer { id: epoch, epoch: 0, base_sequence: (s & 0x7FFF_FFFF) as i32 };
    Ok(builder.finish(compression, Some(producer))?.bytes().clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Shape<'static> =
        Shape { packet_bytes: usize::MAX, line_bytes: usize::MAX, cuts: &[], historical: false };

    fn row(s: u64, n: u64) -> OutboundRow {
        let records: Vec<_> = (0..n)
            .map(|i| Record {
                key: Some("t".into()),
                value: Some((s + i).to_string().into()),
                ..Record::default()
            })
            .collect();
        let body = seal(7, s, &records, Compression::None).unwrap();
        OutboundRow { id: 1, epoch: 7, s, n, reason: None, body: Some(body) }
    }

    /// (s, n, gap) and the values inside batches.
    fn check(
        row: &OutboundRow,
        expected: Option<u64>,
        bytes: usize,
    ) -> Vec<(u64, u64, bool, String)> {
        let values = |upload: &Upload| -> String {
            let batch = Batch::parse(upload.payload.clone()).unwrap();
            assert_eq!(batch.header().producer_id, 7);
            assert_eq!(batch.header().base_sequence, upload.s as i32);
            if upload.gap.is_some() {
                return String::new();
            }
            assert_eq!(batch.count() as u64, upload.n);
            let records = batch.records(1 << 20).unwrap();
            let texts = records
                .iter()
                .map(|r| String::from_utf8_lossy(r.value.as_ref().unwrap()).into_owned());
            texts.collect::<Vec<_>>().join(" ")
        };
        let uploads = plan(row, expected, Shape { packet_bytes: bytes, ..ANY }).unwrap();
        uploads.iter().map(|u| (u.s, u.n, u.gap.is_some(), values(u))).collect()
    }

    #[test]
    fn what_is_sent_starts_where_the_cloud_is() {
        let stored = row(10, 3);
        let whole = (10, 3, false, "10 11 12".to_owned());
        for expected in [None, Some(10)] {
            assert_eq!(check(&stored, expected, usize::MAX), vec![whole.clone()]);
        }
        assert_eq!(check(&stored, Some(12), usize::MAX), [(12, 1, false, "12".to_owned())]);
        assert_eq!(check(&stored, Some(13), usize::MAX), []);
        assert_eq!(check(&stored, Some(4), usize::MAX), [(4, 6, true, String::new()), whole]);
        let given_up = OutboundRow { reason: Some("over budget".to_owned()), body: None, ..stored };
        assert_eq!(check(&given_up, Some(11), usize::MAX), [(11, 2, true, String::new())]);
    }

    #[test]
    fn the_untouched_row_is_sent_byte_for_byte() {
        let stored = row(0, 2);
        let uploads = plan(&stored, None, ANY).unwrap();
        assert_eq!(Some(&uploads[0].payload), stored.body.as_ref());
    }

    #[test]
    fn a_batch_too_large_for_the_cloud_is_sent_in_parts_and_a_single_record_is_given_up() {
        let big = |n: u64| {
            let mut noise = 1_u64;
            let records: Vec<_> = (0..n)
                .map(|_| {
                    let value: Vec<u8> = (0..3000)
                        .map(|_| {
                            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                            (noise >> 56) as u8
                        })
                        .collect();
                    Record { value: Some(value.into()), ..Record::default() }
                })
                .collect();
            let body = seal(7, 0, &records, Compression::None).unwrap();
            OutboundRow { id: 1, epoch: 7, s: 0, n, reason: None, body: Some(body) }
        };
        let two = Shape { packet_bytes: 8000, ..ANY };
        let short = Shape { line_bytes: 2000, ..ANY };
        let ranges = |shape| {
            let parts = plan(&big(4), None, shape).unwrap();
            parts.iter().map(|p| (p.s, p.n)).collect::<Vec<_>>()
        };
        assert_eq!(ranges(two), [(0, 2), (2, 2)]);
        assert_eq!(ranges(short), [(0, 1), (1, 1), (2, 1), (3, 1)], "one record has no parts");
        let small = Shape { packet_bytes: 2000, ..ANY };
        let refused = plan(&big(2), Some(1), small).unwrap_err();
        assert!(refused.range == (1..2) && refused.why.contains("larger"), "{refused:?}");
    }

    #[test]
    fn a_batch_is_cut_where_it_is_searched() {
        let cuts = [3, 11, 12, 40];
        let uploads = plan(&row(10, 4), Some(11), Shape { cuts: &cuts, ..ANY }).unwrap();
        assert_eq!(uploads.iter().map(|u| (u.s, u.n)).collect::<Vec<_>>(), [(11, 1), (12, 2)]);
        assert_eq!(
            check(&row(10, 4), Some(11), usize::MAX),
            [(11, 3, false, "11 12 13".to_owned())]
        );
    }

    #[test]
    fn late_records_say_so_in_a_header() {
        let uploads = plan(&row(0, 2), None, Shape { historical: true, ..ANY }).unwrap();
        let records = Batch::parse(uploads[0].payload.clone()).unwrap().records(1 << 20).unwrap();
        assert!(records.iter().all(|r| r.header("historical").is_some_and(|v| v == "true")));
        assert_eq!((uploads[0].s, uploads[0].n, records.len()), (0, 2, 2));
    }

    #[test]
    fn a_damaged_row_is_not_sent() {
        let mut stored = row(0, 2);
        let mut bytes = stored.body.unwrap().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        stored.body = Some(bytes.into());
        assert!(plan(&stored, None, ANY).unwrap_err().why.contains("damaged"));
    }
}
