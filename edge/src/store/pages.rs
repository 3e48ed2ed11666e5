//! Rows of batches, found without the tree that leads to them: page by page, as SQLite's file format says.
//!
//! For a file in which an inner page, the schema or the first page is damaged: SQLite finds nothing behind those. A row is
//! taken when its batch has the right CRC and says the same epoch, sequence and count as the row; so what stands in pages that
//! were freed is at worst a row the cloud has already, and it knows.
//!
//! In: the damaged file and its write-ahead log. Out: rows. Change here: the format (sqlite.org/fileformat2.html).
//! Not here: what is done with rows (`salvage`).

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use tributary_shared::record::Batch;

use super::{lane_start, open::PAGE, reader::UNPACKED_MAX};

/// Sizes of pages of files we made: which of them a file has says its first page, or its log, or nobody.
const SIZES: [usize; 2] = [PAGE as usize, 4096];
/// Bytes of the log's header and of that of each page in it.
const LOG_HEADER: u64 = 32;
const FRAME_HEADER: u64 = 24;
/// First byte of a page with rows.
const LEAF: u8 = 0x0D;
const COLUMNS: usize = 8;

/// A row of `batch`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) id: u64,
    pub(super) epoch: i64,
    pub(super) s: u64,
    pub(super) n: u64,
    pub(super) bytes: i64,
    pub(super) made_ms: i64,
    pub(super) reason: Option<String>,
    pub(super) body: Option<Bytes>,
}

/// Gives each row that is found; in no order, some perhaps in an older form too, the newest first.
pub(super) fn scan(path: &Path, mut each: impl FnMut(Found)) -> io::Result<()> {
    for size in page_sizes(path)? {
        scan_pages(&Image::open(path, size)?, &mut each);
    }
    Ok(())
}

/// Those that the file may have. Rows prove themselves: a wrong guess finds none.
fn page_sizes(path: &Path) -> io::Result<Vec<usize>> {
    let mut header = [0; 18];
    let in_file = File::open(path)?.read_exact_at(&mut header, 0).is_ok();
    let named = number(&header, 16, 2) as usize;
    if in_file && header.starts_with(b"SQLite format 3\0") && SIZES.contains(&named) {
        return Ok(vec![named]);
    }
    let in_log = File::open(log_of(path)).and_then(|log| log.read_exact_at(&mut header, 0));
    let named = number(&header, 8, 4) as usize;
    if in_log.is_ok() && SIZES.contains(&named) {
        return Ok(vec![named]);
    }
    Ok(SIZES.to_vec())
}

fn scan_pages(image: &Image, each: &mut impl FnMut(Found)) {
    let in_log: Vec<u32> = image.log.keys().copied().collect();
    for number in in_log.into_iter().chain(1..=image.pages) {
        // A page that cannot be read is one of those that are lost.
        let Ok(page) = image.page(number) else { continue };
        if page.first() == Some(&LEAF) {
            rows(image, &page, each);
        }
    }
}

/// The file as its log makes it.
struct Image {
    file: File,
    /// Bytes of a page.
    size: usize,
    pages: u32,
    wal: Option<File>,
    /// Where pages are in the log; the latest copy of each.
    log: HashMap<u32, u64>,
}

impl Image {
    fn open(path: &Path, size: usize) -> io::Result<Self> {
        let file = File::open(path)?;
        let pages = u32::try_from(file.metadata()?.len() / size as u64).unwrap_or(u32::MAX);
        let wal = File::open(log_of(path)).ok();
        let log = wal.as_ref().and_then(|wal| frames(wal, size as u64).ok()).unwrap_or_default();
        Ok(Self { file, size, pages, wal, log })
    }

    fn page(&self, number: u32) -> io::Result<Vec<u8>> {
        let mut page = vec![0; self.size];
        if let (Some(at), Some(wal)) = (self.log.get(&number), &self.wal) {
            wal.read_exact_at(&mut page, *at)?;
        } else {
            let at = u64::from(number.saturating_sub(1)) * self.size as u64;
            self.file.read_exact_at(&mut page, at)?;
        }
        Ok(page)
    }
}

fn log_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

/// Pages in the log that belong to its present run: they have its salts.
fn frames(wal: &File, size: u64) -> io::Result<HashMap<u32, u64>> {
    let mut salts = [0; 8];
    wal.read_exact_at(&mut salts, 16)?;
    let mut found = HashMap::new();
    let mut at = LOG_HEADER;
    let mut header = [0; FRAME_HEADER as usize];
    while wal.read_exact_at(&mut header, at).is_ok() {
        if header.get(8..16) != Some(&salts) {
            break;
        }
        found.insert(number(&header, 0, 4) as u32, at + FRAME_HEADER);
        at += FRAME_HEADER + size;
    }
    Ok(found)
}

