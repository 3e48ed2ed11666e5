//! SCRAM-SHA-256 (RFC 5802, RFC 7677), the server's side: a client proves that it knows a password, and learns that we
//! know it too, without the password going over the wire.
//!
//! ```text
//! client: n,,n=USER,r=NONCE        server: r=NONCE+OURS,s=SALT,i=ITERATIONS
//! client: c=biws,r=BOTH,p=PROOF    server: v=SIGNATURE
//! ```
//! Pure: nonces and verifiers are handed in. Without channel binding (no `-PLUS`). Whoever has no verifier is asked like
//! everybody else and fails at the end like a wrong password ([`Strangers`]).
//! Change here: the messages, what is stored of a password. Not here: how often one may try (`identify`).

use std::{fmt, num::NonZeroU32};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use ring::{digest, hmac, pbkdf2};

use super::password::NAME_BYTES;

/// Its name among the authentication methods.
pub const METHOD: &str = "SCRAM-SHA-256";
/// What RFC 7677 demands at least (section 4).
pub const ITERATIONS_MIN: u32 = 4_096;
/// What is stored for a new password.
pub const ITERATIONS: u32 = 8_192;
/// A client has to do the work; more is no protection but a way to stop it.
pub const ITERATIONS_MAX: u32 = 1_000_000;
/// Characters of a nonce that a client may send.
const NONCE: usize = 256;
const KEY: usize = digest::SHA256_OUTPUT_LEN;

/// What is stored of a password: enough to check a proof, not to make one.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: [u8; KEY],
    server_key: [u8; KEY],
}

impl Verifier {
    /// Of a password; takes some milliseconds.
    pub fn new(password: &[u8], salt: Vec<u8>, iterations: u32) -> Self {
        let mut salted = [0; KEY];
        let rounds = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password, &mut salted);
        let stored_key = sha256(&hmac(&salted, b"Client Key"));
        Self { iterations, salt, stored_key, server_key: hmac(&salted, b"Server Key") }
    }

    /// Whether this is the password; takes some milliseconds.
    pub fn verify(&self, password: &[u8]) -> bool {
        let found = Self::new(password, self.salt.clone(), self.iterations);
        is_equal(&found.stored_key, &self.stored_key)
    }

    /// From a password file: `i=8192$<salt>$<StoredKey>$<ServerKey>`, base64 without padding.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('$');
        let iterations: u32 = parts.next()?.strip_prefix("i=")?.parse().ok()?;
        let mut next = || STANDARD_NO_PAD.decode(parts.next()?).ok();
        let (salt, stored_key, server_key) = (next()?, next()?, next()?);
        let legal = (ITERATIONS_MIN..=ITERATIONS_MAX).contains(&iterations)
            && (8..=64).contains(&salt.len())
            && parts.next().is_none();
        let (stored_key, server_key) = (stored_key.try_into().ok()?, server_key.try_into().ok()?);
        legal.then_some(Self { iterations, salt, stored_key, server_key })
    }

    /// What everybody may see of it.
    pub fn shape(&self) -> Shape {
        Shape { iterations: self.iterations, salt: self.salt.len() }
    }
}

/// As in a password file.
impl fmt::Display for Verifier {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes: &[u8]| STANDARD_NO_PAD.encode(bytes);
        let Self { iterations, salt, stored_key, server_key } = self;
        write!(out, "i={iterations}${}${}${}", text(salt), text(stored_key), text(server_key))
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Verifier(..)")
    }
}

/// How a verifier looks from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// Iterations.
    pub iterations: u32,
    /// Bytes of the salt.
    pub salt: usize,
}

/// Makes what those without a verifier are asked: the same for a name every time, and looking like that of the others.
pub struct Strangers {
    key: hmac::Key,
    shapes: Vec<Shape>,
}

impl Strangers {
    /// `key`: secret, the same after a restart. `shapes`: of all verifiers there are.
    pub fn new(key: &[u8], mut shapes: Vec<Shape>) -> Self {
        shapes.sort_unstable(); // The order in the file has to say nothing.
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key), shapes }
    }

    /// A verifier that nobody has a password for.
    pub fn verifier(&self, user: &str) -> Verifier {
        let part = |kind: &str| {
            let tag = hmac::sign(&self.key, format!("{kind}:{user}").as_bytes());
            tag.as_ref().try_into().unwrap_or([0; KEY])
        };
        let [a, b, c, d, ..] = part("shape");
        let number = u32::from_le_bytes([a, b, c, d]) as usize;
        let shape = self.shapes.get(number % self.shapes.len().max(1)).copied();
        let shape = shape.unwrap_or(Shape { iterations: ITERATIONS, salt: 16 });
        let salt =
            [part("salt"), part("more salt")].concat().into_iter().take(shape.salt).collect();
        let (stored_key, server_key) = (part("stored"), part("server"));
        Verifier { iterations: shape.iterations, salt, stored_key, server_key }
    }
}

/// A message that is not what RFC 5802 says, or a wrong proof. Which of them is nobody's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed;

/// A client's first message.
#[derive(Debug, PartialEq, Eq)]
pub struct First {
    /// Who it says it is.
    pub user: String,
    header: String,
    bare: String,
    nonce: String,
}

