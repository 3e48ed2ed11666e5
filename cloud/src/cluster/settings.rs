//! Settings of a member of a cluster, and the addresses it tells of itself.
//!
//! In: the section `cluster`, the addresses that listeners have. Out: timings for the member, [`Addresses`] for the map.
//! Not here: listeners (`app`).

use std::net::SocketAddr;

use super::Addresses;

/// Longest name of a node or a cluster; it is part of an object's key.
const NAME_MAX: usize = 63;

tributary_shared::settings! {
    /// The cluster: many nodes over one bucket (or one shared folder, for trials). Without a name for this node it is a single
    /// node that owns everything.
    pub struct Settings {
        /// Name of this node in its cluster (`--node`): letters, digits, `-`, `_`, `.`. The same after every restart, and no other
        /// node's. Empty: a single node.
        pub node: String = String::new(),
        /// Name of the cluster. A node that finds another cluster's data at `data` refuses to start.
        pub name: String = "tributary".into(),
        /// Where clients and the other nodes find this one (`--advertise`): a host, to which each listener's port is added, or
        /// `kafka=host:port,mqtt=host:port,...` with kafka, mqtt, amqp, admin, est, peer, or both: `host,kafka=host:port`. Empty: the
        /// listeners' own addresses.
        pub advertise: String = String::new(),
        /// How often this node says that it lives, ms. Each is one small object written.
        pub heartbeat_ms: u64 = 500 => 20..=60_000,
        /// A node whose heartbeats have not landed for so long serves nothing, ms. At least twice `heartbeat_ms`.
        pub lease_ms: u64 = 3_000 => 100..=300_000,
        /// A node whose heartbeats nobody saw for so long has its shards taken over, ms. At least 1.3 times `lease_ms`.
        pub dead_after_ms: u64 = 4_500 => 150..=600_000,
        /// How often this node looks for changes of who owns what, ms. Each is one small read.
        pub look_ms: u64 = 200 => 10..=60_000,
        /// Shards are moved for balance when no node has come or gone for so long, ms: who restarts does not make clients move twice
        /// at once.
        pub settle_ms: u64 = 2_000 => 0..=600_000,
        /// How long a node that is told to stop may take to hand its shards over, ms.
        pub drain_ms: u64 = 8_000 => 100..=600_000,
    }
}

impl Settings {
    /// Whether this process is a member of a cluster.
    pub fn is_member(&self) -> bool {
        !self.node.is_empty()
    }

    /// What single values cannot say of themselves. One sentence that names the key.
    pub fn check_all(&self) -> Result<(), String> {
        check_name("cluster.name", &self.name)?;
        if self.is_member() {
            check_name("cluster.node", &self.node)?;
        }
        if self.lease_ms < self.heartbeat_ms.saturating_mul(2) {
            return Err("`cluster.lease_ms` must be at least twice `cluster.heartbeat_ms`".into());
        }
        if self.dead_after_ms.saturating_mul(10) < self.lease_ms.saturating_mul(13) {
            return Err(
                "`cluster.dead_after_ms` must be at least 1.3 times `cluster.lease_ms`".into()
            );
        }
        told(&self.advertise, &Addresses::default()).map(drop)
    }
}

fn check_name(key: &str, name: &str) -> Result<(), String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins && name.len() <= NAME_MAX && name.chars().all(fine) {
        return Ok(());
    }
    Err(format!(
        "`{key}` = `{name}` is no name: write 1 to {NAME_MAX} letters, digits, `-`, `_` or `.`, the first a letter or digit"
    ))
}

/// What clients and nodes are told, from the setting `advertise` and where the listeners are. A listener that is not there
/// stays unknown. The error is one sentence.
pub fn told(advertise: &str, bound: &Addresses) -> Result<Addresses, String> {
    let mut told = bound.clone();
    let parts = || advertise.split(',').map(str::trim).filter(|part| !part.is_empty());
    for host in parts().filter(|part| !part.contains('=')) {
        check_host(host)?;
        for address in told.all_mut() {
            if let Ok(listener) = address.parse::<SocketAddr>() {
                *address = format!("{host}:{}", listener.port());
            }
        }
    }
    for (name, address) in parts().filter_map(|part| part.split_once('=')) {
        let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
        check_host(host)?;
        if port.parse::<u16>().map_or(true, |port| port == 0) {
            return Err(format!("`cluster.advertise`: `{address}` has no port; write host:port"));
        }
        let place = match name.trim() {
            "kafka" => &mut told.kafka,
            "mqtt" => &mut told.mqtt,
            "amqp" => &mut told.amqp,
            "admin" => &mut told.admin,
            "est" => &mut told.est,
            "peer" => &mut told.peer,
            other => {
                return Err(format!(
                    "`cluster.advertise`: `{other}` is none of kafka, mqtt, amqp, admin, est, peer"
                ));
            }
        };
        address.clone_into(place);
    }
    for address in told.all_mut() {
        if address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_unspecified()) {
            return Err(format!(
                "nobody can be told {address}: say with --advertise under which host this node is found"
            ));
        }
    }
    Ok(told)
}

fn check_host(host: &str) -> Result<(), String> {
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let fine = match inner {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.contains([':', '/', ' ']),
    };
    if fine { Ok(()) } else { Err(format!("`cluster.advertise`: `{host}` is no host")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound() -> Addresses {
        Addresses {
            kafka: "0.0.0.0:9092".into(),
            admin: "127.0.0.1:8080".into(),
            ..Addresses::default()
        }
    }

    #[test]
    fn a_host_takes_the_listeners_ports_and_single_addresses_win() {
        let all = told("n1.example,kafka=public.example:19092", &bound()).unwrap();
        assert_eq!(all.kafka, "public.example:19092");
        assert_eq!(all.admin, "n1.example:8080");
        assert_eq!(all.est, "", "no listener, no address");
        assert_eq!(told("[::1]", &bound()).unwrap().kafka, "[::1]:9092");
    }

    #[test]
    fn what_nobody_could_reach_is_refused() {
        assert!(told("", &bound()).unwrap_err().contains("--advertise"));
        for bad in ["http://n1", "kafka=n1", "kafka=n1:0", "kafka=:1", "smtp=n1:25", "n1:9092"] {
            assert!(told(bad, &bound()).is_err(), "{bad}");
        }
    }

    #[test]
    fn timings_that_let_two_nodes_serve_are_refused() {
        let settings = Settings { node: "n1".into(), ..Settings::default() };
        assert_eq!(settings.check_all(), Ok(()));
        let short = Settings { dead_after_ms: 3_000, ..settings.clone() };
        assert!(short.check_all().unwrap_err().contains("dead_after_ms"));
        let rare = Settings { heartbeat_ms: 2_000, ..settings.clone() };
        assert!(rare.check_all().unwrap_err().contains("lease_ms"));
        for bad in ["", "a/b", "-x", "ü", &"x".repeat(64)] {
            let named = Settings { name: bad.into(), ..settings.clone() };
            assert!(named.check_all().unwrap_err().contains("cluster.name"), "{bad}");
        }
    }
}
