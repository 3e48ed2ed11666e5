//! The sub-commands that an operator reaches for, beside `serve`.
//!
//! ```text
//! check passwd    settings in plain words; the password file
//! enrol           a certificate for the way to the cloud
//! status          what a running edge does
//! doctor          what an edge needs, each thing looked at
//! quarantine      what the cloud refused for good
//! sub pub         an MQTT client for a quick look
//! ```
//! Each file holds one command with its arguments. Exit codes: 0 done, 1 it could not be done, 2 wrong arguments, 3 a broker said
//! no, 27 the time was over (as mosquitto's clients). Change here: what commands have in common. Not here: starting (`main`).

pub mod check;
mod client;
pub mod doctor;
pub mod enrol;
mod http;
pub mod passwd;
pub mod publish;
pub mod quarantine;
pub mod serve;
pub mod status;
pub mod sub;

use std::{fmt::Display, io::Write as _};

/// Why a command did not do what it was asked for. One sentence, and the exit code of the process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Failed {
    /// Exit code.
    pub code: u8,
    why: String,
}

impl Failed {
    /// It could not be done.
    pub(crate) fn cannot(why: impl Display) -> Self {
        Self { code: 1, why: why.to_string() }
    }

    /// A broker said no.
    pub(crate) fn refused(why: impl Display) -> Self {
        Self { code: 3, why: why.to_string() }
    }

    /// It took longer than was asked for.
    pub(crate) fn late(why: impl Display) -> Self {
        Self { code: 27, why: why.to_string() }
    }
}

/// To stdout. `false`: nobody reads it any more.
pub(crate) fn say(bytes: &[u8]) -> Result<bool, Failed> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failed::cannot(format_args!("cannot write: {error}"))),
    }
}

/// To stderr, a line.
pub(crate) fn note(text: &str) {
    // Nobody left to be told is no reason to stop.
    let _ = writeln!(std::io::stderr().lock(), "tributary-edge: {text}");
}
