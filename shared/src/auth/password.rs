//! The password file, and what it says of one password.
//!
//! ```text
//! ann:$argon2id$v=19$m=19456,t=2,p=1$<salt>$<hash>      a person: slow on purpose, two at a time
//! gw-7:$hmac-sha256$<salt>$<tag>                        a device: its secret was generated here, so a fast check is safe
//! bob:$scram-sha-256$i=8192$<salt>$<StoredKey>$<ServerKey>  a person that proves the password without sending it
//! anonymous:$scram-key$<key>                            nobody: makes up what unknown names are asked (`scram`)
//! ```
//! One entry a line, salt and hash in base64 without padding; empty lines and lines that start with `#` are skipped.
//! Change here: forms of stored passwords. Not here: when and how often a check may run (`identify`).

use std::{
    collections::HashMap,
    fmt::{self, Write as _},
};

use argon2::{Algorithm, Argon2, Params, Version};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use ring::hmac;

use super::scram::{self, Strangers, Verifier, is_equal};

/// Bytes of a password file.
pub const FILE_BYTES: usize = 16 * 1024 * 1024;
/// Bytes of a user's name.
pub const NAME_BYTES: usize = 256;
/// Cost of a person's password: OWASP's first choice for argon2id, 19 MiB and two passes.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
/// What an entry of another program may ask for at most, so that a file cannot exhaust the gateway.
const MEMORY_KIB_MAX: u32 = 64 * 1024;
const PASSES_MAX: u32 = 10;
const LANES_MAX: u32 = 4;
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;
/// Bytes of randomness in a generated secret.
const SECRET_BYTES: usize = 24;

const PERSON: &str = "$argon2id$v=19$";
const DEVICE: &str = "$hmac-sha256$";
const SCRAM: &str = "$scram-sha-256$";
const SCRAM_KEY: &str = "$scram-key$";

/// A stored password: enough to check one, not to know it.
#[derive(Clone, PartialEq, Eq)]
pub enum Stored {
    /// Chosen by a person.
    Person {
        /// KiB, passes, lanes.
        cost: (u32, u32, u32),
        /// Random.
        salt: Vec<u8>,
        /// argon2id, version 19.
        hash: Vec<u8>,
    },
    /// Generated for a device.
    Device {
        /// Random.
        salt: Vec<u8>,
        /// HMAC-SHA-256 of the secret under the salt.
        tag: Vec<u8>,
    },
    /// Chosen by a person, for SCRAM-SHA-256; the password itself is taken too.
    Scram(Verifier),
    /// Of `anonymous` only: the secret from which unknown names are asked in SCRAM.
    Key(Vec<u8>),
}

/// All users of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Passwords {
    users: HashMap<String, Stored>,
    people: bool,
    scram: bool,
    /// A [`Stored::Key`].
    key: Option<Stored>,
}

/// Why a password file is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct FileError {
    /// From 1.
    pub line: usize,
    /// What is wrong there.
    pub why: Fault,
}

/// What is wrong with a name or an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Fault {
    #[error("expected name:password-hash")]
    NoColon,
    #[error("a name has 1 to {NAME_BYTES} bytes, no colon, no *, no control character")]
    Name,
    #[error("`anonymous` is what rules call clients without a name")]
    Anonymous,
    #[error(
        "expected $scram-sha-256$i={}..{}$salt$key$key",
        scram::ITERATIONS_MIN,
        scram::ITERATIONS_MAX
    )]
    Scram,
    #[error("the name occurs twice")]
    Twice,
    #[error(
        "the password is not hashed as $argon2id$v=19$, $hmac-sha256$ or $scram-sha-256$; see tributary-edge passwd"
    )]
    Form,
    #[error(
        "the hash asks for more than {MEMORY_KIB_MAX} KiB, {PASSES_MAX} passes or {LANES_MAX} lanes"
    )]
    Cost,
}

/// Nothing can be stored for a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// The system has no randomness to give.
    #[error("no randomness from the system")]
    Randomness,
    /// SCRAM with characters that clients treat differently.
    #[error("a password for SCRAM is made of printable ASCII characters")]
    NotAscii,
    /// Too long, or no memory.
    #[error("the password cannot be hashed")]
    Password,
}

