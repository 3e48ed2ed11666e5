//! A member of the cluster: what it does about all that it hears. PURE; `task` does it.
//!
//! ```text
//! start: find the newest map -> a node of our name in it? its heartbeats must stand still -> join
//! then:  heartbeat (`beat`) . look for newer maps (`look`) . judge the others (`lead`) . change the map (`propose`)
//!        . take and release shards as the map says (`hold`)
//! ```
//! Every life of a node has a line of numbered heartbeat objects, each created once. Who judges a node dead creates the next of
//! its line itself: that life can never show a heartbeat again, so its lease is over and stays over, and only then does the map
//! give its shards away. The node, if it lives, finds its line ended and begins a new life with nothing.
//!
//! Promises: this node serves a shard only while a map gives it to this life, and this life's lease lasts; it changes the map
//! only by creating the next version; answers that are late, lost or say the wrong thing happened change nothing of that.
//! Change here: what is done when. Not here: what the map says (`map`), objects (`store`), clocks and tasks (`task`).

mod beat;
mod hold;
mod lead;
mod look;
mod propose;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::{
    Addresses, NodeId, Settings, View,
    judge::Judge,
    map::{Incarnation, Map, Member as Entry, Newcomer, Standing},
};
use crate::engine::ShardId;

/// Milliseconds of this node's monotonic clock.
pub type Ms = u64;

/// What was learned so long ago is looked up from the beginning: objects may have been removed since.
const STALE: Ms = 30_000;

/// A heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Beat {
    /// By whom this line was ended; no heartbeat, then.
    pub ended_by: Option<Incarnation>,
}

impl Beat {
    /// The object's content.
    pub fn bytes(&self) -> Vec<u8> {
        // A struct of strings cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// What [`Beat::bytes`] gave.
    pub fn read(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

/// Last heartbeat of each line, and all numbers that are still there.
pub type Beats = BTreeMap<Incarnation, BTreeSet<u64>>;

/// A request of the store. Each gets one [`Event::Answered`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Numbers of all maps.
    ListMaps,
    /// One map.
    ReadMap(u64),
    /// Creates a map under its version.
    CreateMap(Box<Map>),
    /// All heartbeats.
    ListBeats,
    /// One heartbeat.
    ReadBeat(Incarnation, u64),
    /// Creates one.
    CreateBeat(Incarnation, u64, Beat),
    /// Removes objects that nobody needs.
    Remove {
        /// Versions.
        maps: Vec<u64>,
        /// Heartbeats.
        beats: Vec<(Incarnation, u64)>,
    },
}

/// What the store said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Created, or removed.
    Done,
    /// There is one already.
    Exists,
    /// Numbers of maps.
    Maps(Vec<u64>),
    /// A map, if it is there.
    Map(Option<Box<Map>>),
    /// Heartbeats.
    Beats(Beats),
    /// A heartbeat, if it is there.
    Beat(Option<Beat>),
    /// What is there is not for this program.
    Unreadable(String),
    /// No answer, or an error: it may have taken effect, or yet take effect.
    Failed,
}

/// What happens to a member.
#[derive(Debug, Clone)]
pub enum Event {
    /// Time passes.
    Tick,
    /// The store answered what was asked at `began`.
    Answered {
        /// When it was asked.
        began: Ms,
        /// What.
        ask: Ask,
        /// The answer.
        answer: Answer,
    },
    /// A shard is open here.
    Taken(ShardId),
    /// A shard could not be opened.
    NotTaken(ShardId),
    /// Nothing of a shard is here any more.
    Released(ShardId),
    /// Somebody else opened a shard that was here.
    Lost(ShardId),
    /// Hand everything over and end.
    Drain,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask the store.
    Ask(Ask),
    /// Open a shard.
    Take(ShardId),
    /// Stop serving a shard at once, then close it.
    Release(ShardId),
    /// Until when this node may serve.
    Lease(Ms),
    /// The map is another.
    Show,
    /// The end of this member.
    End(Result<(), Refused>),
}

/// Why a node is no member (any more). One sentence that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Refused {
    #[error(
        "node `{0}` is already running in this cluster: give this one another name with --node, or stop the other"
    )]
    Running(String),
    #[error(
        "this is the data of cluster `{found}`, and `cluster.name` is `{mine}`: use another --data, or that name"
    )]
    OtherCluster { found: String, mine: String },
    #[error(
        "the cluster's map has {found} shards and the data {mine}: the two are not of one cluster; use another --data"
    )]
    OtherShards { found: usize, mine: usize },
    #[error(
        "another process has taken over the name `{0}`: give one of them another name with --node"
    )]
    Superseded(String),
    #[error("{0}")]
    Unreadable(String),
}

/// Who this is.
#[derive(Debug, Clone)]
pub struct Me {
    /// As `--node` says.
    pub name: String,
    /// As `cluster.name` says.
    pub cluster: String,
    /// Id for the cluster if this node makes it.
    pub id: String,
    /// Where it is found.
    pub addresses: Addresses,
    /// Shards of the data.
    pub shards: u16,
    /// Random: tells this process from all others of its name.
    pub random: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Looks for the newest map.
    Finding,
    /// It joins, or has joined.
    Going,
    /// Nothing is done any more.
    Ended,
}

