//! Which node gets which shard. PURE.
//!
//! In: a map in which nodes came, leave or are gone. Out: the same map with an owner for every shard that has none, and with
//! moves begun. Rules: a shard stays where it is unless its node goes or has too many; no node has more than the number of
//! shards divided by the number of nodes, rounded up, once the moves are done; a node gives and gets one shard at a time, unless
//! it leaves: then all at once. Change here: balance. When to balance is `member`'s to say. Not here: how a move is done (`member`).

use std::collections::BTreeMap;

use super::{
    NodeId,
    map::{Map, Standing},
};

/// Gives every shard an owner, and those of leaving nodes another. Does nothing if nobody may own shards.
pub fn place(map: &mut Map) {
    forget_lost_targets(map);
    let mut loads = loads(map);
    if loads.is_empty() {
        return;
    }
    for place in &mut map.shards {
        let owner = place.owner.and_then(|id| map.nodes.get(&id)).map(|m| m.standing);
        match owner {
            // Nobody serves it: it is given at once.
            None | Some(Standing::Gone) => place.give(take_least(&mut loads)),
            Some(Standing::Leaving) if place.next.is_none() => {
                place.next = take_least(&mut loads);
            }
            Some(_) => {}
        }
    }
}

/// Shards of each node that may own some, once all moves are done.
fn loads(map: &Map) -> BTreeMap<NodeId, usize> {
    let mut loads: BTreeMap<NodeId, usize> = map.up().map(|id| (id, 0)).collect();
    for target in map.shards.iter().filter_map(super::map::Place::target) {
        loads.entry(target).and_modify(|load| *load += 1);
    }
    loads
}

/// Moves to nodes that may not own shards any more are off.
fn forget_lost_targets(map: &mut Map) {
    for place in &mut map.shards {
        let is_up = |id: &NodeId| map.nodes.get(id).is_some_and(|m| m.standing == Standing::Up);
        place.next = place.next.filter(|next| is_up(next) && place.owner != Some(*next));
    }
}

fn least(loads: &BTreeMap<NodeId, usize>) -> Option<NodeId> {
    loads.iter().min_by_key(|(id, load)| (**load, **id)).map(|(id, _)| *id)
}

fn take_least(loads: &mut BTreeMap<NodeId, usize>) -> Option<NodeId> {
    let id = least(loads)?;
    loads.entry(id).and_modify(|load| *load += 1);
    Some(id)
}