fn rows(image: &Image, page: &[u8], each: &mut impl FnMut(Found)) {
    for cell in 0..number(page, 3, 2) as usize {
        let at = number(page, 8 + 2 * cell, 2) as usize;
        if let Some(found) = payload(image, page, at).and_then(|(id, bytes)| row(id, &bytes)) {
            each(found);
        }
    }
}

/// A cell's row id and all of its bytes.
fn payload(image: &Image, page: &[u8], at: usize) -> Option<(u64, Vec<u8>)> {
    let (length, at) = varint(page, at)?;
    let (id, at) = varint(page, at)?;
    let length = usize::try_from(length).ok().filter(|length| *length <= UNPACKED_MAX)?;
    let size = image.size;
    let (most, least) = (size - 35, (size - 12) * 32 / 255 - 23);
    let local = match least + length.saturating_sub(least) % (size - 4) {
        _ if length <= most => length,
        fits if fits <= most => fits,
        _ => least,
    };
    let mut bytes = page.get(at..at + local)?.to_vec();
    let mut next = number(page, at + local, 4) as u32;
    while bytes.len() < length {
        if next == 0 {
            return None;
        }
        let page = image.page(next).ok()?;
        next = number(&page, 0, 4) as u32;
        let part = (length - bytes.len()).min(size - 4);
        bytes.extend_from_slice(page.get(4..4 + part)?);
    }
    Some((id, bytes))
}

/// The bytes as a row of `batch`, if they are one.
fn row(id: u64, bytes: &[u8]) -> Option<Found> {
    let (header, mut at) = varint(bytes, 0)?;
    let mut place = usize::try_from(header).ok()?;
    let mut columns: [Option<&[u8]>; COLUMNS] = [None; COLUMNS];
    let mut kinds = [0_u64; COLUMNS];
    for (column, kind) in columns.iter_mut().zip(&mut kinds) {
        (*kind, at) = varint(bytes, at)?;
        let length = match *kind {
            kind @ 0..=4 => kind as usize,
            5 => 6,
            6 | 7 => 8,
            8 | 9 => 0,
            10 | 11 => return None,
            kind => usize::try_from((kind - 12) / 2).ok()?,
        };
        *column = Some(bytes.get(place..place.checked_add(length)?)?);
        place += length;
    }
    if at != header as usize || place != bytes.len() {
        return None;
    }
    let integer = |column: usize| -> Option<i64> {
        match *kinds.get(column)? {
            kind @ (8 | 9) => Some(kind as i64 - 8),
            1..=6 => {
                let bytes = (*columns.get(column)?)?;
                let negative = bytes.first()? & 0x80 != 0;
                let start = if negative { -1_i64 } else { 0 };
                Some(bytes.iter().fold(start, |sum, byte| sum << 8 | i64::from(*byte)))
            }
            _ => None,
        }
    };
    let text = columns.get(6).copied().flatten().filter(|_| kinds.get(6) > Some(&0));
    let blob = columns.get(7).copied().flatten().filter(|_| kinds.get(7) > Some(&0));
    let found = Found {
        id,
        epoch: integer(1)?,
        s: u64::try_from(integer(2)?).ok()?,
        n: u64::try_from(integer(3)?).ok().filter(|n| *n > 0)?,
        bytes: integer(4)?,
        made_ms: integer(5)?,
        reason: text.map(|text| String::from_utf8(text.to_vec())).transpose().ok()?,
        body: blob.map(Bytes::copy_from_slice),
    };
    (kinds.first() == Some(&0) && is_sound(&found)).then_some(found)
}

fn is_sound(found: &Found) -> bool {
    let of_lane = found.id >= lane_start(1);
    match &found.body {
        // A gap: nothing proves it.
        None => of_lane && found.epoch > 0 && found.reason.is_some(),
        Some(body) => Batch::parse(body.clone()).is_ok_and(|batch| {
            let header = batch.header();
            batch.count() as u64 == found.n
                && (!of_lane
                    || header.producer_id == found.epoch
                        && header.base_sequence == (found.s & 0x7FFF_FFFF) as i32)
        }),
    }
}

/// Big-endian; what is not there is 0.
fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    let found = bytes.get(at..at + length).unwrap_or_default();
    found.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// A variable-length integer, and where it ends.
fn varint(bytes: &[u8], mut at: usize) -> Option<(u64, usize)> {
    let mut value = 0_u64;
    for count in 1..=9 {
        let byte = *bytes.get(at)?;
        at += 1;
        if count == 9 {
            return Some((value << 8 | u64::from(byte), at));
        }
        value = value << 7 | u64::from(byte & 0x7F);
        if byte & 0x80 == 0 {
            break;
        }
    }
    Some((value, at))
}
