//! Tokens given, certificates issued, edges denied: in the engine, so that they survive every node.
//!
//! ```text
//! enrol/token/HASH   a token, by the hash of its secret      enrol/edge/ID   the newest certificate
//! enrol/deny/NAME    an id or a serial number that may not come in      enrol/version  how often that has changed
//! ```
//! A token is for one key: who lost the answer may ask again with the same key, nobody else can use it.
//! Change here: what is remembered, when a token counts. Not here: what is signed (`authority`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, RwLock},
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::{Mutex, MutexGuard, watch};
use tributary_shared::enrol::{hex, pin};

use super::EnrolError;
use crate::{
    engine::{ScanLimit, ShardId, Write},
    log::{Log, LogError, Opening, StateSpace, Transaction},
};

/// Name whose home shard holds all of it.
const HOME: &str = "enrol";
/// Key of the number of changes of what is denied.
const VERSION: &[u8] = b"enrol/version";
/// Between two attempts when the store fails.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Entries of one kind; more are refused.
const ENTRIES_MAX: usize = 200_000;
/// Entries read at once.
const PAGE: ScanLimit = ScanLimit { entries: 1_000, bytes: 1024 * 1024 };

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Given {
    pub(super) edge: String,
    pub(super) until_ms: i64,
    /// Stands for the key it was used for.
    pub(super) used_by: Option<String>,
}

/// The newest certificate of an edge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Certified {
    pub serial: String,
    pub issued_ms: i64,
    pub until_s: u64,
}

/// PURE. Whether a token may be used now by this edge, for this key.
pub(super) fn check(
    given: Option<&Given>,
    edge: &str,
    key_hash: &str,
    now_ms: i64,
) -> Result<(), &'static str> {
    let given = given.ok_or("this token is not known")?;
    if given.edge != edge {
        return Err("this token is for another edge");
    }
    if given.used_by.as_deref().is_some_and(|by| by != key_hash) {
        return Err("this token has been used");
    }
    if given.until_ms <= now_ms {
        return Err("this token has expired");
    }
    Ok(())
}

/// Ids and serial numbers that may not come in.
#[derive(Debug, Default)]
struct Denied {
    /// As they were denied, since when (wall ms).
    names: BTreeMap<String, i64>,
    /// Those of them that may be serial numbers, in one form.
    numbers: BTreeSet<String>,
}

impl Denied {
    fn new(names: BTreeMap<String, i64>) -> Self {
        let numbers = names.keys().filter_map(|name| number(name)).collect();
        Self { names, numbers }
    }

    fn has(&self, id: &str, serial: &str) -> bool {
        self.names.contains_key(id)
            || number(serial).is_some_and(|serial| self.numbers.contains(&serial))
    }

    /// The names that stand for `name`: itself, else the same serial number in other letters.
    fn same(&self, name: &str) -> Vec<String> {
        if self.names.contains_key(name) {
            return vec![name.to_owned()];
        }
        let wanted = number(name);
        let same = |known: &&String| wanted.is_some() && number(known) == wanted;
        self.names.keys().filter(same).cloned().collect()
    }
}

/// PURE. A serial number in one form, however it is written: certificates have bytes, openssl prints capitals, others write
/// colons, `0x`, or leave leading zeros out.
pub(super) fn number(text: &str) -> Option<String> {
    let digits = text.trim_start_matches("0x").trim_start_matches("0X").replace([':', ' '], "");
    let hex = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let digits = digits.trim_start_matches('0').to_ascii_lowercase();
    hex.then_some(if digits.is_empty() { "0".to_owned() } else { digits })
}

/// All that is denied, as the node with the book has it; other nodes keep a copy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DenyList {
    /// Rises with each change.
    pub version: u64,
    /// As they were denied, since when (wall ms).
    names: BTreeMap<String, i64>,
}

/// The book. Cheap to clone.
#[derive(Clone)]
pub(super) struct Book {
    log: Log,
    home: ShardId,
    denied: Arc<RwLock<Denied>>,
    /// Version of `denied`; `None`: nothing is known yet.
    version: watch::Sender<Option<u64>>,
    /// The opening of the home shard that `denied` was read in. Whoever changes it holds this.
    read_in: Arc<Mutex<Option<Opening>>>,
}

impl Book {
    /// Reads what is denied, if the book is here.
    pub(super) async fn open(log: Log) -> Result<Self, LogError> {
        let home = log.home_shard(HOME);
        let version = watch::Sender::new(None);
        let book = Self { log, home, denied: Arc::default(), version, read_in: Arc::default() };
        match book.ready().await {
            Ok(_) | Err(LogError::NotOwner) => Ok(book),
            Err(error) => Err(error),
        }
    }

