//! Keeps the password file: people with passwords they chose, devices with secrets that are made here.
//!
//! The file is replaced in one step and is readable by its owner only. A running edge takes the change by itself.
//! Change here: what the command does. Not here: the form of the file (`shared::auth::password`).

use std::{
    fs, io,
    io::{BufRead as _, IsTerminal as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tributary_shared::auth::{
    ANONYMOUS,
    password::{Fault, FileError, HashError, Passwords, Stored, check_name, edited},
};

/// Characters of the shortest password that is taken.
const SHORTEST: usize = 8;

/// What to do with a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Set the password that stands on stdin.
    Person,
    /// Set the password that stands on stdin, so that it can be proved by SCRAM-SHA-256.
    Scram,
    /// Make a secret.
    Device,
    /// Take the user out.
    Delete,
}

/// Why the file is as it was.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PasswdError {
    #[error("cannot read {0}: {1}")]
    Read(PathBuf, io::Error),
    #[error("cannot write {0}: {1}")]
    Write(PathBuf, io::Error),
    #[error("{0}, {1}; mend it first")]
    File(PathBuf, FileError),
    #[error("`{0}` cannot be a user: {1}")]
    Name(String, Fault),
    #[error("no user `{0}` in {1}")]
    Unknown(String, PathBuf),
    #[error("a password has at least {SHORTEST} characters")]
    Short,
    #[error("the two passwords differ")]
    Differ,
    #[error("cannot read a password: {0}")]
    Input(io::Error),
    #[error(transparent)]
    Hash(#[from] HashError),
}

/// Changes one user; says what was done, and a new device's secret.
pub fn change(file: &Path, user: &str, change: Change) -> Result<String, PasswdError> {
    check_name(user).map_err(|why| PasswdError::Name(user.to_owned(), why))?;
    let text = match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && change != Change::Delete => {
            String::new()
        }
        read => read.map_err(|error| PasswdError::Read(file.to_owned(), error))?,
    };
    let passwords =
        Passwords::parse(&text).map_err(|error| PasswdError::File(file.to_owned(), error))?;
    let (stored, said) = match change {
        Change::Person => (Some(Stored::for_person(password()?.as_bytes())?), None),
        Change::Scram => (Some(Stored::for_scram(password()?.as_bytes())?), None),
        Change::Device => {
            let (secret, stored) = Stored::for_new_device()?;
            (Some(stored), Some(secret))
        }
        Change::Delete => (None, None),
    };
    let (mut text, found) = edited(&text, user, stored.as_ref());
    if change == Change::Scram && !passwords.has_key() {
        text = edited(&text, ANONYMOUS, Some(&Stored::for_strangers()?)).0;
    }
    if change == Change::Delete && !found {
        return Err(PasswdError::Unknown(user.to_owned(), file.to_owned()));
    }
    replace(file, &text).map_err(|error| PasswdError::Write(file.to_owned(), error))?;
    Ok(said.unwrap_or_else(|| {
        let done = match (change, found) {
            (Change::Delete, _) => "deleted",
            (_, true) => "changed",
            (_, false) => "added",
        };
        format!("{user} {done}")
    }))
}

/// Writes beside the file and moves it into its place, with the owner that it had.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // Left behind by one that was cut off. Never written through: it could be a link.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut new = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    if let Ok(old) = fs::metadata(file) {
        std::os::unix::fs::chown(&beside, Some(old.uid()), Some(old.gid()))?;
    }
    new.write_all(text.as_bytes())?;
    new.sync_all()?;
    fs::rename(&beside, file)?;
    fs::File::open(folder)?.sync_all()
}

/// One line of stdin; asked for twice, and not shown, where that is a terminal.
fn password() -> Result<String, PasswdError> {
    let input = io::stdin();
    let password = if input.is_terminal() {
        let _hidden = Hidden::start();
        let first = ask("password: ")?;
        if first != ask("again: ")? {
            return Err(PasswdError::Differ);
        }
        first
    } else {
        line()?
    };
    if password.chars().count() < SHORTEST { Err(PasswdError::Short) } else { Ok(password) }
}

fn ask(prompt: &str) -> Result<String, PasswdError> {
    let mut terminal = io::stderr().lock();
    let asked = terminal.write_all(prompt.as_bytes()).and_then(|()| terminal.flush());
    asked.map_err(PasswdError::Input)?;
    let answer = line()?;
    terminal.write_all(b"\n").map_err(PasswdError::Input)?;
    Ok(answer)
}

fn line() -> Result<String, PasswdError> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(PasswdError::Input)?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// A terminal that does not show what is typed, until this is dropped.
struct Hidden;

impl Hidden {
    fn start() -> Self {
        stty("-echo");
        Self
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        stty("echo");
    }
}

/// Without the program what is typed is seen; it is taken all the same.
fn stty(argument: &str) {
    let _ = Command::new("stty").arg(argument).stdin(Stdio::inherit()).status();
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn devices_are_added_replaced_and_deleted_and_the_file_is_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users");
        let users = || Passwords::parse(&fs::read_to_string(&file).unwrap()).unwrap();
        let first = change(&file, "gw-1", Change::Device).unwrap();
        assert!(users().get("gw-1").unwrap().verify(first.as_bytes()));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let second = change(&file, "gw-1", Change::Device).unwrap();
        assert!(!users().get("gw-1").unwrap().verify(first.as_bytes()));
        assert!(users().get("gw-1").unwrap().verify(second.as_bytes()));
        // mosquitto CVE-2017-9868 and its kind.
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(change(&file, "gw-1", Change::Delete).unwrap(), "gw-1 deleted");
        assert!(users().is_empty());
        assert!(matches!(change(&file, "gw-1", Change::Delete), Err(PasswdError::Unknown(..))));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_bad_file_or_name_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users");
        fs::write(&file, "ann:plain\n").unwrap();
        assert!(matches!(change(&file, "gw", Change::Device), Err(PasswdError::File(..))));
        assert_eq!(fs::read_to_string(&file).unwrap(), "ann:plain\n");
        for name in ["", "a:b", "anonymous", "a\n", "gw-*"] {
            assert!(matches!(change(&file, name, Change::Device), Err(PasswdError::Name(..))));
        }
        let missing = folder.path().join("no/such");
        assert!(matches!(change(&missing, "gw", Change::Device), Err(PasswdError::Write(..))));
    }
}
