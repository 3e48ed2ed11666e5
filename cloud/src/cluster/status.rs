//! What a node says of its cluster, as JSON, and the sub-command `status` that asks a node and shows it.
//!
//! In: view and map; for the sub-command, the admin port of any node, which names the others. Out: one document a node; a table.
//! Change here: what an operator sees of a cluster. Not here: HTTP (`admin`).

use std::{
    fmt::Write as _,
    io::{Read as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _},
    time::Duration,
};

use clap::Args;
use serde_json::{Value, json};

use super::{Cluster, map::Standing, task::Membership};
use crate::{engine::ShardId, log::Log};

/// For a node's answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Bytes of the longest answer.
const LONGEST: u64 = 16 * 1024 * 1024;

/// What this node knows: nodes, shards and their owners, moves under way.
pub fn document(cluster: &Cluster, membership: Option<&Membership>, log: &Log) -> Value {
    let view = cluster.view();
    let map = membership.map(Membership::map);
    let load = |id| view.shards.iter().filter(|leader| leader.owner == Some(id)).count();
    let nodes: Vec<_> = view
        .nodes
        .values()
        .map(|node| {
            let member = map.as_ref().and_then(|map| map.nodes.get(&node.id));
            let standing = member.map_or(Standing::Up, |member| member.standing);
            json!({
                "id": node.id, "name": node.name, "standing": standing,
                "addresses": node.addresses, "shards": load(node.id),
            })
        })
        .collect();
    let shards = (0..).map(ShardId).zip(&view.shards).map(|(shard, leader)| {
        let next = map.as_ref().and_then(|map| map.place(shard).next);
        json!({
            "shard": shard.0, "owner": leader.owner, "epoch": leader.epoch, "next": next,
            "here": log.is_here(shard),
        })
    });
    let shards: Vec<_> = shards.collect();
    json!({
        "member": membership.is_some(),
        "node": view.me,
        "cluster": map.as_ref().map(|map| map.cluster.clone()),
        "id": map.as_ref().map(|map| map.id.clone()),
        "version": view.version,
        "sure": membership.is_none_or(Membership::is_sure),
        "moves": map.map_or(0, |map| map.shards.iter().filter(|p| p.next.is_some()).count()),
        "nodes": nodes,
        "shards": shards,
    })
}

/// Show nodes, shards and their owners, moves, and which node lags. Asks a running node, and through it all others.
///
/// Example: tributary-cloud status --admin 127.0.0.1:8080
#[derive(Debug, Args)]
pub struct Status {
    /// Admin port of any node.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "HOST:PORT")]
    admin: String,
    /// The same as one JSON document.
    #[arg(long)]
    json: bool,
}

impl Status {
    /// Asks; says what was answered.
    pub fn run(&self) -> Result<String, Box<dyn std::error::Error>> {
        let asked = ask(&self.admin)?;
        let all = gather(asked, |address| ask(address).ok());
        Ok(if self.json { format!("{all:#}\n") } else { table(&all) })
    }
}

