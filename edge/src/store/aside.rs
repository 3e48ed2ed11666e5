//! Putting a damaged file aside and a new one in its place; may be killed between any two steps.
//!
//! ```text
//! 1 `edge.db.salvaging` says where to      2 edge.db, -wal, -shm renamed to edge.db.damaged-TAG
//! 3 edge.db.new made, rows saved into it   4 flushed, renamed to edge.db      5 `edge.db.salvaging` removed
//! ```
//! A start that finds `edge.db.salvaging` goes on at 2 with the same tag: whatever edge.db.new holds is thrown away, and
//! edge.db, should it be there beside the damaged file, is the new one of step 4, to which nothing was added yet.
//!
//! In: the path of the file. Out: where the old one is now. Change here: order of steps. Not here: what is saved (`salvage`).

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// SQLite's files beside the database.
const COMPANIONS: [&str; 3] = ["", "-wal", "-shm"];

/// The tag of a salvage that was not finished.
pub(super) fn unfinished(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(with(path, ".salvaging")) {
        Ok(tag) if is_tag(&tag) => Ok(Some(tag)),
        // Killed while it was written: nothing was moved yet.
        Ok(_) => fs::remove_file(with(path, ".salvaging")).map(|()| None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_tag(tag: &str) -> bool {
    tag.len() == 16 && tag.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Steps 1 and 2. Answers where the damaged file is.
pub(super) fn put(path: &Path, tag: &str) -> io::Result<PathBuf> {
    let mut note = create(&with(path, ".salvaging"))?;
    note.write_all(tag.as_bytes())?;
    note.sync_all()?;
    sync_folder(path)?;
    let aside = with(path, &format!(".damaged-{tag}"));
    if !aside.exists() {
        // The database last: while it is in its place its companions belong to it.
        for companion in COMPANIONS.iter().rev() {
            match fs::rename(with(path, companion), with(&aside, companion)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        sync_folder(path)?;
    }
    Ok(aside)
}

/// The empty file of step 3.
pub(super) fn fresh(path: &Path) -> io::Result<PathBuf> {
    let new = with(path, ".new");
    for companion in COMPANIONS {
        match fs::remove_file(with(&new, companion)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    create(&new)?;
    Ok(new)
}

/// Steps 4 and 5, once the new file is closed and has no companions.
pub(super) fn finish(path: &Path) -> io::Result<()> {
    let new = with(path, ".new");
    File::open(&new)?.sync_all()?;
    fs::rename(&new, path)?;
    sync_folder(path)?;
    fs::remove_file(with(path, ".salvaging"))?;
    sync_folder(path)
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