    /// Reads what is denied whenever the book comes here; until the log closes.
    pub(super) async fn keep(self) {
        while let Ok(opening) = self.log.here(self.home).await {
            match self.ready().await {
                Ok(_) => self.log.gone(self.home, opening).await,
                Err(error) => {
                    tracing::warn!(%error, "the deny list cannot be read; trying again");
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
            }
        }
    }

    /// The book is here, and what is denied is known. What is decided from now on is written in this opening or not at all.
    pub(super) async fn ready(&self) -> Result<Opening, LogError> {
        self.change().await.map(|(_, opening)| opening)
    }

    /// The turn to change what is denied.
    async fn change(&self) -> Result<(MutexGuard<'_, Option<Opening>>, Opening), LogError> {
        let mut read_in = self.read_in.lock().await;
        let opening = self.log.opening(self.home).ok_or(LogError::NotOwner)?;
        if *read_in != Some(opening) {
            let names = self.all("deny").await?.into_iter().collect();
            let stored = self.log.state_get(self.home, StateSpace::Meta, VERSION).await?;
            let version =
                stored.and_then(|stored| Some(u64::from_be_bytes(*stored.first_chunk()?)));
            self.set(DenyList { version: version.unwrap_or(0), names });
            *read_in = Some(opening);
        }
        Ok((read_in, opening))
    }

    fn set(&self, list: DenyList) {
        *self.lock() = Denied::new(list.names);
        self.version.send_replace(Some(list.version));
    }

    /// What is denied; `None`: not known.
    pub(super) fn deny_list(&self) -> Option<DenyList> {
        // The version first: what is read after it is at least of it.
        let version = (*self.version.borrow())?;
        Some(DenyList { version, names: self.denied() })
    }

    /// Waits for a list that is newer than `after`.
    pub(super) async fn newer(&self, after: Option<u64>) -> DenyList {
        let mut version = self.version.subscribe();
        loop {
            // The sender is in `self`.
            let _ = version.wait_for(|version| *version > after).await;
            if let Some(list) = self.deny_list() {
                return list;
            }
        }
    }

    /// Takes over what the node with the book said; older than what is known: nothing.
    pub(super) async fn learn(&self, list: DenyList) {
        let _turn = self.read_in.lock().await;
        if self.version.borrow().is_none_or(|known| known < list.version) {
            self.set(list);
        }
    }

    pub(super) fn is_known(&self) -> bool {
        self.version.borrow().is_some()
    }

    pub(super) fn home(&self) -> ShardId {
        self.home
    }

    pub(super) async fn token(&self, secret: &str) -> Result<Option<Given>, LogError> {
        let key = format!("enrol/token/{}", hash(secret));
        let found = self.log.state_get(self.home, StateSpace::Meta, key.as_bytes()).await?;
        Ok(found.and_then(|value| serde_json::from_slice(&value).ok()))
    }

    /// Keeps a token, and forgets those that have expired.
    pub(super) async fn give(
        &self,
        secret: &str,
        given: &Given,
        now_ms: i64,
    ) -> Result<(), EnrolError> {
        let old = self.all::<Given>("token").await?;
        if old.len() >= ENTRIES_MAX {
            return Err(EnrolError::Full);
        }
        let over = old.into_iter().filter(|(_, given)| given.until_ms <= now_ms);
        let mut writes: Vec<Write> =
            over.map(|(name, _)| Write::Delete(key("token", &name))).collect();
        writes.push(put("token", &hash(secret), given)?);
        self.write(writes, self.ready().await?).await
    }

    /// The token is used for this key, and the edge has this certificate: both or neither.
    pub(super) async fn enrolled(
        &self,
        secret: &str,
        given: &Given,
        certified: &Certified,
        decided_in: Opening,
    ) -> Result<(), EnrolError> {
        let token = put("token", &hash(secret), given)?;
        self.write(vec![token, put("edge", &given.edge, certified)?], decided_in).await
    }

    pub(super) async fn renewed(
        &self,
        id: &str,
        certified: &Certified,
        decided_in: Opening,
    ) -> Result<(), EnrolError> {
        self.write(vec![put("edge", id, certified)?], decided_in).await
    }

    pub(super) async fn edges(&self) -> Result<Vec<(String, Certified)>, LogError> {
        self.all("edge").await
    }

    pub(super) fn denied(&self) -> BTreeMap<String, i64> {
        self.lock().names.clone()
    }

    /// From now on neither comes in, and who is in has to go.
    pub(super) async fn deny(&self, name: &str, now_ms: i64) -> Result<(), EnrolError> {
        let (turn, opening) = self.change().await?;
        if self.lock().names.len() >= ENTRIES_MAX {
            return Err(EnrolError::Full);
        }
        let mut names = self.denied();
        names.insert(name.to_owned(), now_ms);
        self.store(turn, opening, vec![put("deny", name, &now_ms)?], names).await
    }

    pub(super) async fn allow(&self, name: &str) -> Result<bool, EnrolError> {
        let (turn, opening) = self.change().await?;
        let same = self.lock().same(name);
        if same.is_empty() {
            return Ok(false);
        }
        let mut left = self.denied();
        left.retain(|name, _| !same.contains(name));
        let writes = same.iter().map(|name| Write::Delete(key("deny", name))).collect();
        self.store(turn, opening, writes, left).await?;
        Ok(true)
    }

    /// One change, durably, then for all to see.
    async fn store(
        &self,
        mut turn: MutexGuard<'_, Option<Opening>>,
        opening: Opening,
        mut writes: Vec<Write>,
        names: BTreeMap<String, i64>,
    ) -> Result<(), EnrolError> {
        let version = self.version.borrow().unwrap_or(0) + 1;
        let value = Bytes::copy_from_slice(&version.to_be_bytes());
        writes.push(Write::Put(Log::state_key(StateSpace::Meta, VERSION), value));
        // In doubt until it is known what became of it.
        *turn = None;
        self.write(writes, opening).await?;
        *turn = Some(opening);
        self.set(DenyList { version, names });
        Ok(())
    }

    pub(super) fn is_denied(&self, id: &str, serial: &str) -> bool {
        let denied = self.denied.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        denied.has(id, serial)
    }

    /// Waits until one of them is denied.
    pub(super) async fn denial(&self, id: &str, serial: &str) {
        let mut changed = self.version.subscribe();
        while !self.is_denied(id, serial) {
            // The sender is in `self`.
            let _ = changed.changed().await;
        }
    }

    fn lock(&self) -> std::sync::RwLockWriteGuard<'_, Denied> {
        self.denied.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn write(&self, writes: Vec<Write>, opening: Opening) -> Result<(), EnrolError> {
        let opening = Some(opening);
        let transaction = Transaction { writes, opening, ..Transaction::default() };
        self.log.commit(self.home, transaction).await?;
        Ok(())
    }

    /// All of a kind, by name.
    async fn all<T: DeserializeOwned>(&self, kind: &str) -> Result<Vec<(String, T)>, LogError> {
        let prefix = format!("enrol/{kind}/");
        let mut all = Vec::new();
        let mut after: Option<Bytes> = None;
        loop {
            let (space, from) = (StateSpace::Meta, after.as_deref());
            let page = self.log.state_scan(self.home, space, prefix.as_bytes(), from, PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(all) };
            after = Some(last.clone());
            for (key, value) in page {
                let name = key.get(prefix.len()..).unwrap_or_default();
                match serde_json::from_slice(&value) {
                    Ok(value) => all.push((String::from_utf8_lossy(name).into_owned(), value)),
                    Err(error) => tracing::error!(%error, ?key, "an entry cannot be read"),
                }
            }
        }
    }
}

fn hash(secret: &str) -> String {
    hex(&pin(secret.as_bytes()))
}

fn key(kind: &str, name: &str) -> Bytes {
    Log::state_key(StateSpace::Meta, format!("enrol/{kind}/{name}").as_bytes())
}

fn put(kind: &str, name: &str, value: &impl Serialize) -> Result<Write, EnrolError> {
    let value = serde_json::to_vec(value).map_err(EnrolError::sign)?;
    Ok(Write::Put(key(kind, name), value.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_is_denied_however_it_is_written() {
        let in_certificate = "00ab01cd";
        for written in ["00ab01cd", "AB01CD", "ab:01:cd", "00:AB:01:CD", "0xab01cd", "AB 01 CD"] {
            let denied = Denied::new(BTreeMap::from([(written.to_owned(), 1)]));
            assert!(denied.has("gw1", in_certificate), "{written}");
            assert!(!denied.has("gw1", "ab01cd00"), "{written}");
            assert_eq!(denied.same("ab01cd"), [written]);
        }
        let denied = Denied::new(BTreeMap::from([("gw7".to_owned(), 1), ("00".to_owned(), 1)]));
        assert!(denied.has("gw7", "1") && denied.has("gw1", "0") && !denied.has("gw1", "7"));
        assert!(denied.same("gw8").is_empty());
    }

    #[test]
    fn a_token_counts_once_in_time_and_for_its_edge() {
        let fresh = Given { edge: "gw1".to_owned(), until_ms: 100, used_by: None };
        let used = Given { used_by: Some("key".to_owned()), ..fresh.clone() };
        for (given, edge, key, now, outcome) in [
            (Some(&fresh), "gw1", "key", 99, Ok(())),
            (Some(&used), "gw1", "key", 99, Ok(())),
            (Some(&used), "gw1", "other", 99, Err("this token has been used")),
            (Some(&fresh), "gw2", "key", 99, Err("this token is for another edge")),
            (Some(&fresh), "gw1", "key", 100, Err("this token has expired")),
            (None, "gw1", "key", 0, Err("this token is not known")),
        ] {
            assert_eq!(check(given, edge, key, now), outcome, "{given:?} {edge} {key} {now}");
        }
    }
}