impl Passwords {
    /// Reads a file's text.
    pub fn parse(text: &str) -> Result<Self, FileError> {
        let mut all = Self::default();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim_end_matches('\r');
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |why| FileError { line: at + 1, why };
            let (name, stored) = entry(line).map_err(wrong)?;
            if let Stored::Key(_) = stored {
                if all.key.replace(stored).is_some() {
                    return Err(wrong(Fault::Twice));
                }
                continue;
            }
            all.people |= matches!(stored, Stored::Person { .. });
            all.scram |= matches!(stored, Stored::Scram(_));
            if all.users.insert(name.to_owned(), stored).is_some() {
                return Err(wrong(Fault::Twice));
            }
        }
        Ok(all)
    }

    /// What is stored for a user.
    pub fn get(&self, user: &str) -> Option<&Stored> {
        self.users.get(user)
    }

    /// Some entry is a person's: then every failed check has to take as long as a person's.
    pub fn has_people(&self) -> bool {
        self.people
    }

    /// Somebody can prove a name by SCRAM; then every failed check has to take as long as one of its passwords.
    pub fn has_scram(&self) -> bool {
        self.scram
    }

    /// Those who are not in the file; `spare`: secret, for a file without one of its own.
    pub fn strangers(&self, spare: &[u8]) -> Strangers {
        let shapes = self.users.values().filter_map(|stored| match stored {
            Stored::Scram(verifier) => Some(verifier.shape()),
            _ => None,
        });
        let key = match &self.key {
            Some(Stored::Key(key)) => key,
            _ => spare,
        };
        Strangers::new(key, shapes.collect())
    }

    /// The file has a secret for [`Passwords::strangers`].
    pub fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// Users.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// No users.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }
}

fn entry(line: &str) -> Result<(&str, Stored), Fault> {
    let (name, stored) = line.split_once(':').ok_or(Fault::NoColon)?;
    let stored = Stored::parse(stored.trim_end());
    match (check_name(name), &stored) {
        (Err(Fault::Anonymous), Ok(Stored::Key(_))) => {}
        (Ok(()), Ok(Stored::Key(_))) => return Err(Fault::Form),
        (checked, _) => checked?,
    }
    Ok((name, stored?))
}

/// A name that a password file can hold.
pub fn check_name(name: &str) -> Result<(), Fault> {
    let illegal = |c: char| matches!(c, ':' | '*') || c.is_control();
    if name.is_empty() || name.len() > NAME_BYTES || name.contains(illegal) || name.starts_with('#')
    {
        return Err(Fault::Name);
    }
    if name == super::ANONYMOUS { Err(Fault::Anonymous) } else { Ok(()) }
}

impl Stored {
    /// Hashes a person's password; takes about a tenth of a second.
    pub fn for_person(password: &[u8]) -> Result<Self, HashError> {
        let cost = (MEMORY_KIB, PASSES, 1);
        let salt = random::<SALT_BYTES>()?.to_vec();
        let hash = argon2id(cost, &salt, password, HASH_BYTES).ok_or(HashError::Password)?;
        Ok(Self::Person { cost, salt, hash })
    }

    /// Makes a device's secret and what is stored of it. The secret itself is nowhere else.
    pub fn for_new_device() -> Result<(String, Self), HashError> {
        let secret = URL_SAFE_NO_PAD.encode(random::<SECRET_BYTES>()?);
        let salt = random::<SALT_BYTES>()?.to_vec();
        let tag = hmac::sign(&device_key(&salt), secret.as_bytes()).as_ref().to_vec();
        Ok((secret, Self::Device { salt, tag }))
    }