impl First {
    /// Reads `n,,n=user,r=nonce`.
    pub fn parse(message: &[u8]) -> Result<Self, Failed> {
        let message = std::str::from_utf8(message).map_err(|_| Failed)?;
        let (flag, rest) = message.split_once(',').ok_or(Failed)?;
        let (other, bare) = rest.split_once(',').ok_or(Failed)?;
        // `y`: it could bind the channel and thinks that we cannot, which is so. `p=`: it insists.
        if flag != "n" && flag != "y" {
            return Err(Failed);
        }
        let mut parts = bare.split(',');
        // A mandatory extension (`m=`) stands first, and we know none.
        let user = parts.next().and_then(|part| part.strip_prefix("n=")).ok_or(Failed)?;
        let user = unescaped(user)?;
        let nonce = parts.next().and_then(|part| part.strip_prefix("r=")).ok_or(Failed)?;
        let legal =
            (1..=NONCE).contains(&nonce.len()) && nonce.bytes().all(|b| b.is_ascii_graphic());
        let acts_as = match other.strip_prefix("a=") {
            Some(name) => unescaped(name)? == user, // Nobody acts as somebody else.
            None => other.is_empty(),
        };
        if !legal || !acts_as || user.is_empty() || user.len() > NAME_BYTES {
            return Err(Failed);
        }
        let header = format!("{flag},{other},");
        Ok(Self { user, header, bare: bare.to_owned(), nonce: nonce.to_owned() })
    }

    /// What the client is asked. `ours`: our part of the nonce, random, printable and without a comma.
    pub fn ask(self, ours: &str, verifier: Verifier) -> (Asked, String) {
        let First { user, header, bare, nonce } = self;
        let nonce = nonce + ours;
        let salt = STANDARD.encode(&verifier.salt);
        let question = format!("r={nonce},s={salt},i={}", verifier.iterations);
        let said = format!("{bare},{question}");
        (Asked { user, verifier, nonce, binding: STANDARD.encode(header), said }, question)
    }
}

/// A client that was asked for its proof.
#[derive(Debug)]
pub struct Asked {
    /// Who it says it is.
    pub user: String,
    /// What it is held to.
    pub verifier: Verifier,
    nonce: String,
    binding: String,
    said: String,
}

impl Asked {
    /// Checks `c=binding,r=nonce,p=proof`; gives our proof, `v=signature`.
    pub fn check(&self, message: &[u8]) -> Result<String, Failed> {
        let message = std::str::from_utf8(message).map_err(|_| Failed)?;
        let (stated, proof) = message.rsplit_once(",p=").ok_or(Failed)?;
        let mut parts = stated.split(',');
        let binding = parts.next().and_then(|part| part.strip_prefix("c=")).ok_or(Failed)?;
        let nonce = parts.next().and_then(|part| part.strip_prefix("r=")).ok_or(Failed)?;
        let proof = STANDARD.decode(proof).ok().and_then(|proof| <[u8; KEY]>::try_from(proof).ok());
        let proof = proof.ok_or(Failed)?;
        // Kafka CVE-2024-56128: the whole nonce, theirs and ours.
        if binding != self.binding || !is_equal(nonce.as_bytes(), self.nonce.as_bytes()) {
            return Err(Failed);
        }
        let said = format!("{},{stated}", self.said);
        let mut client_key = hmac(&self.verifier.stored_key, said.as_bytes());
        client_key.iter_mut().zip(proof).for_each(|(byte, proof)| *byte ^= proof);
        if !is_equal(&sha256(&client_key), &self.verifier.stored_key) {
            return Err(Failed);
        }
        let signature = hmac(&self.verifier.server_key, said.as_bytes());
        Ok(format!("v={}", STANDARD.encode(signature)))
    }
}

/// `=2C` and `=3D` stand for a comma and an equals sign.
fn unescaped(name: &str) -> Result<String, Failed> {
    let mut parts = name.split('=');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (sign, rest) = match (part.strip_prefix("2C"), part.strip_prefix("3D")) {
            (Some(rest), _) => (',', rest),
            (_, Some(rest)) => ('=', rest),
            _ => return Err(Failed),
        };
        out.push(sign);
        out.push_str(rest);
    }
    Ok(out)
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; KEY] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
    tag.as_ref().try_into().unwrap_or([0; KEY])
}

fn sha256(bytes: &[u8]) -> [u8; KEY] {
    digest::digest(&digest::SHA256, bytes).as_ref().try_into().unwrap_or([0; KEY])
}

