//! Reading settings: file < environment < flag.
//!
//! Each source is checked by itself, so that an error can name the file, the variable or the flag at fault.

use std::{
    marker::PhantomData,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use toml::{Table, Value};

use super::{Documented, Refused};

/// Variables that start so are settings: `TRIBUTARY_LOG__CACHE_BYTES` is `log.cache_bytes`.
const PREFIX: &str = "TRIBUTARY_";

/// Why settings are not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the settings file {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file says something that is no setting.
    #[error("settings file {}: {message}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Line, key, and what is allowed.
        message: String,
    },
    /// An environment variable or a flag does.
    #[error("{name}: {message}")]
    Key {
        /// The variable or flag.
        name: String,
        /// Key, and what is allowed.
        message: String,
    },
}

/// Collects settings from their sources, later ones over earlier ones. `T` was declared with
/// [`settings!`](crate::settings).
#[derive(Debug)]
pub struct Loader<T> {
    values: Table,
    defaults: Table,
    settings: PhantomData<T>,
}

impl<T: Default + Serialize + DeserializeOwned + Documented> Loader<T> {
    /// Only defaults.
    pub fn new() -> Self {
        let defaults = Table::try_from(T::default()).unwrap_or_default();
        Self { values: Table::new(), defaults, settings: PhantomData }
    }

    /// Takes a TOML file.
    pub fn file(mut self, path: &Path) -> Result<Self, ConfigError> {
        let wrong = |message: String| ConfigError::File { path: path.to_owned(), message };
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let settings: T = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        settings.check().map_err(|refused| wrong(refused.to_string()))?;
        let table: Table = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        merge(&mut self.values, table);
        Ok(self)
    }

    /// Takes settings that were read elsewhere; `name` stands for where in errors.
    pub fn table(mut self, name: &str, table: Table) -> Result<Self, ConfigError> {
        read::<T>(&table).map_err(|message| ConfigError::Key { name: name.to_owned(), message })?;
        merge(&mut self.values, table);
        Ok(self)
    }

    /// Takes the process's environment variables that start with `TRIBUTARY_`.
    pub fn environment(self) -> Result<Self, ConfigError> {
        self.variables(std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
        }))
    }

    /// Takes variables that start with `TRIBUTARY_`: `__` stands between section and key, case does not matter. Values
    /// are TOML, quotes around strings may be left out.
    pub fn variables(
        mut self,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        for (name, value) in variables {
            if let Some(key) = name.strip_prefix(PREFIX) {
                let key = key.to_lowercase().replace("__", ".");
                self.set(&name, &key, &value)?;
            }
        }
        Ok(self)
    }

    /// Takes a command line flag, if it was given: its name for errors, its dotted key, its value as text.
    pub fn flag(
        mut self,
        flag: &str,
        key: &str,
        value: Option<impl ToString>,
    ) -> Result<Self, ConfigError> {
        if let Some(value) = value {
            self.set(flag, key, &value.to_string())?;
        }
        Ok(self)
    }

    /// Takes `key=value` arguments of a flag that may be repeated (`--set`), the values as in variables.
    pub fn pairs(mut self, flag: &str, pairs: &[String]) -> Result<Self, ConfigError> {
        for pair in pairs {
            let name = format!("{flag} {pair}");
            let Some((key, value)) = pair.split_once('=') else {
                let message = "expected key=value, as in log.cache_bytes=1000000".to_owned();
                return Err(ConfigError::Key { name, message });
            };
            self.set(&name, key.trim(), value.trim())?;
        }
        Ok(self)
    }

    /// All together.
    pub fn load(self) -> Result<T, ConfigError> {
        read(&self.values)
            .map_err(|message| ConfigError::Key { name: "settings".to_owned(), message })
    }

    fn set(&mut self, name: &str, key: &str, text: &str) -> Result<(), ConfigError> {
        let wrong = |message| ConfigError::Key { name: name.to_owned(), message };
        let string = Value::String(text.to_owned());
        let value = match at(&self.defaults, key) {
            Some(Value::String(_)) => string,
            Some(_) => typed(text).unwrap_or(string),
            // No default to tell the type: what reads as a value may still have to be a string.
            None => {
                typed(text).filter(|v| read::<T>(&nested(key, v.clone())).is_ok()).unwrap_or(string)
            }
        };
        let table = nested(key, value);
        read::<T>(&table).map_err(wrong)?;
        merge(&mut self.values, table);
        Ok(())
    }
}

impl<T: Default + Serialize + DeserializeOwned + Documented> Default for Loader<T> {
    fn default() -> Self {
        Self::new()
    }
}

fn read<T: DeserializeOwned + Documented>(table: &Table) -> Result<T, String> {
    let settings: T = table
        .clone()
        .try_into()
        .map_err(|error: toml::de::Error| error.to_string().trim_end().replace('\n', ", "))?;
    settings.check().map_err(|refused: Refused| refused.to_string())?;
    Ok(settings)
}

/// `text` as a TOML value that is not a string.
fn typed(text: &str) -> Option<Value> {
    let mut table: Table = toml::from_str(&format!("value = {text}")).ok()?;
    if table.len() > 1 { None } else { table.remove("value") }
}

fn at<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        None => table.get(key),
        Some((section, rest)) => at(table.get(section)?.as_table()?, rest),
    }
}

/// A table that holds only `value`, under a dotted key.
fn nested(key: &str, value: Value) -> Table {
    let (first, value) = match key.split_once('.') {
        None => (key, value),
        Some((section, rest)) => (section, Value::Table(nested(rest, value))),
    };
    Table::from_iter([(first.to_owned(), value)])
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}
