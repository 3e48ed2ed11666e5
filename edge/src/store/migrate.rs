//! Steps from each schema version to the next. In: an open connection. Out: the schema of this program.
//!
//! Change here: append a step; a released step is never edited. Not here: what to do when the file is broken (`open`).

use rusqlite::Connection;

use super::Error;

/// `TRIB`: tells our file from any other SQLite database.
const APPLICATION_ID: i32 = 0x5452_4942;

/// Step `i` leads from version `i` to version `i + 1`.
const STEPS: &[&str] = &[
    include_str!("schema.sql"),
    // Whose right to publish is asked before a retained message is delivered: NULL = the edge's own, '' = anonymous.
    "ALTER TABLE retained ADD COLUMN author TEXT",
    // Who needs a batch, by session, in place of a mere count; what an entry counts for in its session's limit.
    "ALTER TABLE queue ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
     CREATE TABLE needed(
       batch   INTEGER NOT NULL,
       session INTEGER NOT NULL,
       n       INTEGER NOT NULL, -- its queue entries that need the batch
       first   INTEGER NOT NULL, -- no seq of them is lower
       last    INTEGER NOT NULL, -- or higher
       PRIMARY KEY(batch, session)
     ) WITHOUT ROWID;
     INSERT INTO needed SELECT batch, session, count(*), min(seq), max(seq) FROM queue GROUP BY batch, session;
     DROP TABLE refs",
    // Retained messages still to be sent for a subscription: since when, after which topic.
    "ALTER TABLE subscription ADD COLUMN replay_since_ms INTEGER;
     ALTER TABLE subscription ADD COLUMN replay_after TEXT",
    // Messages that are published later; author as in `retained`, body a record batch v2 with one record.
    "CREATE TABLE delayed(
       number INTEGER PRIMARY KEY,
       due_ms INTEGER NOT NULL,
       author TEXT,
       body   BLOB NOT NULL
     )",
    // What became of a batch of which some messages were given up; `batch` has neither reason nor body then. When bodies
    // came into the quarantine: 0 = before this was kept.
    "CREATE TABLE part(
       batch  INTEGER NOT NULL,
       s      INTEGER NOT NULL, -- first sequence
       n      INTEGER NOT NULL, -- sequences
       reason TEXT,             -- set: these were given up
       body   BLOB,             -- record batch v2, with epoch and sequence of its own
       PRIMARY KEY(batch, s)
     );
     ALTER TABLE quarantine ADD COLUMN at_ms INTEGER NOT NULL DEFAULT 0",
    // Next offset of each partition of the cloud's log that commands came from.
    "CREATE TABLE followed(
       source INTEGER PRIMARY KEY,
       next   INTEGER NOT NULL
     )",
    // 1: somebody wants it back in its lane. Written by `tributary-edge quarantine`, also while the edge runs.
    "ALTER TABLE quarantine ADD COLUMN wanted INTEGER NOT NULL DEFAULT 0",
    // How old rows are, see `age`.
    "CREATE TABLE observed(
       one     INTEGER PRIMARY KEY,
       boot    TEXT    NOT NULL,
       boot_ms INTEGER NOT NULL, -- since that boot
       at_ms   INTEGER NOT NULL  -- observed time then
     );
     CREATE TABLE seen(
       lane  INTEGER NOT NULL,
       id    INTEGER NOT NULL,   -- rows of the lane below it were there
       at_ms INTEGER NOT NULL,   -- observed time
       PRIMARY KEY(lane, id)
     ) WITHOUT ROWID",
    // Epochs that another gateway uses, too: what the cloud is told instead.
    "CREATE TABLE renamed(
       number INTEGER PRIMARY KEY,
       lane   INTEGER NOT NULL,
       epoch  INTEGER NOT NULL,
       s      INTEGER NOT NULL, -- from this sequence on, which becomes 0
       name   INTEGER NOT NULL,
       UNIQUE(lane, epoch)
     )",
    // When messages expire and sessions went, in observed time; before by the wall clock, which may have jumped since. NULL:
    // a message lasts from now on, a session is away from now on. A delay below 0 is what is left of it, less 1.
    "ALTER TABLE queue ADD COLUMN expires_ms INTEGER;
     ALTER TABLE retained ADD COLUMN expires_ms INTEGER;
     ALTER TABLE delayed ADD COLUMN expires_ms INTEGER;
     UPDATE session SET disconnected_ms = NULL;
     UPDATE delayed SET due_ms =
       -1 - max(0, due_ms - CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER))",
];

/// The version of this program's files.
pub(super) const VERSION: usize = STEPS.len();

/// Brings the file to the newest version, one transaction a step.
pub(super) fn migrate(db: &Connection) -> Result<(), Error> {
    let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let version = usize::try_from(version).unwrap_or(usize::MAX);
    if version > STEPS.len() {
        return Err(Error::Newer { found: version, known: STEPS.len() });
    }
    for (step, sql) in STEPS.iter().enumerate().skip(version) {
        db.execute_batch(&format!(
            "BEGIN IMMEDIATE; {sql}; PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={}; COMMIT",
            step + 1
        ))?;
    }
    let application: i32 = db.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    if application == APPLICATION_ID { Ok(()) } else { Err(Error::Foreign) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_an_older_version_keeps_what_it_has() {
        let db = Connection::open_in_memory().unwrap();
        let first = STEPS[0];
        db.execute_batch(&format!(
            "BEGIN; {first}; PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version=1; COMMIT;
             INSERT INTO retained VALUES('t', x'01')"
        ))
        .unwrap();
        for _ in 0..2 {
            migrate(&db).unwrap();
            let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
            let row: (String, Vec<u8>, Option<String>) =
                db.query_row("SELECT * FROM retained", [], read).unwrap();
            assert_eq!(row, ("t".to_owned(), vec![1], None));
        }
        db.execute_batch("PRAGMA user_version=99").unwrap();
        assert!(matches!(migrate(&db), Err(Error::Newer { found: 99, .. })));
    }
}
