//! What was acknowledged against what was read: the verdict of every test that kills something.
//!
//! Holds: verdicts L (acked, never read), D (read again though sent once), O (order broken within a device), G (read
//! but never sent). A message is (device, seq); a device sends its seqs in order. What a device had to send twice,
//! because its connection died before the PUBACK, may be read twice (MQTT QoS 1) but must be read if ever acked.

use std::collections::{BTreeMap, BTreeSet};

/// Payload of a checked message.
pub fn payload(device: &str, seq: u64) -> String {
    format!("{device} {seq} {:08x}", crc(device, seq))
}

fn crc(device: &str, seq: u64) -> u32 {
    device
        .bytes()
        .chain(seq.to_le_bytes())
        .fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Whether it is the payload of a checked message, damaged or not.
pub fn is_payload(payload: &[u8]) -> bool {
    payload.split(|byte| *byte == b' ').count() == 3
}

/// All that a run saw.
#[derive(Debug, Default)]
pub struct Checker {
    sent: BTreeMap<(String, u64), u32>,
    acked: BTreeSet<(String, u64)>,
    /// Of `acked`, not read yet.
    missing: BTreeSet<(String, u64)>,
    read: BTreeMap<(String, u64), u32>,
    last: BTreeMap<String, u64>,
    order: u64,
    strange: Vec<String>,
}

/// The counts that must be 0, and how much there was.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Acked, not read.
    pub lost: u64,
    /// Read more often than sent.
    pub duplicated: u64,
    /// First readings out of order within a device.
    pub disordered: u64,
    /// Read but never sent, or damaged.
    pub strange: u64,
}

impl Checker {
    /// About to be sent (again).
    pub fn sent(&mut self, device: &str, seq: u64) {
        *self.sent.entry((device.to_owned(), seq)).or_default() += 1;
    }

    /// Its acknowledgement came.
    pub fn acked(&mut self, device: &str, seq: u64) {
        let key = (device.to_owned(), seq);
        if !self.read.contains_key(&key) {
            self.missing.insert(key.clone());
        }
        self.acked.insert(key);
    }

    /// How many were acknowledged.
    pub fn acked_count(&self) -> usize {
        self.acked.len()
    }

    /// A consumer read this payload.
    pub fn read(&mut self, payload: &[u8]) {
        let text = String::from_utf8_lossy(payload);
        let mut words = text.split(' ');
        let parsed = (|| {
            let device = words.next()?;
            let seq = words.next()?.parse().ok()?;
            let sum = u32::from_str_radix(words.next()?, 16).ok()?;
            (sum == crc(device, seq)).then(|| (device.to_owned(), seq))
        })();
        let Some(key) = parsed.filter(|key| self.sent.contains_key(key)) else {
            self.strange.push(text.into_owned());
            return;
        };
        let times = self.read.entry(key.clone()).or_default();
        *times += 1;
        if *times == 1 {
            self.missing.remove(&key);
            let last = self.last.entry(key.0).or_insert(key.1);
            self.order += u64::from(key.1 < *last);
            *last = key.1.max(*last);
        }
    }

    /// This payload was read before.
    pub fn has_read(&self, payload: &[u8]) -> bool {
        let text = String::from_utf8_lossy(payload);
        let mut words = text.split(' ');
        let key = (|| Some((words.next()?.to_owned(), words.next()?.parse().ok()?)))();
        key.is_some_and(|key| self.read.contains_key(&key))
    }

    /// Everything that was acknowledged has been read.
    pub fn complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// Acknowledged and not read: device and seq.
    pub fn missing(&self) -> impl Iterator<Item = &(String, u64)> {
        self.missing.iter()
    }

    /// The verdict so far.
    pub fn verdict(&self) -> Verdict {
        let more = |(key, times): (&(String, u64), &u32)| {
            u64::from(times.saturating_sub(*self.sent.get(key).unwrap_or(&0)))
        };
        Verdict {
            lost: self.missing.len() as u64,
            duplicated: self.read.iter().map(more).sum(),
            disordered: self.order,
            strange: self.strange.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(sent: &[u64], acked: &[u64], read: &[u64]) -> Verdict {
        let mut checker = Checker::default();
        sent.iter().for_each(|&seq| checker.sent("d", seq));
        acked.iter().for_each(|&seq| checker.acked("d", seq));
        read.iter().for_each(|&seq| checker.read(payload("d", seq).as_bytes()));
        checker.verdict()
    }

    #[test]
    fn each_fault_has_its_verdict() {
        assert_eq!(run(&[1, 2, 3], &[1, 2], &[1, 2, 3]), Verdict::default());
        assert_eq!(run(&[1, 2], &[1, 2], &[1]).lost, 1);
        assert_eq!(run(&[1, 2], &[1, 2], &[1, 2, 2]).duplicated, 1);
        assert_eq!(run(&[1, 2, 2], &[1, 2], &[1, 2, 2]), Verdict::default());
        assert_eq!(run(&[1, 2], &[1, 2], &[2, 1]).disordered, 1);
        assert_eq!(run(&[1], &[1], &[1, 9]).strange, 1);
    }
}
