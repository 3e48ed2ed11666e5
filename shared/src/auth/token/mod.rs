//! JSON Web Tokens (RFC 7519) as proof of a name, checked against keys in local files.
//!
//! A key has exactly one algorithm, fixed when it is read, and a token is only ever tried with keys of the algorithm it
//! names: there is no `none`, and a public key is never taken for a shared secret. Nothing in a token makes us fetch or
//! read anything (`jku`, `x5u`, `jwk` are ignored; `crit` is refused).
//! Change here: algorithms, claims. Not here: where a token is found in a protocol (`identify`).

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytestring::ByteString;
use ring::{
    digest, hmac,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
        RSA_PSS_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
    },
};
use rustls::pki_types::{SubjectPublicKeyInfoDer, pem::PemObject as _};
use serde::Deserialize;
use serde_json::Value;
use x509_cert::{
    der::{Decode as _, oid::ObjectIdentifier},
    spki::SubjectPublicKeyInfoRef,
};

/// Bytes of a token.
pub const TOKEN_BYTES: usize = 8 * 1024;
/// Keys of all files together.
const KEYS: usize = 64;
/// Bytes of a shared secret at least: as many as its hash has (RFC 7518, 3.2).
const SECRET_BYTES: usize = 32;
/// Clocks differ by so much.
const LEEWAY_S: i64 = 60;

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const ELLIPTIC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const EDWARDS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// What tokens are checked against.
#[derive(Debug)]
pub struct Tokens {
    keys: Vec<Key>,
    issuer: Option<String>,
    audience: Option<String>,
    claim: String,
}

/// A verified token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Whom it names.
    pub principal: ByteString,
    /// Wall ms when it is worth nothing any more.
    pub expires_ms: i64,
    /// What it was checked against.
    pub by: Trust,
}

/// Stands for a key, and for what is demanded of tokens beside its signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trust([u8; digest::SHA256_OUTPUT_LEN]);

/// Why a token proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Refused {
    #[error("not a token")]
    Form,
    #[error("no key for its algorithm and key id")]
    NoKey,
    #[error("wrong signature")]
    Signature,
    #[error("no expiry")]
    NoExpiry,
    #[error("expired")]
    Expired,
    #[error("not valid yet")]
    Early,
    #[error("another issuer")]
    Issuer,
    #[error("another audience")]
    Audience,
    #[error("names nobody")]
    Nobody,
}

/// Why a key file is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum KeyError {
    #[error("a shared secret has at least {SECRET_BYTES} bytes")]
    ShortSecret,
    #[error("a PEM text is no shared secret")]
    PemSecret,
    #[error("neither a PEM public key (BEGIN PUBLIC KEY) nor a JSON web key set")]
    Form,
    #[error("only RSA, P-256, P-384 and Ed25519 keys are taken")]
    Kind,
    #[error("key {0:?}: {1}")]
    Jwk(String, &'static str),
    #[error("more than {KEYS} keys")]
    TooMany,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Hs256,
    Rs256,
    Ps256,
    Es256,
    Es384,
    EdDsa,
}

#[derive(Debug)]
struct Key {
    algorithm: Algorithm,
    id: Option<String>,
    form: Form,
}

enum Form {
    Secret(hmac::Key),
    /// As ring wants it.
    Public(Vec<u8>),
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
}

impl std::fmt::Debug for Form {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(if matches!(self, Self::Secret(_)) { "Secret" } else { "Public" })
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

impl Tokens {
    /// Without keys. `issuer` must be a token's `iss`, empty: anything; `audience` must be in its `aud`, empty: a token that
    /// has one is meant for somebody else; `claim` holds the name, empty: `sub`.
    pub fn new(issuer: &str, audience: &str, claim: &str) -> Self {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let (issuer, audience) = (some(issuer), some(audience));
        let claim = some(claim).unwrap_or_else(|| "sub".to_owned());
        Self { keys: Vec::new(), issuer, audience, claim }
    }

    /// Takes the contents of a file with a shared secret; a line end after it does not count.
    pub fn add_secret(&mut self, file: &[u8]) -> Result<(), KeyError> {
        let secret = file.strip_suffix(b"\n").unwrap_or(file);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        if secret.windows(10).any(|part| part == b"-----BEGIN") {
            return Err(KeyError::PemSecret);
        }
        if secret.len() < SECRET_BYTES {
            return Err(KeyError::ShortSecret);
        }
        let form = Form::Secret(hmac::Key::new(hmac::HMAC_SHA256, secret));
        self.add(Key { algorithm: Algorithm::Hs256, id: None, form })
    }