/// Begins moves from nodes that have more to nodes that have fewer.
pub fn balance(map: &mut Map) {
    let mut loads = loads(map);
    let moving = |map: &Map, id: NodeId| {
        let involved = |p: &super::map::Place| p.owner == Some(id) || p.next == Some(id);
        map.shards.iter().any(|place| place.next.is_some() && involved(place))
    };
    // Each round begins a move of one node that had none.
    for _ in 0..loads.len() {
        let idle = |id: &NodeId| !moving(map, *id);
        let by_load = |(id, load): (&NodeId, &usize)| (*load, *id);
        let free = || loads.iter().filter(|(id, _)| idle(id)).map(by_load);
        let (Some((most, from)), Some((fewest, to))) = (free().max(), free().min()) else { return };
        if most <= fewest + 1 {
            return;
        }
        // The last one: shard 0, which holds the streams, stays longest.
        let owned = |p: &&mut super::map::Place| p.owner == Some(from) && p.next.is_none();
        let Some(place) = map.shards.iter_mut().rev().find(owned) else { return };
        place.next = Some(to);
        loads.entry(from).and_modify(|load| *load -= 1);
        loads.entry(to).and_modify(|load| *load += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::{
            Addresses,
            map::{Incarnation, Newcomer},
        },
        engine::ShardId,
    };

    fn join(map: &mut Map, name: usize) -> NodeId {
        map.join(&Newcomer {
            name: format!("n{name}"),
            incarnation: Incarnation(String::new()),
            addresses: Addresses::default(),
        })
    }

    /// All that owners do: hands over what is to move, until nothing is. Returns how many moved.
    fn settle(map: &mut Map) -> usize {
        for moves in 0.. {
            place(map);
            balance(map);
            let next = map.places().find(|(_, place)| place.next.is_some());
            let Some((shard, Some(owner))) = next.map(|(s, p)| (s, p.owner)) else { return moves };
            map.hand_over(shard, owner);
        }
        0
    }

    fn held(map: &Map) -> Vec<usize> {
        let load = |id| map.shards.iter().filter(|place| place.owner == Some(id)).count();
        map.up().map(load).collect()
    }

    fn is_balanced(map: &Map) -> bool {
        let loads = held(map);
        let most = map.shards.len().div_ceil(loads.len());
        loads.iter().sum::<usize>() == map.shards.len() && loads.iter().all(|load| *load <= most)
    }

    #[test]
    fn a_first_node_gets_all_and_a_second_one_half() {
        let mut map = Map::empty("c", "id", 8);
        let a = join(&mut map, 1);
        assert_eq!(settle(&mut map), 0, "nothing moves, all is given");
        assert_eq!(held(&map), [8]);
        join(&mut map, 2);
        place(&mut map);
        balance(&mut map);
        let moving = map.shards.iter().filter(|place| place.next.is_some()).count();
        assert_eq!(moving, 1, "one at a time");
        assert_eq!(settle(&mut map), 4);
        assert_eq!(held(&map), [4, 4]);
        assert_eq!(map.place(ShardId(0)).owner, Some(a));
    }

    #[test]
    fn a_leaving_node_gives_all_at_once_and_to_nobody_that_leaves() {
        let mut map = Map::empty("c", "id", 8);
        let (a, b) = (join(&mut map, 1), join(&mut map, 2));
        settle(&mut map);
        let c = join(&mut map, 3);
        map.leave(c);
        map.leave(a);
        place(&mut map);
        let of_a = map.shards.iter().filter(|place| place.owner == Some(a));
        assert!(of_a.clone().count() == 4 && of_a.into_iter().all(|p| p.next == Some(b)));
        settle(&mut map);
        assert_eq!(held(&map), [8]);
        // The last one has nobody to give to.
        map.leave(b);
        let before = map.clone();
        place(&mut map);
        assert_eq!(map, before);
    }

    #[test]
    fn a_move_to_a_node_that_goes_is_off() {
        let mut map = Map::empty("c", "id", 2);
        let a = join(&mut map, 1);
        settle(&mut map);
        let b = join(&mut map, 2);
        balance(&mut map);
        assert_eq!(map.place(ShardId(1)).next, Some(b));
        map.remove(b);
        place(&mut map);
        assert!(map.shards.iter().all(|p| p.owner == Some(a) && p.next.is_none()));
    }

    #[test]
    fn whoever_comes_and_goes_loads_are_bounded_and_few_shards_move() {
        let mut random = 7_u64;
        let mut draw = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) as usize % below
        };
        for shards in [1, 3, 8, 64] {
            let mut map = Map::empty("c", "id", shards);
            join(&mut map, 0);
            settle(&mut map);
            for step in 1..200 {
                let up: Vec<_> = map.up().collect();
                let of = |map: &Map, id| {
                    map.shards.iter().filter(|place| place.owner == Some(id)).count()
                };
                let (allowed, left) = match draw(3) {
                    0 if up.len() > 1 => {
                        let id = up[draw(up.len())];
                        map.remove(id);
                        (0, None)
                    }
                    1 if up.len() > 1 => {
                        let id = up[draw(up.len())];
                        map.leave(id);
                        (of(&map, id), Some(id))
                    }
                    _ => {
                        join(&mut map, step);
                        (usize::from(shards).div_ceil(up.len() + 1), None)
                    }
                };
                let moved = settle(&mut map);
                if let Some(id) = left {
                    map.remove(id);
                }
                assert!(is_balanced(&map), "{shards} shards, step {step}: {:?}", held(&map));
                assert!(moved <= allowed, "{moved} moved, {allowed} had to");
            }
        }
    }
}