    /// Makes what SCRAM needs of a person's password. Printable ASCII only: clients are to bring other characters into one
    /// form (SASLprep), not all do, and the password would be right in one and wrong in another.
    pub fn for_scram(password: &[u8]) -> Result<Self, HashError> {
        if !password.iter().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(HashError::NotAscii);
        }
        let salt = random::<SALT_BYTES>()?.to_vec();
        Ok(Self::Scram(Verifier::new(password, salt, scram::ITERATIONS)))
    }

    /// A secret for [`Passwords::strangers`].
    pub fn for_strangers() -> Result<Self, HashError> {
        Ok(Self::Key(random::<HASH_BYTES>()?.to_vec()))
    }

    /// What a person's check costs when there is nobody to check: always fails, after the same work.
    pub fn nobody() -> Self {
        let hash = vec![0; HASH_BYTES];
        Self::Person { cost: (MEMORY_KIB, PASSES, 1), salt: vec![0; SALT_BYTES], hash }
    }

    /// Reads the part of a line behind the name.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        if let Some(rest) = text.strip_prefix(DEVICE) {
            let (salt, tag) = pair(rest)?;
            return if tag.len() == HASH_BYTES {
                Ok(Self::Device { salt, tag })
            } else {
                Err(Fault::Form)
            };
        }
        if let Some(rest) = text.strip_prefix(SCRAM) {
            return Verifier::parse(rest).map(Self::Scram).ok_or(Fault::Scram);
        }
        if let Some(rest) = text.strip_prefix(SCRAM_KEY) {
            let key = STANDARD_NO_PAD.decode(rest).map_err(|_| Fault::Form)?;
            return if key.len() == HASH_BYTES { Ok(Self::Key(key)) } else { Err(Fault::Form) };
        }
        let rest = text.strip_prefix(PERSON).ok_or(Fault::Form)?;
        let (cost, rest) = rest.split_once('$').ok_or(Fault::Form)?;
        let (salt, hash) = pair(rest)?;
        let mut costs = cost.split(',');
        let mut next = |key| {
            let value = costs.next().and_then(|cost| cost.strip_prefix(key)).ok_or(Fault::Form)?;
            value.parse::<u32>().map_err(|_| Fault::Form)
        };
        let cost = (next("m=")?, next("t=")?, next("p=")?);
        if costs.next().is_some() {
            return Err(Fault::Form);
        }
        if cost.0 > MEMORY_KIB_MAX || cost.1 > PASSES_MAX || cost.2 > LANES_MAX {
            return Err(Fault::Cost);
        }
        let legal = Params::new(cost.0, cost.1, cost.2, Some(hash.len())).is_ok();
        if legal && salt.len() >= 8 && (16..=64).contains(&hash.len()) {
            Ok(Self::Person { cost, salt, hash })
        } else {
            Err(Fault::Form)
        }
    }

    /// Whether this is the password. For a person: about a tenth of a second of work and 19 MiB, so not in an async task.
    pub fn verify(&self, password: &[u8]) -> bool {
        match self {
            Self::Device { salt, tag } => hmac::verify(&device_key(salt), password, tag).is_ok(),
            Self::Scram(verifier) => verifier.verify(password),
            Self::Key(_) => false,
            Self::Person { cost, salt, hash } => {
                let Some(found) = argon2id(*cost, salt, password, hash.len()) else { return false };
                is_equal(&found, hash)
            }
        }
    }
}

fn argon2id(cost: (u32, u32, u32), salt: &[u8], password: &[u8], bytes: usize) -> Option<Vec<u8>> {
    let params = Params::new(cost.0, cost.1, cost.2, Some(bytes)).ok()?;
    let mut hash = vec![0; bytes];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(password, salt, &mut hash)
        .ok()?;
    Some(hash)
}

fn device_key(salt: &[u8]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, salt)
}

fn pair(text: &str) -> Result<(Vec<u8>, Vec<u8>), Fault> {
    let (salt, hash) = text.split_once('$').ok_or(Fault::Form)?;
    let decode = |text: &str| STANDARD_NO_PAD.decode(text).map_err(|_| Fault::Form);
    let (salt, hash) = (decode(salt)?, decode(hash)?);
    if salt.is_empty() || salt.len() > 64 { Err(Fault::Form) } else { Ok((salt, hash)) }
}

fn random<const N: usize>() -> Result<[u8; N], HashError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| HashError::Randomness)?;
    Ok(bytes)
}

/// As in the file.
impl fmt::Display for Stored {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes: &Vec<u8>| STANDARD_NO_PAD.encode(bytes);
        match self {
            Self::Device { salt, tag } => write!(out, "{DEVICE}{}${}", text(salt), text(tag)),
            Self::Scram(verifier) => write!(out, "{SCRAM}{verifier}"),
            Self::Key(key) => write!(out, "{SCRAM_KEY}{}", text(key)),
            Self::Person { cost: (memory, passes, lanes), salt, hash } => {
                let (salt, hash) = (text(salt), text(hash));
                write!(out, "{PERSON}m={memory},t={passes},p={lanes}${salt}${hash}")
            }
        }
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Person { .. } => "Person(..)",
            Self::Device { .. } => "Device(..)",
            Self::Scram(_) => "Scram(..)",
            Self::Key(_) => "Key(..)",
        })
    }
}