fn ask(admin: &str) -> Result<Value, String> {
    let no = |error: &dyn std::fmt::Display| format!("no cloud at http://{admin}: {error}");
    let address = admin.to_socket_addrs().map_err(|error| no(&error))?.next();
    let address = address.ok_or_else(|| no(&"the name has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(|error| no(&error))?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(|error| no(&error))?;
    write!(stream, "GET /api/cluster HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n")
        .map_err(|error| no(&error))?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).map_err(|error| no(&error))?;
    let answer = String::from_utf8_lossy(&answer);
    let body = answer.split_once("\r\n\r\n").filter(|(head, _)| head.starts_with("HTTP/1.1 200"));
    body.and_then(|(_, body)| serde_json::from_str(body).ok())
        .ok_or_else(|| format!("what listens on {admin} is no cloud's admin port"))
}

fn list<'a>(of: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    of.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn number(of: &Value, key: &str) -> Option<i64> {
    of.get(key).and_then(Value::as_i64)
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The newest map that any node knows; each node with how many versions it lags behind; each shard with whether its owner
/// serves it. A node that does not answer says nothing of itself.
fn gather(asked: Value, ask: impl Fn(&str) -> Option<Value>) -> Value {
    let mut answers = Vec::new();
    for node in list(&asked, "nodes") {
        let id = number(node, "id");
        if id == number(&asked, "node") {
            answers.push((id, asked.clone()));
        } else if let Some(answer) = node
            .get("addresses")
            .map(|all| text(all, "admin"))
            .filter(|at| !at.is_empty())
            .and_then(&ask)
        {
            answers.push((id, answer));
        }
    }
    let version = |answer: &Value| number(answer, "version").unwrap_or(0);
    let newest = answers.iter().map(|(_, answer)| answer).max_by_key(|answer| version(answer));
    let mut all = newest.cloned().unwrap_or(asked);
    let known = version(&all);
    let of = |id: Option<i64>| answers.iter().find(|(of, _)| *of == id).map(|(_, answer)| answer);
    for node in all.get_mut("nodes").and_then(Value::as_array_mut).into_iter().flatten() {
        let answer = of(number(node, "id"));
        let lag = answer.map(|answer| known - version(answer));
        let sure = answer.and_then(|answer| answer.get("sure").cloned());
        if let Some(node) = node.as_object_mut() {
            node.insert("lag".into(), lag.into());
            node.insert("sure".into(), sure.into());
        }
    }
    for shard in all.get_mut("shards").and_then(Value::as_array_mut).into_iter().flatten() {
        let (owner, id) = (number(shard, "owner"), number(shard, "shard"));
        let at_owner = of(owner).and_then(|answer| {
            let found = list(answer, "shards").find(|shard| number(shard, "shard") == id);
            found?.get("here").cloned()
        });
        if let Some(shard) = shard.as_object_mut() {
            shard.remove("here");
            shard.insert("served".into(), at_owner.into());
        }
    }
    if let Some(all) = all.as_object_mut() {
        all.remove("node");
        all.remove("sure");
    }
    all
}

fn table(all: &Value) -> String {
    let mut out = String::new();
    let name = |id: Option<i64>| {
        let node = list(all, "nodes").find(|node| id.is_some() && number(node, "id") == id);
        node.map_or("-", |node| text(node, "name"))
    };
    // Writing to a String cannot fail.
    if all.get("member").and_then(Value::as_bool) != Some(true) {
        let shards = list(all, "shards").count();
        let _ = writeln!(out, "a single node that owns all {shards} shards");
        return out;
    }
    let (version, moves) = (number(all, "version").unwrap_or(0), number(all, "moves").unwrap_or(0));
    let _ =
        writeln!(out, "cluster {}  map {version}  moves under way {moves}", text(all, "cluster"));
    let _ = writeln!(
        out,
        "\n{:<4} {:<20} {:<9} {:>6}  {:<12} kafka",
        "id", "node", "standing", "shards", "state"
    );
    for node in list(all, "nodes") {
        let lag = number(node, "lag");
        let state = match (node.get("sure").and_then(Value::as_bool), lag) {
            (Some(true), Some(0)) => "ok".to_owned(),
            (Some(true), Some(lag)) => format!("{lag} behind"),
            (Some(false), _) => "no lease".to_owned(),
            _ => "no answer".to_owned(),
        };
        let (id, shards) = (number(node, "id").unwrap_or(0), number(node, "shards").unwrap_or(0));
        let kafka = node.get("addresses").map_or("", |all| text(all, "kafka"));
        let _ = writeln!(
            out,
            "{id:<4} {:<20} {:<9} {shards:>6}  {state:<12} {kafka}",
            text(node, "name"),
            text(node, "standing")
        );
    }
    let _ =
        writeln!(out, "\n{:<6} {:<20} {:>6}  {:<9} moves to", "shard", "owner", "epoch", "served");
    for shard in list(all, "shards") {
        let served = match shard.get("served").and_then(Value::as_bool) {
            Some(true) => "yes",
            Some(false) => "no",
            None => "unknown",
        };
        let next = number(shard, "next").map_or("", |next| name(Some(next)));
        let (id, epoch) =
            (number(shard, "shard").unwrap_or(0), number(shard, "epoch").unwrap_or(0));
        let line =
            format!("{id:<6} {:<20} {epoch:>6}  {served:<9} {next}", name(number(shard, "owner")));
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(node: i64, version: i64, here: [bool; 2]) -> Value {
        let at = |name: &str| json!({"admin": name, "kafka": format!("{name}:9092")});
        json!({
            "member": true, "node": node, "cluster": "c", "version": version, "sure": true, "moves": 1,
            "nodes": [
                {"id": 1, "name": "a", "standing": "up", "addresses": at("a"), "shards": 1},
                {"id": 2, "name": "b", "standing": "up", "addresses": at("b"), "shards": 1},
                {"id": 3, "name": "c", "standing": "up", "addresses": at("c"), "shards": 0},
            ],
            "shards": [
                {"shard": 0, "owner": 1, "epoch": 4, "next": null, "here": here[0]},
                {"shard": 1, "owner": 2, "epoch": 2, "next": 3, "here": here[1]},
            ],
        })
    }

    #[test]
    fn all_nodes_together_say_who_lags_and_what_is_served() {
        let others = |at: &str| (at == "b").then(|| answer(2, 9, [false, true]));
        let all = gather(answer(1, 7, [false, false]), others);
        assert_eq!(number(&all, "version"), Some(9));
        let of = |key: &str, at: usize, what: &str| all[key][at][what].clone();
        assert_eq!(of("nodes", 0, "lag"), json!(2));
        assert_eq!(of("nodes", 1, "lag"), json!(0));
        assert_eq!(of("nodes", 2, "lag"), Value::Null);
        assert_eq!(of("shards", 0, "served"), json!(false));
        assert_eq!(of("shards", 1, "served"), json!(true));
        let text = table(&all);
        assert!(text.contains("2 behind") && text.contains("no answer"), "{text}");
        assert!(text.contains("1      b                         2  yes       c\n"), "{text}");
    }
}