/// Takes as long for any two values of one length.
pub(super) fn is_equal(one: &[u8], other: &[u8]) -> bool {
    let differences = one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b));
    one.len() == other.len() && std::hint::black_box(differences) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7677, section 3.
    const FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const OURS: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const QUESTION: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const LAST: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    const SIGNATURE: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    fn pencil() -> Verifier {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        Verifier::new(b"pencil", salt, 4_096)
    }

    fn asked() -> Asked {
        First::parse(FIRST.as_bytes()).unwrap().ask(OURS, pencil()).0
    }

    #[test]
    fn the_example_of_rfc_7677_comes_out() {
        let first = First::parse(FIRST.as_bytes()).unwrap();
        assert_eq!(first.user, "user");
        let (asked, question) = first.ask(OURS, pencil());
        assert_eq!(question, QUESTION);
        assert_eq!(asked.check(LAST.as_bytes()).as_deref(), Ok(SIGNATURE));
    }

    /// Kafka CVE-2024-56128: the nonce of the last message was not compared.
    #[test]
    fn a_proof_for_another_nonce_binding_or_password_is_none() {
        for wrong in [
            LAST.replace("hNlF$k0,p", "hNlF$k1,p"),
            LAST.replace("rOprNGfwEbeRWgbNEkqO%", "rOprNGfwEbeRWgbNEkqP%"),
            LAST.replace(&format!("rOprNGfwEbeRWgbNEkqO{OURS}"), "rOprNGfwEbeRWgbNEkqO"),
            LAST.replace("c=biws", "c=eSws"),
            LAST.replace("dHzb", "dHzc"),
            LAST.replace("p=dHzb", "p="),
            LAST.replace(",p=", ",q="),
            LAST.replace("c=biws,", ""),
            String::new(),
        ] {
            assert_eq!(asked().check(wrong.as_bytes()), Err(Failed), "{wrong}");
        }
        assert_eq!(asked().check(b"c=biws,r=\xFF,p=AA=="), Err(Failed));
        let other = Verifier::new(b"Pencil", pencil().salt, 4_096);
        let asked = First::parse(FIRST.as_bytes()).unwrap().ask(OURS, other).0;
        assert_eq!(asked.check(LAST.as_bytes()), Err(Failed));
    }

    #[test]
    fn first_messages_are_taken_as_the_standard_says_and_no_others() {
        let user = |text: &str| First::parse(text.as_bytes()).map(|first| first.user);
        for (message, name) in [
            ("y,,n=user,r=x", "user"),
            ("n,a=user,n=user,r=x", "user"),
            ("n,,n=a=2Cb=3Dc,r=x,ext=1", "a,b=c"),
            ("n,,n=\u{fc},r=x", "\u{fc}"),
        ] {
            assert_eq!(user(message).as_deref(), Ok(name), "{message}");
        }
        let longest = "u".repeat(NAME_BYTES);
        assert_eq!(user(&format!("n,,n={longest},r=x")).as_ref(), Ok(&longest));
        let long_name = format!("n,,n={longest}u,r=x");
        let long = format!("n,,n=user,r={}", "x".repeat(NONCE + 1));
        for message in [
            "",
            "n",
            "n,,",
            "n,,n=,r=x",
            "n,,n=user",
            "n,,n=user,r=",
            "n,,n=user,r=a b",
            "n,,r=x,n=user",
            "n,,m=1,n=user,r=x",
            "n,,n=a=2cb,r=x",
            "n,,n=a=,r=x",
            "n,a=root,n=user,r=x",
            "n,x,n=user,r=x",
            "p=tls-unique,,n=user,r=x",
            "z,,n=user,r=x",
            &long,
            &long_name,
        ] {
            assert_eq!(user(message), Err(Failed), "{message}");
        }
        assert_eq!(First::parse(b"n,,n=\xFF,r=x"), Err(Failed));
    }

    #[test]
    fn what_is_stored_is_read_again_and_says_nothing_in_logs() {
        let text = pencil().to_string();
        assert_eq!(Verifier::parse(&text), Some(pencil()));
        assert!(pencil().verify(b"pencil") && !pencil().verify(b"pencil "));
        assert_eq!(format!("{:?}", pencil()), "Verifier(..)");
        for wrong in [
            text.replace("i=4096", "i=4095"),
            text.replace("i=4096", "i=1000001"),
            text.replace("i=", ""),
            text.replace("W22ZaJ0SNY7soEsUEjb6gQ", "W22Z"),
            text.clone() + "$x",
            text.get(..text.len() - 2).unwrap().to_owned(),
        ] {
            assert_eq!(Verifier::parse(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_stranger_looks_like_everybody_else_and_always_the_same() {
        let shapes =
            vec![Shape { iterations: 5_000, salt: 24 }, Shape { iterations: 4_096, salt: 16 }];
        let mut turned = shapes.clone();
        turned.reverse();
        let (one, same) = (Strangers::new(b"key", shapes.clone()), Strangers::new(b"key", turned));
        let mut seen = Vec::new();
        for number in 0..50 {
            let name = format!("nobody {number}");
            let verifier = one.verifier(&name);
            assert_eq!(verifier, same.verifier(&name));
            assert_eq!(verifier.salt.len(), verifier.shape().salt);
            assert!(shapes.contains(&verifier.shape()) && !seen.contains(&verifier.salt));
            seen.push(verifier.salt);
        }
        let other = Strangers::new(b"other", shapes);
        assert_ne!(other.verifier("ann").salt, one.verifier("ann").salt);
        let alone = Strangers::new(b"key", Vec::new()).verifier("ann").shape();
        assert_eq!(alone, Shape { iterations: ITERATIONS, salt: 16 });
    }
}
