//! A whole fleet that comes back at once, on paused time and without sockets.

use std::{
    io::Write as _,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use tokio::{io::DuplexStream, time::Instant};

use super::*;

const EDGES: usize = 500;
const BATCHES: u64 = 24;
/// About what a batch has on the wire.
const BATCH_BYTES: usize = 8 * 1024;
/// Uploads that an edge has under way.
const WINDOW: u64 = 16;
const TURNS: usize = 16;
const FLIGHT_BYTES: usize = 1024 * 1024;

fn settings() -> Settings {
    Settings {
        connections_per_second: 600,
        live_bytes_per_second: 16 * 1024,
        catch_up_edges: TURNS,
        catch_up_waiting: 300,
        catch_up_bytes: FLIGHT_BYTES,
        catch_up_turn_bytes: 32 * 1024,
        // Stands for a store that is slower than the fleet: time passes only here.
        catch_up_bytes_per_second: 4 * 1024 * 1024,
        ..Settings::default()
    }
}

/// What is seen of the whole while it happens.
#[derive(Default)]
struct Seen {
    acked: AtomicUsize,
    told_later: AtomicUsize,
    in_flight_most: AtomicUsize,
}

fn connect(bridge: &Bridge) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let bridge = bridge.clone();
    tributary_shared::tasks::spawn("edge", async move {
        let settings = connection::Settings::default();
        let opened = handshake(theirs, &settings, &Counters::default()).await.unwrap();
        bridge.serve(opened, "10.0.0.1:1".into(), CancellationToken::new()).await;
    });
    ours
}

fn retry_after(properties: &[(bytestring::ByteString, bytestring::ByteString)]) -> Duration {
    let (_, seconds) = properties.iter().find(|(name, _)| name == "retry-after-s").unwrap();
    Duration::from_secs(seconds.parse().unwrap())
}

fn payload(seq: u64) -> String {
    let mut noise = seq.wrapping_add(1);
    let mut byte = || {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'a' + ((noise >> 60) as u8))
    };
    (0..BATCH_BYTES * 2).map(|_| byte()).collect()
}

/// One connection's time; the sequence it got to, and how long to stay away if it was told.
async fn once(
    bridge: &Bridge,
    id: &str,
    from: u64,
    backlog: &[String],
    seen: &Seen,
) -> (u64, Option<Duration>) {
    let (mut edge, connack) = Edge::over(connect(bridge), id, "1").await;
    assert_eq!(connack.reason, Reason::SUCCESS);
    let window = u64::from(connack.properties.receive_maximum.unwrap()).min(WINDOW);
    let (mut sent, mut acked) = (from, from);
    while acked < BATCHES {
        while sent < BATCHES && sent < acked + window {
            edge.upload(id, 7, sent, &[("t", &backlog[sent as usize])]).await;
            sent += 1;
        }
        match edge.receive().await {
            Some(Packet::PubAck(ack)) => {
                assert_eq!(ack.reason, Reason::SUCCESS);
                acked += 1;
                seen.acked.fetch_add(1, Relaxed);
            }
            Some(Packet::Disconnect(disconnect)) => {
                let at_once = Reason::CONNECTION_RATE_EXCEEDED;
                assert!([Reason::QUOTA_EXCEEDED, at_once].contains(&disconnect.reason));
                return (acked, Some(retry_after(&disconnect.user_properties)));
            }
            other => panic!("{other:?}"),
        }
        let busy = bridge.busy();
        assert!(busy.catching_up <= TURNS && busy.waiting <= 300, "{busy:?}");
        seen.in_flight_most.fetch_max(busy.in_flight_bytes, Relaxed);
    }
    (acked, None)
}

/// Until its backlog is drained; how long that took.
async fn drain(bridge: Bridge, id: String, backlog: Arc<[String]>, seen: Arc<Seen>) -> Duration {
    let start = Instant::now();
    let mut from = 0;
    loop {
        let (acked, wait) = once(&bridge, &id, from, &backlog, &seen).await;
        from = acked;
        match wait {
            Some(wait) => {
                seen.told_later.fetch_add(1, Relaxed);
                tokio::time::sleep(wait).await;
            }
            None => return start.elapsed(),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_whole_fleet_drains_in_turns_while_live_data_passes() {
    let log = test_log(1).await.unwrap();
    let bridge = Bridge::new(log.clone(), Routing::new(Routes::default()), settings());
    let seen = Arc::new(Seen::default());
    let (mut live, _) = Edge::over(connect(&bridge), "live", "1").await;
    let backlog: Arc<[String]> = (0..BATCHES).map(payload).collect();
    let fleet: Vec<_> = (0..EDGES)
        .map(|id| drain(bridge.clone(), format!("gw{id}"), backlog.clone(), seen.clone()))
        .map(tokio::spawn)
        .collect();
    let mut waited_most = Duration::ZERO;
    for seq in 0..40 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let sent = Instant::now();
        live.upload("live", 1, seq, &[("t", "alarm")]).await;
        assert_eq!(live.ack().await.reason, Reason::SUCCESS);
        waited_most = waited_most.max(sent.elapsed());
    }
    let meanwhile = seen.acked.load(Relaxed);
    let mut finished = Vec::new();
    for edge in fleet {
        finished.push(edge.await.unwrap());
    }
    let (first, last) = (finished.iter().min().unwrap(), finished.iter().max().unwrap());
    let told_later = seen.told_later.load(Relaxed);
    let in_flight = seen.in_flight_most.load(Relaxed);
    let told = writeln!(
        std::io::stderr(),
        "{EDGES} edges, {} MB: first done after {first:?}, last after {last:?}; told to come later {told_later} times; in \
         flight at most {in_flight} bytes; live uploads waited at most {waited_most:?}",
        EDGES * BATCHES as usize * BATCH_BYTES / 1_000_000
    );
    told.unwrap();
    assert_eq!(seen.acked.load(Relaxed), EDGES * BATCHES as usize);
    // In turns: nobody is done long before the fleet, and those told to come later are served soon after.
    assert!(*first * 6 > *last, "{first:?} of {last:?}");
    assert!(told_later > 0 && in_flight <= FLIGHT_BYTES);
    assert!(meanwhile > 0 && waited_most < Duration::from_millis(10), "{waited_most:?}");
    let marks = log.edge_marks("gw499").await.unwrap();
    assert_eq!(marks, [(7, BATCHES)]);
}
