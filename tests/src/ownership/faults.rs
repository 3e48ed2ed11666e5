//! Which faults come, and the end of all faults.

use tributary_cloud::cluster::member::Event;

use super::{FAULTS_MS, Happening, World};

/// Nodes there may be.
const SLOTS_MAX: usize = 7;

impl World {
    pub(super) fn fault(&mut self) {
        if self.now >= FAULTS_MS {
            return;
        }
        self.outcome.faults += 1;
        let alive: Vec<usize> =
            (0..self.processes.len()).filter(|id| self.processes[*id].alive).collect();
        let victim = (!alive.is_empty()).then(|| self.random.pick(&alive));
        let slot = victim.map_or(0, |id| self.processes[id].slot);
        let long = |world: &mut Self, most: usize| 100 + world.random.below(most) as u64;
        match (self.random.below(8), victim) {
            (0 | 1, Some(id)) => {
                self.say(format!("p{id} is killed"));
                self.processes[id].kill();
                let back = self.now + long(self, 12_000);
                self.at(back, Happening::Start(slot));
            }
            (2 | 3, Some(id)) => {
                let until = (self.now + long(self, 15_000)).min(FAULTS_MS);
                self.say(format!("p{id} is paused until {until}"));
                let until = until.max(self.processes[id].paused_until);
                self.processes[id].paused_until = until;
                self.at(until, Happening::Wake(id));
            }
            (4, Some(id)) => {
                self.say(format!("p{id} is told to stop"));
                self.processes[id].draining = true;
                self.at(self.now, Happening::Deliver(id, Event::Drain));
                let back = self.now + 2_000 + long(self, 8_000);
                self.at(back, Happening::Start(slot));
            }
            (5, Some(id)) => {
                let until = (self.now + long(self, 15_000)).min(FAULTS_MS);
                self.say(format!("p{id} is cut off until {until}"));
                self.processes[id].cut_until = until;
            }
            (6, Some(_)) if self.random.percent(50) => {
                self.outage_until = (self.now + long(self, 10_000)).min(FAULTS_MS);
                let until = self.outage_until;
                self.say(format!("the store is away until {until}"));
            }
            (6, Some(id)) => {
                self.say(format!("n{slot} is started again beside p{id}"));
                self.at(self.now, Happening::Start(slot));
            }
            _ if self.slots < SLOTS_MAX => {
                let slot = self.slots;
                self.slots += 1;
                self.at(self.now, Happening::Start(slot));
            }
            _ => {}
        }
        let next = self.now + long(self, 7_000);
        self.at(next, Happening::Fault);
    }

    /// The last fault is over; who is away comes back.
    pub(super) fn mend(&mut self) {
        self.say("no more faults".to_owned());
        self.faulty = false;
        for slot in 0..self.slots {
            self.start_again(slot);
        }
    }

    /// As a supervisor would, once the faults are over.
    pub(super) fn start_again(&mut self, slot: usize) {
        let lives = |p: &super::Process| p.alive && p.slot == slot && !p.draining;
        if !self.faulty && !self.processes.iter().any(lives) {
            self.at(self.now + 1_500, Happening::Start(slot));
        }
    }
}
