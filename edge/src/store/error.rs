//! What can go wrong with the store, and which of it the file itself is to blame for.

use std::{io, path::PathBuf, sync::Arc};

use tributary_shared::record::BatchError;

/// Why the store cannot do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The folder cannot be made, read or written.
    #[error("data folder {path} cannot be used: {cause}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: Arc<io::Error>,
    },
    /// Another process has it.
    #[error("data folder {0} is in use by another tributary-edge")]
    InUse(PathBuf),
    /// The file was written by a later release.
    #[error(
        "the store has version {found}, this program knows up to {known}; start the newer program again"
    )]
    Newer {
        /// In the file.
        found: usize,
        /// In the program.
        known: usize,
    },
    /// The file was written by an earlier release, and is not ours to change.
    #[error(
        "the store has version {found}, this program's is {known}; start the edge once with this program"
    )]
    Older {
        /// In the file.
        found: usize,
        /// In the program.
        known: usize,
    },
    /// An SQLite file, but not ours.
    #[error("the store's file is another program's database")]
    Foreign,
    /// SQLite said no.
    #[error("sqlite: {0}")]
    Sqlite(Arc<rusqlite::Error>),
    /// SQLite's own check found the file damaged.
    #[error("the store's file did not pass sqlite's check")]
    Check,
    /// A batch could not be made (never for input that the codec let pass).
    #[error("record batch: {0}")]
    Batch(#[from] BatchError),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Entropy,
    /// The store has stopped, or stops.
    #[error("the store is closed")]
    Closed,
}

impl From<rusqlite::Error> for Error {
    fn from(cause: rusqlite::Error) -> Self {
        Self::Sqlite(Arc::new(cause))
    }
}

impl Error {
    fn code(&self) -> Option<rusqlite::ErrorCode> {
        match self {
            Self::Sqlite(cause) => cause.sqlite_error_code(),
            _ => None,
        }
    }

    /// The file is broken: it is put aside, and what can be read is saved.
    pub fn is_corrupt(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase, SchemaChanged};
        matches!(self, Self::Foreign | Self::Check)
            || matches!(self.code(), Some(DatabaseCorrupt | NotADatabase | SchemaChanged))
    }

    /// No room on the disk or in the page budget.
    pub fn is_full(&self) -> bool {
        self.code() == Some(rusqlite::ErrorCode::DiskFull)
    }
}