/// A file's text with a user's entry put in (`Some`) or taken out; says whether there was one. Everything else stays as it
/// is, comments too.
pub fn edited(text: &str, user: &str, stored: Option<&Stored>) -> (String, bool) {
    let mut found = false;
    let mut out = String::with_capacity(text.len() + 128);
    for line in text.lines() {
        let is_user =
            !line.starts_with('#') && line.split_once(':').is_some_and(|(name, _)| name == user);
        if !is_user {
            out.push_str(line);
            out.push('\n');
        } else if let (false, Some(stored)) = (found, stored) {
            let _ = writeln!(out, "{user}:{stored}"); // A String takes everything.
        }
        found |= is_user;
    }
    if let (false, Some(stored)) = (found, stored) {
        let _ = writeln!(out, "{user}:{stored}"); // A String takes everything.
    }
    (out, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by the reference implementation's command line tool (phc-winner-argon2): `argon2 somesalt -id -m 12 -t 2`.
    const CHEAP: &str =
        "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";

    #[test]
    fn hashes_of_the_reference_implementation_are_understood() {
        // Test vector of phc-winner-argon2 (test.c): m = 2^8, t = 2, p = 1, "password", "somesalt".
        let stored = Stored::parse(CHEAP).unwrap();
        assert!(stored.verify(b"password"));
        assert!(!stored.verify(b"Password"));
        assert!(!stored.verify(b""));
        assert_eq!(stored.to_string(), CHEAP);
    }

    #[test]
    fn what_is_made_here_is_read_and_verified_here() {
        let person = Stored::for_person("pässword".as_bytes()).unwrap();
        assert!(person.to_string().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        assert_ne!(person, Stored::for_person("pässword".as_bytes()).unwrap(), "salted");
        let (secret, device) = Stored::for_new_device().unwrap();
        assert_eq!(secret.len(), 32);
        for (stored, password) in [(person, "pässword"), (device, secret.as_str())] {
            let again = Stored::parse(&stored.to_string()).unwrap();
            assert_eq!(again, stored);
            assert!(again.verify(password.as_bytes()));
            assert!(!again.verify(b"wrong"));
            assert!(!format!("{stored:?}").contains("=="), "nothing of it in logs");
        }
        assert!(!Stored::nobody().verify(b""));
    }

    #[test]
    fn a_file_is_read_with_comments_and_line_ends_of_any_system() {
        let (_, device) = Stored::for_new_device().unwrap();
        let text = format!("# people\r\nann:{CHEAP}\r\n\n  \n#x:y\ngw 7:{device}\n");
        let file = Passwords::parse(&text).unwrap();
        assert_eq!((file.len(), file.has_people()), (2, true));
        assert!(file.get("ann").unwrap().verify(b"password"));
        assert_eq!(file.get("gw 7"), Some(&device));
        assert_eq!(file.get("bob"), None);
        assert!(Passwords::parse("").unwrap().is_empty());
    }

    #[test]
    fn a_bad_line_is_named_and_the_whole_file_refused() {
        let long = format!("{}:{CHEAP}", "x".repeat(257));
        let greedy = CHEAP.replace("m=256", "m=1048576");
        let odd = CHEAP.replace("t=2", "t=2,x=1");
        for (line, why) in [
            ("ann", Fault::NoColon),
            (":x", Fault::Name),
            (&format!("a*:{CHEAP}"), Fault::Name),
            (&format!("a\u{1}:{CHEAP}"), Fault::Name),
            (&long, Fault::Name),
            (&format!("anonymous:{CHEAP}"), Fault::Anonymous),
            (&format!("bob:{CHEAP}"), Fault::Twice),
            ("ann:password", Fault::Form),
            ("ann:", Fault::Form),
            ("ann:$7$101$salt$hash", Fault::Form),
            ("ann:$argon2i$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR", Fault::Form),
            ("ann:$hmac-sha256$c29tZXNhbHQ$c2hvcnQ", Fault::Form),
            ("ann:$hmac-sha256$c29tZXNhbHQ", Fault::Form),
            ("ann:$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$", Fault::Form),
            (&format!("ann:{greedy}"), Fault::Cost),
            (&format!("ann:{odd}"), Fault::Form),
        ] {
            let text = format!("bob:{CHEAP}\n{line}\n");
            assert_eq!(Passwords::parse(&text), Err(FileError { line: 2, why }), "{line}");
        }
    }

    #[test]
    fn editing_changes_one_user_and_nothing_else() {
        let (_, device) = Stored::for_new_device().unwrap();
        let text = format!("# head\nann:{CHEAP}\n#ann:old\nbob:{CHEAP}\n");
        let (changed, found) = edited(&text, "ann", Some(&device));
        assert!(found);
        assert_eq!(changed, format!("# head\nann:{device}\n#ann:old\nbob:{CHEAP}\n"));
        let (removed, found) = edited(&changed, "ann", None);
        assert!(found);
        assert_eq!(removed, format!("# head\n#ann:old\nbob:{CHEAP}\n"));
        let (added, found) = edited(&removed, "carl", Some(&device));
        assert!(!found);
        assert_eq!(added, format!("{removed}carl:{device}\n"));
        assert_eq!(edited("", "ann", None), (String::new(), false));
    }
}