/// See the module.
#[derive(Debug)]
pub struct Member {
    settings: Settings,
    me: Me,
    phase: Phase,
    draining: bool,
    /// Since when the map gives nothing to this node, which leaves.
    bare: Option<Ms>,
    /// The newest map known.
    map: Option<Map>,
    /// When the last look began that said that there is no newer one (or found it).
    looked: Option<Ms>,
    looking: bool,
    look_at: Ms,
    listing: bool,
    list_at: Ms,
    /// When a node was last seen to come or to go.
    came: Ms,
    own: beat::Line,
    lease: Ms,
    judge: Judge,
    /// Lives whose line is known to be ended.
    ended: BTreeSet<Incarnation>,
    /// A node of our name in the map, as it was first seen.
    watched: Option<(Incarnation, u64)>,
    writing: bool,
    write_at: Ms,
    random: u64,
    holds: Vec<hold::Hold>,
    /// Something of a life before is still open or being opened: nothing is served until it is gone.
    unsettled: bool,
    /// Versions that were seen to be old, and when.
    old: VecDeque<(u64, Ms)>,
    removing: bool,
    actions: Vec<Action>,
}

impl Member {
    /// Before its first event.
    pub fn new(me: Me, settings: Settings) -> Self {
        let own = beat::Line::new(&me.name, me.random, 0);
        let holds = vec![hold::Hold::Away; usize::from(me.shards)];
        Self {
            judge: Judge::default(),
            random: me.random | 1,
            settings,
            me,
            phase: Phase::Finding,
            draining: false,
            bare: None,
            map: None,
            looked: None,
            looking: false,
            look_at: 0,
            listing: false,
            list_at: 0,
            came: 0,
            own,
            lease: 0,
            ended: BTreeSet::new(),
            watched: None,
            writing: false,
            write_at: 0,
            holds,
            unsettled: false,
            old: VecDeque::new(),
            removing: false,
            actions: Vec::new(),
        }
    }

    /// What to do about `event`.
    pub fn decide(&mut self, event: Event, now: Ms) -> Vec<Action> {
        if self.phase == Phase::Ended {
            return Vec::new();
        }
        match event {
            Event::Tick => {}
            Event::Answered { began, ask, answer } => self.answered(began, ask, answer, now),
            Event::Taken(shard) => self.taken(shard),
            Event::NotTaken(shard) => self.not_taken(shard, now),
            Event::Released(shard) => self.released(shard),
            Event::Lost(shard) => self.lost(shard, now),
            Event::Drain => self.draining = true,
        }
        if self.phase != Phase::Ended {
            self.beat(now);
            self.look(now);
            self.list(now);
            self.propose(now);
            self.hold(now);
            self.settle();
            self.finish();
        }
        std::mem::take(&mut self.actions)
    }

    /// The newest map known.
    pub fn map(&self) -> Option<&Map> {
        self.map.as_ref()
    }

    /// What heads are told, once this node is a member.
    pub fn view(&self) -> Option<View> {
        let (id, _) = self.entry()?;
        self.map.as_ref().map(|map| map.view(id))
    }

    /// This life in the map.
    fn entry(&self) -> Option<(NodeId, &Entry)> {
        let (id, entry) = self.map.as_ref()?.named(&self.me.name)?;
        let here = entry.incarnation == self.own.life && entry.standing != Standing::Gone;
        here.then_some((id, entry))
    }

    fn answered(&mut self, began: Ms, ask: Ask, answer: Answer, now: Ms) {
        if let Answer::Unreadable(text) = answer {
            return self.end(Err(Refused::Unreadable(text)));
        }
        match ask {
            Ask::ListMaps => self.maps_listed(began, answer, now),
            Ask::ReadMap(version) => self.map_read(began, version, answer, now),
            Ask::CreateMap(map) => self.map_created(began, *map, &answer, now),
            Ask::ListBeats => self.beats_listed(began, answer, now),
            Ask::ReadBeat(life, number) => self.beat_read(&life, number, &answer, now),
            Ask::CreateBeat(life, number, beat) => {
                self.beat_created(&life, number, &beat, &answer, now);
            }
            Ask::Remove { .. } => self.removing = false,
        }
    }

    /// A drain is over when nothing is owned here, and the map says so.
    fn finish(&mut self) {
        let left =
            self.map.as_ref().and_then(|map| map.named(&self.me.name)).is_none_or(|(_, entry)| {
                entry.standing == Standing::Gone || entry.incarnation != self.own.life
            });
        let empty = self.holds.iter().all(hold::Hold::is_away);
        if self.draining && left && empty && !self.writing {
            self.end(Ok(()));
        }
    }

    fn end(&mut self, result: Result<(), Refused>) {
        if self.phase != Phase::Ended {
            self.phase = Phase::Ended;
            self.actions.push(Action::Lease(0));
            self.actions.push(Action::End(result));
        }
    }

    fn ask(&mut self, ask: Ask) {
        self.actions.push(Action::Ask(ask));
    }

    fn newcomer(&self) -> Newcomer {
        Newcomer {
            name: self.me.name.clone(),
            incarnation: self.own.life.clone(),
            addresses: self.me.addresses.clone(),
        }
    }

    /// Below `most`; the same for the same member and history.
    fn draw(&mut self, most: Ms) -> Ms {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % most.max(1)
    }
}
