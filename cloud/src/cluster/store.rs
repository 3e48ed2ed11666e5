//! Maps and heartbeats as objects.
//!
//! ```text
//! <prefix>/cluster/map/<version, 20 digits>           a map (JSON), created once
//! <prefix>/cluster/beats/<life>.<number, 12 digits>   a heartbeat, or the end of its line (JSON), created once
//! ```
//! In: what a member asks. Out: what the store says of it, within a time. Not here: what follows from it (`member`).

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use slatedb::object_store::{
    Error, ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, path::Path,
};

use super::{
    map::{Incarnation, Map},
    member::{Answer, Ask, Beat, Beats},
};
use crate::engine::Place;

/// Who waits longer knows nothing: it took effect, or will, or not.
const ANSWER_WITHIN: Duration = Duration::from_millis(1_500);
/// Objects removed at the same time.
const REMOVING: usize = 8;
/// Objects listed at the most; more are not of a cluster.
const LISTED_MAX: usize = 100_000;

/// The cluster's objects at a place.
#[derive(Debug, Clone)]
pub struct Objects {
    place: Place,
}

impl Objects {
    /// At `place`.
    pub fn new(place: Place) -> Self {
        Self { place }
    }

    /// Whether a cluster was made here.
    pub async fn is_cluster(&self) -> Result<bool, String> {
        let folder = self.folder("map");
        let mut list = self.place.objects.list(Some(&folder));
        let first = tokio::time::timeout(ANSWER_WITHIN * 4, list.next()).await;
        match first {
            Ok(None) => Ok(false),
            Ok(Some(Ok(_))) => Ok(true),
            Ok(Some(Err(error))) => Err(error.to_string()),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    /// Does what is asked. No answer in time is [`Answer::Failed`].
    pub async fn answer(&self, ask: &Ask) -> Answer {
        let answered = tokio::time::timeout(ANSWER_WITHIN, self.ask(ask)).await;
        match answered {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                tracing::debug!(%error, "the store did not do what the cluster asked");
                Answer::Failed
            }
            Err(_) => Answer::Failed,
        }
    }

    async fn ask(&self, ask: &Ask) -> Result<Answer, Error> {
        Ok(match ask {
            Ask::ListMaps => {
                let names = self.list("map").await?;
                Answer::Maps(names.iter().filter_map(|name| name.parse().ok()).collect())
            }
            Ask::ReadMap(version) => match self.read(&self.map(*version)).await? {
                None => Answer::Map(None),
                Some(bytes) => match Map::read(*version, &bytes) {
                    Ok(map) => Answer::Map(Some(Box::new(map))),
                    Err(error) => Answer::Unreadable(format!("{}: {error}", self.place.url)),
                },
            },
            Ask::CreateMap(map) => self.create(&self.map(map.version), map.bytes()).await?,
            Ask::ListBeats => {
                let mut beats = Beats::new();
                for (life, number) in self.list("beats").await?.iter().filter_map(|name| beat(name))
                {
                    beats.entry(life).or_default().insert(number);
                }
                Answer::Beats(beats)
            }
            Ask::ReadBeat(life, number) => {
                let bytes = self.read(&self.beat(life, *number)).await?;
                match bytes.map(|bytes| Beat::read(&bytes)).transpose() {
                    Ok(beat) => Answer::Beat(beat),
                    Err(error) => {
                        tracing::warn!(line = %life, number, %error, "a heartbeat is not readable");
                        Answer::Failed
                    }
                }
            }
            Ask::CreateBeat(life, number, beat) => {
                self.create(&self.beat(life, *number), beat.bytes()).await?
            }
            Ask::Remove { maps, beats } => {
                let maps = maps.iter().map(|version| self.map(*version));
                let beats = beats.iter().map(|(life, number)| self.beat(life, *number));
                let all: Vec<_> = maps.chain(beats).collect();
                let removed = |path: Path| async move { self.place.objects.delete(&path).await };
                stream::iter(all).map(removed).buffer_unordered(REMOVING).count().await;
                Answer::Done
            }
        })
    }

    fn folder(&self, of: &str) -> Path {
        self.place.prefix.clone().join("cluster").join(of)
    }

    fn map(&self, version: u64) -> Path {
        self.folder("map").join(format!("{version:020}"))
    }

    fn beat(&self, life: &Incarnation, number: u64) -> Path {
        self.folder("beats").join(format!("{life}.{number:012}"))
    }

    async fn list(&self, of: &str) -> Result<Vec<String>, Error> {
        let folder = self.folder(of);
        let names = self.place.objects.list(Some(&folder)).take(LISTED_MAX);
        let name = |path: Path| path.filename().map(str::to_owned);
        names.try_filter_map(async |meta| Ok(name(meta.location))).try_collect().await
    }

    async fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        match self.place.objects.get(path).await {
            Ok(found) => found.bytes().await.map(|bytes| Some(bytes.to_vec())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn create(&self, path: &Path, bytes: Vec<u8>) -> Result<Answer, Error> {
        let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.place.objects.put_opts(path, PutPayload::from(bytes), create).await {
            Ok(_) => Ok(Answer::Done),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(Answer::Exists),
            Err(error) => Err(error),
        }
    }
}

fn beat(name: &str) -> Option<(Incarnation, u64)> {
    let (life, number) = name.rsplit_once('.')?;
    Some((Incarnation(life.to_owned()), number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use slatedb::object_store::memory::InMemory;

    use super::*;

    fn objects() -> Objects {
        let prefix = Path::parse("some/prefix").unwrap();
        Objects::new(Place { objects: Arc::new(InMemory::new()), prefix, url: "x://".into() })
    }

    #[tokio::test]
    async fn a_map_is_created_once_and_found() {
        let objects = objects();
        assert_eq!(objects.is_cluster().await, Ok(false));
        assert_eq!(objects.answer(&Ask::ListMaps).await, Answer::Maps(vec![]));
        let map = Map { version: 3, ..Map::empty("c", "id", 2) };
        let create = Ask::CreateMap(Box::new(map.clone()));
        assert_eq!(objects.answer(&create).await, Answer::Done);
        let other = Ask::CreateMap(Box::new(Map { cluster: "d".into(), ..map.clone() }));
        assert_eq!(objects.answer(&other).await, Answer::Exists);
        assert_eq!(objects.answer(&Ask::ReadMap(3)).await, Answer::Map(Some(Box::new(map))));
        assert_eq!(objects.answer(&Ask::ReadMap(4)).await, Answer::Map(None));
        assert_eq!(objects.answer(&Ask::ListMaps).await, Answer::Maps(vec![3]));
        assert_eq!(objects.is_cluster().await, Ok(true));
        let remove = Ask::Remove { maps: vec![3, 9], beats: vec![] };
        assert_eq!(objects.answer(&remove).await, Answer::Done);
        assert_eq!(objects.answer(&Ask::ListMaps).await, Answer::Maps(vec![]));
    }

    #[tokio::test]
    async fn heartbeats_are_lines_that_are_ended_once() {
        let objects = objects();
        let life = Incarnation("n1.eu.00ff-0".into());
        let alive = Beat::default();
        let end = Beat { ended_by: Some(Incarnation("n2.1-0".into())) };
        let create = |number, beat: &Beat| Ask::CreateBeat(life.clone(), number, beat.clone());
        assert_eq!(objects.answer(&create(9, &alive)).await, Answer::Done);
        assert_eq!(objects.answer(&create(10, &end)).await, Answer::Done);
        assert_eq!(objects.answer(&create(10, &alive)).await, Answer::Exists);
        let read = Ask::ReadBeat(life.clone(), 10);
        assert_eq!(objects.answer(&read).await, Answer::Beat(Some(end)));
        let all = Beats::from([(life.clone(), [9, 10].into())]);
        assert_eq!(objects.answer(&Ask::ListBeats).await, Answer::Beats(all));
        let remove = Ask::Remove { maps: vec![], beats: vec![(life.clone(), 9)] };
        objects.answer(&remove).await;
        assert_eq!(objects.answer(&Ask::ReadBeat(life, 9)).await, Answer::Beat(None));
    }
}
