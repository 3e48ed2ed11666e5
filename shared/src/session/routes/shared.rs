//! A shared subscription's members and whose turn it is (4.8.2).

use bytestring::ByteString;

use super::Subscriber;
use crate::session::event::SessionId;

/// One `$share/name/filter`.
#[derive(Debug)]
pub(in super::super) struct Group {
    /// The whole filter as subscribed.
    pub(in super::super) filter: ByteString,
    members: Vec<Subscriber>,
    next: usize,
}

/// How well a member could take a message now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) enum Fit {
    /// Not at all.
    No,
    /// It would drop and count it.
    Over,
    /// Not connected, but its session keeps messages.
    Away,
    /// Connected, its queue is long.
    Full,
    /// Connected, with room.
    Ready,
}

impl Group {
    pub(super) fn new(filter: ByteString) -> Self {
        Self { filter, members: Vec::new(), next: 0 }
    }

    pub(super) fn insert(&mut self, subscriber: Subscriber) {
        match self.members.iter_mut().find(|member| member.session == subscriber.session) {
            Some(member) => *member = subscriber,
            None => self.members.push(subscriber),
        }
    }

    /// Takes a member out; says whether none is left.
    pub(super) fn remove(&mut self, session: SessionId) -> bool {
        if let Some(at) = self.members.iter().position(|member| member.session == session) {
            self.members.remove(at);
            if at < self.next {
                self.next -= 1;
            }
        }
        self.members.is_empty()
    }

    /// The member whose turn it is among those that fit best; the turn moves on.
    pub(in super::super) fn pick(
        &mut self,
        mut fit: impl FnMut(&Subscriber) -> Fit,
    ) -> Option<Subscriber> {
        let count = self.members.len();
        let mut best: Option<(Fit, usize, Subscriber)> = None;
        for step in 0..count {
            let at = (self.next + step) % count;
            let Some(member) = self.members.get(at) else { continue };
            let this = fit(member);
            if this > best.map_or(Fit::No, |(fit, ..)| fit) {
                best = Some((this, at, *member));
            }
            if this == Fit::Ready {
                break;
            }
        }
        let (_, at, member) = best?;
        self.next = (at + 1) % count;
        Some(member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::packet::SubscriptionOptions;

    fn group(members: u64) -> Group {
        let mut group = Group::new("$share/g/a".into());
        for number in 0..members {
            let (session, options) = (SessionId(number), SubscriptionOptions::default());
            group.insert(Subscriber { session, options, id: None });
        }
        group
    }

    #[test]
    fn turns_go_round_those_that_fit_best() {
        let mut group = group(3);
        let mut take = |fits: [Fit; 3]| {
            group.pick(|member| fits[member.session.0 as usize]).map(|member| member.session.0)
        };
        let ready = [Fit::Ready; 3];
        assert_eq!([take(ready), take(ready), take(ready), take(ready)], [0, 1, 2, 0].map(Some));
        assert_eq!(take([Fit::Ready, Fit::Full, Fit::Away]), Some(0));
        assert_eq!(take([Fit::Away, Fit::No, Fit::Full]), Some(2));
        assert_eq!(take([Fit::No, Fit::Away, Fit::No]), Some(1));
        assert_eq!(take([Fit::No; 3]), None);
    }

    #[test]
    fn a_member_that_leaves_does_not_take_the_next_ones_turn() {
        let mut group = group(3);
        group.pick(|_| Fit::Ready);
        assert!(!group.remove(SessionId(0)));
        assert_eq!(group.pick(|_| Fit::Ready).map(|member| member.session.0), Some(1));
        assert!(!group.remove(SessionId(1)));
        assert!(group.remove(SessionId(2)));
    }
}
