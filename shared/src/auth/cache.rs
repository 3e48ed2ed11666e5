//! Passwords that were verified a short while ago, so that a reconnecting client does not cost a slow hash again.
//!
//! Kept as HMAC-SHA-256 under a key that lives as long as the process, over user, stored hash and password together: a
//! changed password file, another user, another password all miss. Whole tags are compared, never a part of one.
//! Change here: what is remembered. Not here: the check itself (`password`).

use std::collections::HashMap;

use ring::hmac;

/// Users remembered; beyond that those that are over soonest are forgotten.
const USERS: usize = 1_024;

/// The memory.
pub(super) struct Cache {
    key: hmac::Key,
    remember_ms: u64,
    users: HashMap<String, Seen>,
}

struct Seen {
    tag: hmac::Tag,
    until_ms: u64,
}

impl Cache {
    /// Empty; `key`: random.
    pub(super) fn new(key: [u8; 32], remember_ms: u64) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        Self { key, remember_ms, users: HashMap::new() }
    }

    /// This very password was verified for this user against this stored hash.
    pub(super) fn knows(&self, user: &str, stored: &str, password: &[u8], mono_ms: u64) -> bool {
        self.users.get(user).is_some_and(|seen| {
            let message = message(user, stored, password);
            seen.until_ms > mono_ms && hmac::verify(&self.key, &message, seen.tag.as_ref()).is_ok()
        })
    }

    pub(super) fn remember(&mut self, user: &str, stored: &str, password: &[u8], mono_ms: u64) {
        if self.remember_ms == 0 {
            return;
        }
        if self.users.len() >= USERS && !self.users.contains_key(user) {
            self.users.retain(|_, seen| seen.until_ms > mono_ms);
            if self.users.len() >= USERS {
                let soonest = self.users.iter().min_by_key(|(_, seen)| seen.until_ms);
                let soonest = soonest.map(|(user, _)| user.clone());
                soonest.and_then(|user| self.users.remove(&user));
            }
        }
        let tag = hmac::sign(&self.key, &message(user, stored, password));
        let until_ms = mono_ms.saturating_add(self.remember_ms);
        self.users.insert(user.to_owned(), Seen { tag, until_ms });
    }

    /// Nothing is known any more.
    pub(super) fn clear(&mut self) {
        self.users.clear();
    }
}

/// No two triples have the same.
fn message(user: &str, stored: &str, password: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(16 + user.len() + stored.len() + password.len());
    for part in [user.as_bytes(), stored.as_bytes()] {
        message.extend_from_slice(&(part.len() as u64).to_le_bytes());
        message.extend_from_slice(part);
    }
    message.extend_from_slice(password);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    /// nanomq#2334: an entry was found by a part of what it stood for.
    #[test]
    fn only_the_very_same_user_hash_and_password_are_known_and_not_for_long() {
        let mut cache = Cache::new([1; 32], 1_000);
        cache.remember("ann", "$hash", b"secret", 5);
        assert!(cache.knows("ann", "$hash", b"secret", 1_004));
        assert!(!cache.knows("ann", "$hash", b"secret", 1_005));
        for (user, stored, password) in [
            ("ann", "$hash", "secre"),
            ("ann", "$hash", "secret2"),
            ("ann", "$hash", ""),
            ("ann", "$has", "hsecret"),
            ("ann", "$hashs", "ecret"),
            ("ann", "", "$hashsecret"),
            ("an", "n$hash", "secret"),
            ("bob", "$hash", "secret"),
        ] {
            assert!(
                !cache.knows(user, stored, password.as_bytes(), 6),
                "{user} {stored} {password}"
            );
        }
        cache.clear();
        assert!(!cache.knows("ann", "$hash", b"secret", 6));
        let mut off = Cache::new([1; 32], 0);
        off.remember("ann", "$hash", b"secret", 5);
        assert!(!off.knows("ann", "$hash", b"secret", 5));
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut cache = Cache::new([1; 32], 1_000_000);
        for number in 0..2 * USERS {
            cache.remember(&number.to_string(), "h", b"p", number as u64);
        }
        assert_eq!(cache.users.len(), USERS);
        assert!(!cache.knows("0", "h", b"p", 3_000));
        assert!(cache.knows(&(2 * USERS - 1).to_string(), "h", b"p", 3_000));
    }
}