    /// Takes the contents of a file with public keys: PEM, or a JSON web key set (RFC 7517).
    pub fn add_public(&mut self, file: &[u8]) -> Result<(), KeyError> {
        if let Ok(Value::Object(set)) = serde_json::from_slice(file) {
            let keys = set.get("keys").and_then(Value::as_array).ok_or(KeyError::Form)?;
            return keys.iter().try_for_each(|key| self.add(from_jwk(key)?));
        }
        let mut found = false;
        for info in SubjectPublicKeyInfoDer::pem_slice_iter(file) {
            self.add(from_info(&info.map_err(|_| KeyError::Form)?)?)?;
            found = true;
        }
        if found { Ok(()) } else { Err(KeyError::Form) }
    }

    fn add(&mut self, key: Key) -> Result<(), KeyError> {
        if self.keys.len() >= KEYS {
            return Err(KeyError::TooMany);
        }
        self.keys.push(key);
        Ok(())
    }

    /// Keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// No token can be verified.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whom a token names.
    pub fn verify(&self, token: &str, wall_ms: i64) -> Result<Token, Refused> {
        if token.len() > TOKEN_BYTES {
            return Err(Refused::Form);
        }
        let (signed, mac) = token.rsplit_once('.').ok_or(Refused::Form)?;
        let (header, claims) = signed.split_once('.').ok_or(Refused::Form)?;
        let header: Header = json(header)?;
        if header.crit.is_some() {
            return Err(Refused::Form);
        }
        let algorithm = Algorithm::named(&header.alg).ok_or(Refused::NoKey)?;
        let mac = URL_SAFE_NO_PAD.decode(mac).map_err(|_| Refused::Form)?;
        let mut keys = self.keys.iter().filter(|key| key.fits(algorithm, header.kid.as_deref()));
        let mut refused = Refused::NoKey;
        let key = keys.find(|key| {
            refused = Refused::Signature;
            key.verify(signed.as_bytes(), &mac)
        });
        let key = key.ok_or(refused)?;
        self.claims(&json(claims)?, key, wall_ms)
    }

    /// What a token was checked against is still here: it would be taken again.
    pub fn trusts(&self, by: Trust) -> bool {
        self.keys.iter().any(|key| self.trust(key) == by)
    }

    fn trust(&self, key: &Key) -> Trust {
        let mut all = digest::Context::new(&digest::SHA256);
        let mut add = |part: &[u8]| {
            all.update(&(part.len() as u64).to_le_bytes());
            all.update(part);
        };
        for text in [&self.issuer, &self.audience, &key.id] {
            add(&[u8::from(text.is_some())]);
            add(text.as_deref().unwrap_or("").as_bytes());
        }
        add(self.claim.as_bytes());
        add(&[key.algorithm as u8]);
        match &key.form {
            Form::Secret(secret) => add(hmac::sign(secret, b"which key").as_ref()),
            Form::Public(key) => add(key),
            Form::Rsa { n, e } => {
                add(n);
                add(e);
            }
        }
        Trust(all.finish().as_ref().try_into().unwrap_or_default())
    }

    fn claims(&self, claims: &Value, key: &Key, wall_ms: i64) -> Result<Token, Refused> {
        let expires_s = seconds(claims.get("exp").ok_or(Refused::NoExpiry)?)?;
        let expires_ms = expires_s.saturating_add(LEEWAY_S).saturating_mul(1000);
        if expires_ms <= wall_ms {
            return Err(Refused::Expired);
        }
        if let Some(from) = claims.get("nbf") {
            let from_s = seconds(from)?;
            if from_s.saturating_sub(LEEWAY_S).saturating_mul(1000) > wall_ms {
                return Err(Refused::Early);
            }
        }
        let issuer = claims.get("iss").and_then(Value::as_str);
        if self.issuer.is_some() && self.issuer.as_deref() != issuer {
            return Err(Refused::Issuer);
        }
        let meant = match (claims.get("aud"), &self.audience) {
            (None, None) => true,
            (Some(Value::String(one)), Some(us)) => one == us,
            (Some(Value::Array(many)), Some(us)) => many.iter().any(|one| one == us.as_str()),
            _ => false,
        };
        if !meant {
            return Err(Refused::Audience);
        }
        let name = claims.get(&self.claim).and_then(Value::as_str).ok_or(Refused::Nobody)?;
        if !super::is_principal(name) {
            return Err(Refused::Nobody);
        }
        Ok(Token { principal: name.into(), expires_ms, by: self.trust(key) })
    }
}

fn json<T: serde::de::DeserializeOwned>(part: &str) -> Result<T, Refused> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| Refused::Form)?;
    serde_json::from_slice(&bytes).map_err(|_| Refused::Form)
}

/// A time; a fraction counts as nothing.
fn seconds(value: &Value) -> Result<i64, Refused> {
    let fraction = || value.as_f64().filter(|value| value.is_finite()).map(|value| value as i64);
    value.as_i64().or_else(fraction).ok_or(Refused::Form)
}

