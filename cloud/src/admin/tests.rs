//! The pages over a real socket, on a log in memory.

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    bridge,
    cluster::Addresses,
    log::{StreamConfig, testing::test_log},
    route::{Routes, Rule},
};

async fn get(address: std::net::SocketAddr, path: &str) -> (u16, String) {
    ask(address, path, "Host: x").await
}

async fn ask(address: std::net::SocketAddr, path: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn the_pages_say_what_is_there() {
    let log = test_log(2).await.unwrap();
    log.create_stream("plant", Some(2), StreamConfig::default()).await.unwrap();
    let rule = Rule { filter: "plant/#".into(), stream: "plant".into(), ..Rule::default() };
    let routing = Routing::new(Routes::new(vec![rule]).unwrap());
    let bridge = Bridge::new(log.clone(), routing.clone(), bridge::Settings::default());
    let status = Status::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let enrol = Enrol::open(log.clone(), crate::enrol::Settings::default()).await.unwrap();
    let cluster = Cluster::alone(Addresses::default(), log.shards());
    let shown =
        Shown { status: status.clone(), membership: None, log, bridge, enrol, routing, cluster };
    let serving = tributary_shared::tasks::spawn("admin", serve(listener, shown, stop.clone()));

    assert_eq!(get(address, "/health/live").await.0, 200);
    assert_eq!(get(address, "/health/ready").await.0, 503);
    status.set_ready(true);
    assert_eq!(get(address, "/health").await.0, 200);
    let json = async |path| serde_json::from_str::<Value>(&get(address, path).await.1).unwrap();
    assert_eq!(json("/api/streams").await["streams"][0]["name"], "plant");
    assert_eq!(json("/api/streams/plant").await["partitions"][1]["high"], 0);
    assert_eq!(json("/api/routes").await["routes"][0]["stream"], "plant");
    assert_eq!(json("/api/edges").await["edges"], serde_json::json!([]));
    // A proxy on this machine is on loopback, too, and speaks for anybody.
    for (more, code) in [
        ("", 200),
        ("Forwarded: for=10.0.0.1\r\n", 403),
        ("X-Forwarded-For: 10.0.0.1\r\n", 403),
        ("x-real-ip:\r\n", 403),
        ("Via: 1.1 proxy\r\n", 403),
    ] {
        let said = ask(address, "/api/enrol", &format!("{more}Host: localhost:8080")).await;
        assert_eq!(said.0, code, "{more}: {said:?}");
    }
    for missing in ["/api/streams/none", "/api/none", "/none"] {
        let (code, body) = get(address, missing).await;
        assert!(code == 404 && body.contains("not found"), "{missing}: {code} {body}");
    }
    let (_, metrics) = get(address, "/metrics").await;
    assert!(metrics.contains("tributary_partition_high{stream=\"plant\",partition=\"0\"} 0\n"));
    for (page, part) in
        [("/", "<title>Tributary"), ("/app.js", "use strict"), ("/style.css", ":root")]
    {
        let (code, body) = get(address, page).await;
        assert!(code == 200 && body.contains(part), "{page}");
    }
    stop.cancel();
    serving.await.unwrap().unwrap();
}
