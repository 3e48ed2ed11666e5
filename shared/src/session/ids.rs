//! Maps keyed by our own numbers: no need for a hash that resists a peer.
//!
//! Not here: keys that a peer chooses (client ids, topics); those use the standard hasher.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
};

/// Map keyed by a number that we gave out.
pub type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;
/// Set of small numbers (packet ids: 16 bits, so a peer cannot choose colliding ones that matter).
pub(super) type IdSet<K> = HashSet<K, BuildHasherDefault<IdHasher>>;

/// Spreads one integer with one multiplication.
#[derive(Debug, Default, Clone, Copy)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u16(&mut self, number: u16) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
}