impl Algorithm {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "HS256" => Self::Hs256,
            "RS256" => Self::Rs256,
            "PS256" => Self::Ps256,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }
}

impl Key {
    /// A key id counts where both have one.
    fn fits(&self, algorithm: Algorithm, id: Option<&str>) -> bool {
        let differ = |(own, other): (&str, &str)| own != other;
        self.algorithm == algorithm && !self.id.as_deref().zip(id).is_some_and(differ)
    }

    fn verify(&self, signed: &[u8], mac: &[u8]) -> bool {
        let public = |algorithm: &'static dyn VerificationAlgorithm| match &self.form {
            Form::Public(key) => UnparsedPublicKey::new(algorithm, key).verify(signed, mac).is_ok(),
            Form::Secret(_) | Form::Rsa { .. } => false,
        };
        match (self.algorithm, &self.form) {
            (Algorithm::Hs256, Form::Secret(key)) => hmac::verify(key, signed, mac).is_ok(),
            (Algorithm::Rs256, Form::Rsa { n, e }) => {
                let key = RsaPublicKeyComponents { n, e };
                key.verify(&RSA_PKCS1_2048_8192_SHA256, signed, mac).is_ok()
            }
            (Algorithm::Ps256, Form::Rsa { n, e }) => {
                let key = RsaPublicKeyComponents { n, e };
                key.verify(&RSA_PSS_2048_8192_SHA256, signed, mac).is_ok()
            }
            (Algorithm::Hs256 | Algorithm::Ps256, _) => false,
            (Algorithm::Rs256, _) => public(&RSA_PKCS1_2048_8192_SHA256),
            (Algorithm::Es256, _) => public(&ECDSA_P256_SHA256_FIXED),
            (Algorithm::Es384, _) => public(&ECDSA_P384_SHA384_FIXED),
            (Algorithm::EdDsa, _) => public(&ED25519),
        }
    }
}

/// From a PEM's contents. RSA is RS256: a key set says it where it is something else.
fn from_info(der: &[u8]) -> Result<Key, KeyError> {
    let info = SubjectPublicKeyInfoRef::from_der(der).map_err(|_| KeyError::Form)?;
    let curve = || info.algorithm.parameters_oid().map_err(|_| KeyError::Kind);
    let algorithm = match info.algorithm.oid {
        RSA => Algorithm::Rs256,
        EDWARDS => Algorithm::EdDsa,
        ELLIPTIC => match curve()? {
            P256 => Algorithm::Es256,
            P384 => Algorithm::Es384,
            _ => return Err(KeyError::Kind),
        },
        _ => return Err(KeyError::Kind),
    };
    let key = info.subject_public_key.as_bytes().ok_or(KeyError::Form)?;
    Ok(Key { algorithm, id: None, form: Form::Public(key.to_vec()) })
}

fn from_jwk(jwk: &Value) -> Result<Key, KeyError> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let id = text("kid").map(str::to_owned);
    let wrong = |why| KeyError::Jwk(id.clone().unwrap_or_default(), why);
    let bytes = |name: &str| {
        let value = text(name).ok_or_else(|| wrong("a member is missing"))?;
        URL_SAFE_NO_PAD.decode(value).map_err(|_| wrong("a member is not base64url"))
    };
    let curve = text("crv").unwrap_or("");
    let point = |size: usize| {
        let (x, y) = (bytes("x")?, bytes("y")?);
        let legal = x.len() == size && y.len() == size;
        if legal { Ok(Form::Public([&[4], &*x, &*y].concat())) } else { Err(wrong("not a point")) }
    };
    let named = text("alg").and_then(Algorithm::named);
    let (algorithm, form) = match (text("kty").unwrap_or(""), curve, named) {
        ("oct", _, Some(Algorithm::Hs256)) => {
            let secret = bytes("k")?;
            if secret.len() < SECRET_BYTES {
                return Err(KeyError::ShortSecret);
            }
            (Algorithm::Hs256, Form::Secret(hmac::Key::new(hmac::HMAC_SHA256, &secret)))
        }
        ("RSA", _, Some(algorithm @ (Algorithm::Rs256 | Algorithm::Ps256))) => {
            (algorithm, Form::Rsa { n: bytes("n")?, e: bytes("e")? })
        }
        ("EC", "P-256", None | Some(Algorithm::Es256)) => (Algorithm::Es256, point(32)?),
        ("EC", "P-384", None | Some(Algorithm::Es384)) => (Algorithm::Es384, point(48)?),
        ("OKP", "Ed25519", None | Some(Algorithm::EdDsa)) => {
            (Algorithm::EdDsa, Form::Public(bytes("x")?))
        }
        _ => return Err(wrong("`kty`, `crv` and `alg` are no combination that is taken")),
    };
    Ok(Key { algorithm, id, form })
}

#[cfg(test)]
mod tests;
