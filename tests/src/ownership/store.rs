//! The simulated object store: every operation takes effect at one moment, if it does, and its answer comes later, if it does.

use std::collections::BTreeMap;

use tributary_cloud::cluster::{
    map::{Incarnation, Map},
    member::{Answer, Ask, Beat, Event},
};

use super::{ANSWER_MS, Happening, World};

/// A request under way.
#[derive(Debug, Clone)]
pub(super) struct Op {
    process: usize,
    /// By the process's clock.
    began: u64,
    ask: Ask,
    /// When its answer comes; `None`: it is lost, or this is a repeat.
    answered: Option<u64>,
}

pub(super) struct Store {
    overwrites: bool,
    maps: BTreeMap<u64, Map>,
    beats: BTreeMap<Incarnation, BTreeMap<u64, Beat>>,
    /// Every map that ever was.
    pub(super) history: BTreeMap<u64, Map>,
}

impl Store {
    pub(super) fn new(overwrites: bool) -> Self {
        let (maps, beats, history) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { overwrites, maps, beats, history }
    }

    fn apply(&mut self, ask: &Ask) -> Answer {
        match ask {
            Ask::ListMaps => Answer::Maps(self.maps.keys().copied().collect()),
            Ask::ReadMap(version) => Answer::Map(self.maps.get(version).cloned().map(Box::new)),
            Ask::CreateMap(map) => {
                if self.maps.contains_key(&map.version) && !self.overwrites {
                    return Answer::Exists;
                }
                self.maps.insert(map.version, *map.clone());
                Answer::Done
            }
            Ask::ListBeats => Answer::Beats(
                self.beats
                    .iter()
                    .map(|(life, all)| (life.clone(), all.keys().copied().collect()))
                    .collect(),
            ),
            Ask::ReadBeat(life, number) => {
                Answer::Beat(self.beats.get(life).and_then(|all| all.get(number)).cloned())
            }
            Ask::CreateBeat(life, number, beat) => {
                let all = self.beats.entry(life.clone()).or_default();
                if all.contains_key(number) && !self.overwrites {
                    return Answer::Exists;
                }
                all.insert(*number, beat.clone());
                Answer::Done
            }
            Ask::Remove { maps, beats } => {
                for version in maps {
                    self.maps.remove(version);
                }
                for (life, number) in beats {
                    let empty = self.beats.get_mut(life).is_some_and(|all| {
                        all.remove(number);
                        all.is_empty()
                    });
                    if empty {
                        self.beats.remove(life);
                    }
                }
                Answer::Done
            }
        }
    }
}

impl World {
    pub(super) fn ask(&mut self, process: usize, began: u64, ask: Ask) {
        let mut there = 1 + self.random.below(40) as u64;
        let back = 1 + self.random.below(40) as u64;
        let (mut lost, mut unanswered, mut twice) = (false, false, false);
        if self.faulty {
            if self.random.percent(2) {
                // It may still take effect long after nobody waits for it.
                there += self.random.below(20_000) as u64;
            }
            lost = self.random.percent(2);
            unanswered = self.random.percent(2);
            twice = self.random.percent(3);
        }
        let cut =
            |from: u64| self.now + from < self.outage_until.max(self.processes[process].cut_until);
        lost |= cut(there) || cut(0);
        unanswered |= cut(there + back);
        let answer = there + back;
        let in_time = answer < ANSWER_MS && !unanswered && !lost;
        if !in_time {
            let event = Event::Answered { began, ask: ask.clone(), answer: Answer::Failed };
            self.at(self.now + ANSWER_MS, Happening::Deliver(process, event));
        }
        if lost {
            return;
        }
        let answered = in_time.then_some(self.now + answer);
        let op = Op { process, began, ask, answered };
        if twice {
            // A client below repeats the request: it takes effect twice, and the answer may be that of the second.
            let second = in_time && self.random.percent(50);
            let (first_answer, second_answer) =
                if second { (None, answered) } else { (answered, None) };
            let again =
                there + self.random.below(if second { back as usize } else { 5_000 }) as u64;
            self.schedule(self.now + there, Op { answered: first_answer, ..op.clone() });
            self.schedule(self.now + again, Op { answered: second_answer, ..op });
        } else {
            self.schedule(self.now + there, op);
        }
    }

    fn schedule(&mut self, when: u64, op: Op) {
        self.ops.push(Some(op));
        let id = self.ops.len() - 1;
        self.at(when, Happening::Effect(id));
    }

    pub(super) fn effect(&mut self, op: usize) {
        let Some(Op { process, began, ask, answered }) = self.ops[op].take() else { return };
        let answer = self.store.apply(&ask);
        if let Ask::CreateMap(map) = &ask
            && answer == Answer::Done
        {
            match self.store.history.get(&map.version) {
                Some(other) if other != &**map => {
                    self.broken(format!("map {} has two contents", map.version));
                }
                Some(_) => {}
                None => {
                    self.store.history.insert(map.version, *map.clone());
                    self.changed(map.version);
                }
            }
        }
        if let Some(when) = answered {
            let event = Event::Answered { began, ask, answer };
            self.at(when, Happening::Deliver(process, event));
        }
    }
}
