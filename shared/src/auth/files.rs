//! The files that [`Settings`] name, read as a whole: all of them are good, or nothing changes.

use std::{fs, io, path::Path};

use super::{
    identify::Settings,
    password::{self, FILE_BYTES, Passwords},
    token::{self, Tokens},
};

/// What the files said.
pub(super) struct Files {
    pub(super) settings: Settings,
    pub(super) passwords: Passwords,
    pub(super) tokens: Tokens,
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`{setting}`: {file}: {why}")]
pub struct LoadError {
    /// What names the file.
    pub setting: &'static str,
    /// Which.
    pub file: String,
    pub(super) why: String,
}

impl Files {
    /// All of them, or the first that is bad.
    pub(super) fn read(settings: &Settings) -> Result<Self, LoadError> {
        let mut passwords = Passwords::default();
        if !settings.password_file.is_empty() {
            let (setting, file) = ("auth.password_file", &settings.password_file);
            let bytes = read(setting, file)?;
            let wrong = |why: String| LoadError { setting, file: file.clone(), why };
            let text = String::from_utf8(bytes).map_err(|_| wrong("not UTF-8".to_owned()))?;
            passwords = Passwords::parse(&text)
                .map_err(|why: password::FileError| wrong(why.to_string()))?;
        }
        let mut tokens =
            Tokens::new(&settings.token_issuer, &settings.token_audience, &settings.token_claim);
        for file in &settings.token_key_files {
            let setting = "auth.token_key_files";
            let wrong = |why: token::KeyError| LoadError {
                setting,
                file: file.clone(),
                why: why.to_string(),
            };
            tokens.add_public(&read(setting, file)?).map_err(wrong)?;
        }
        for file in &settings.token_secret_files {
            let setting = "auth.token_secret_files";
            let wrong = |why: token::KeyError| LoadError {
                setting,
                file: file.clone(),
                why: why.to_string(),
            };
            tokens.add_secret(&read(setting, file)?).map_err(wrong)?;
        }
        Ok(Self { settings: settings.clone(), passwords, tokens })
    }
}

fn read(setting: &'static str, file: &str) -> Result<Vec<u8>, LoadError> {
    let wrong = |why: String| LoadError { setting, file: file.to_owned(), why };
    let size = fs::metadata(file).map_err(|error| wrong(error.to_string()))?.len();
    if size > FILE_BYTES as u64 {
        return Err(wrong(format!("larger than {FILE_BYTES} bytes")));
    }
    warn_if_open(Path::new(file));
    fs::read(file).map_err(|error: io::Error| wrong(error.to_string()))
}

/// Says so when others on this machine can read a file with secrets.
pub fn warn_if_open(file: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    if let Ok(data) = fs::metadata(file)
        && data.permissions().mode() & 0o007 != 0
    {
        tracing::warn!(file = %file.display(), "everyone on this machine can read or write this file: chmod 600 it");
    }
}
