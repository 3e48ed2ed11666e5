//! The head as a client meets it: a real socket, requests and answers by hand.

mod fuzz;
mod groups;
mod produce_fetch;
mod samples;
mod sweep;
mod two_nodes;
mod wrong_peers;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use super::{
    Head, Settings,
    frame::{Decodable, Encodable, HeaderVersion},
    schema,
};
use crate::{
    cluster::{Addresses, Cluster},
    group::{self, Groups},
    log::{Log, testing::test_log},
    status::Status,
};

/// A head on a free port; ends when dropped.
struct Server {
    log: Log,
    address: std::net::SocketAddr,
    stop: CancellationToken,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Server {
    async fn start() -> Self {
        Self::over(test_log(2).await.unwrap(), group::Settings::default()).await
    }

    async fn over(log: Log, groups: group::Settings) -> Self {
        let cluster = Cluster::alone(Addresses::default(), log.shards());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::of(log, groups, cluster, listener)
    }

    fn of(log: Log, groups: group::Settings, cluster: Cluster, listener: TcpListener) -> Self {
        let stop = CancellationToken::new();
        let groups = Groups::open(log.clone(), groups, stop.clone());
        let address = listener.local_addr().unwrap();
        let head = serve_owned(listener, log.clone(), groups, cluster, stop.clone());
        drop(tributary_shared::tasks::spawn("kafka head under test", head));
        Self { log, address, stop }
    }

    /// The head is gone without a word; another over the same log, without what was in memory.
    async fn restarted(self) -> Self {
        let log = self.log.clone();
        drop(self);
        let groups =
            group::Settings { initial_rebalance_delay_ms: 0, ..group::Settings::default() };
        Self::over(log, groups).await
    }

    async fn client(&self) -> Wire {
        Wire { socket: TcpStream::connect(self.address).await.unwrap(), correlation: 0 }
    }

    async fn topic(&self, name: &str, partitions: u32) {
        self.log
            .create_stream(name, Some(partitions), crate::log::StreamConfig::default())
            .await
            .unwrap();
    }
}

async fn serve_owned(
    listener: TcpListener,
    log: Log,
    groups: Groups,
    cluster: Cluster,
    stop: CancellationToken,
) {
    let (settings, status) = (Settings::default(), Status::default());
    let head = Head::open(settings, log, groups, cluster, &status, stop).await.unwrap();
    head.serve(listener).await;
}

/// A client that does exactly what it is told.
struct Wire {
    socket: TcpStream,
    correlation: i32,
}

impl Wire {
    /// Sends a request; returns its correlation id.
    async fn send(&mut self, key: i16, version: i16, body: &[u8]) -> i32 {
        self.correlation += 1;
        let mut frame = BytesMut::new();
        frame.put_i32(0);
        frame.put_i16(key);
        frame.put_i16(version);
        frame.put_i32(self.correlation);
        frame.put_i16(4);
        frame.put_slice(b"test");
        if schema::api(key).is_some_and(|api| api.is_flexible(version)) {
            frame.put_u8(0);
        }
        frame.put_slice(body);
        let size = (frame.len() - 4) as u32;
        frame[..4].copy_from_slice(&size.to_be_bytes());
        self.socket.write_all(&frame).await.unwrap();
        self.correlation
    }

    /// The next answer: correlation id and what follows it; `None`: closed.
    async fn receive(&mut self) -> Option<(i32, Bytes)> {
        let size = self.socket.read_i32().await.ok()?;
        let mut frame = vec![0; usize::try_from(size).unwrap()];
        self.socket.read_exact(&mut frame).await.ok()?;
        let mut frame = Bytes::from(frame);
        Some((frame.get_i32(), frame))
    }

    async fn receive_as<T: Decodable + HeaderVersion>(&mut self, version: i16) -> (i32, T) {
        let (correlation, mut body) = self.receive().await.expect("an answer");
        if T::header_version(version) >= 1 {
            assert_eq!(body.get_u8(), 0, "no tagged fields in the header");
        }
        let answer = T::decode(&mut body, version).expect("an answer of that version");
        assert!(body.is_empty(), "{} bytes too many", body.len());
        (correlation, answer)
    }

    async fn ask<T: Decodable + HeaderVersion>(
        &mut self,
        key: i16,
        version: i16,
        request: &impl Encodable,
    ) -> T {
        let mut body = BytesMut::new();
        request.encode(&mut body, version).unwrap();
        let sent = self.send(key, version, &body).await;
        let (answered, answer) = self.receive_as(version).await;
        assert_eq!(sent, answered);
        answer
    }
}
