//! Epochs that go upstream under another name, because another gateway uses theirs, too. Pure.
//!
//! In the store, in marks and in all of `sending` an epoch keeps the name and the sequences it has in its rows. Only here they
//! become what the cloud is told, and back: sequence `from` of the epoch is sequence 0 of the new one.
//! Not here: when an epoch is renamed (`sending`), where that is kept (`store`).

use std::collections::HashMap;

use tributary_shared::record::{
    Batch, BatchBuilder, BatchError, Header, batch::Producer, mqtt::header::EDGE_SEQ,
};

use crate::{link::Upload, store::Renamed};

/// Bytes a batch may unpack to, far above what the store makes.
const UNPACKED_MAX: usize = 32 * 1024 * 1024;

/// By the epoch in the rows.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<i64, Renamed>);

impl Names {
    pub(super) fn new(names: &[Renamed]) -> Self {
        Self(names.iter().map(|name| (name.epoch, *name)).collect())
    }

    pub(super) fn add(&mut self, name: Renamed) {
        self.0.insert(name.epoch, name);
    }

    pub(super) fn has(&self, epoch: i64) -> bool {
        self.0.contains_key(&epoch)
    }

    /// What the rows call an epoch that the cloud speaks of.
    pub(super) fn stored(&self, told: i64) -> i64 {
        self.0.values().find(|name| name.to == told).map_or(told, |name| name.epoch)
    }

    /// A sequence that the cloud speaks of, of an epoch as rows call it.
    pub(super) fn stored_seq(&self, epoch: i64, told: u64) -> u64 {
        told.saturating_add(self.0.get(&epoch).map_or(0, |name| name.from))
    }

    /// What the cloud expects next, by the epochs in the rows. Of a renamed epoch the old name is the other gateway's business,
    /// and what was before is confirmed.
    pub(super) fn expected(&self, mut told: HashMap<i64, u64>) -> HashMap<i64, u64> {
        for name in self.0.values() {
            let next = told.remove(&name.to).unwrap_or_default();
            told.insert(name.epoch, name.from.saturating_add(next));
        }
        told
    }

    /// The bytes of an upload as the cloud gets them.
    pub(super) fn seal(&self, upload: &mut Upload) -> Result<(), BatchError> {
        let Some(name) = self.0.get(&upload.epoch).filter(|_| upload.gap.is_none()) else {
            return Ok(());
        };
        let batch = Batch::parse(upload.payload.clone())?;
        let s = upload.s.saturating_sub(name.from);
        let mut builder = BatchBuilder::new();
        for (seq, mut record) in (s..).zip(batch.records(UNPACKED_MAX)?) {
            let labels = |one: &&mut Header| one.name == EDGE_SEQ;
            for label in record.headers.iter_mut().filter(labels) {
                label.value = Some(seq.to_string().into());
            }
            builder.push(&record);
        }
        let base_sequence = (s & 0x7FFF_FFFF) as i32;
        let producer = Producer { id: name.to, epoch: 0, base_sequence };
        let sealed = builder.finish(batch.compression()?, Some(producer))?;
        upload.payload = sealed.bytes().clone();
        Ok(())
    }

    /// The upload, its bytes sealed before, under the name that the cloud is told.
    pub(super) fn told(&self, mut upload: Upload) -> Upload {
        if let Some(name) = self.0.get(&upload.epoch) {
            upload.epoch = name.to;
            upload.s = upload.s.saturating_sub(name.from);
        }
        upload
    }
}
