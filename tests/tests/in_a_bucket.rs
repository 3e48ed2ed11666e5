//! The same promises with the data in a bucket: the engine's contract, and a cloud that is killed, on a real S3 interface.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use rdkafka::Message as _;
use slatedb::object_store::{ClientOptions, aws::AmazonS3Builder};
use tributary_cloud::engine::{
    Engine, EngineError, Settings,
    contract::{Place, every_promise},
    slate::SlateEngine,
};
use tributary_tests::{
    Checker, Cloud, Device, Edge,
    checker::{Verdict, payload},
    kafka::Reader,
    s3::{ACCESS_KEY, MemoryS3, SECRET_KEY},
};

struct Bucket(SocketAddr);

#[async_trait]
impl Place for Bucket {
    async fn start(&self) -> Result<Arc<dyn Engine>, EngineError> {
        let store = AmazonS3Builder::new()
            .with_endpoint(format!("http://{}", self.0))
            .with_client_options(ClientOptions::new().with_allow_http(true))
            .with_region("us-east-1")
            .with_bucket_name("contract")
            .with_access_key_id(ACCESS_KEY)
            .with_secret_access_key(SECRET_KEY)
            .build()
            .map_err(|error| EngineError::Store(error.to_string()))?;
        let settings = Settings { shards: 2, flush_ms: 20, ..Settings::default() };
        Ok(Arc::new(SlateEngine::objects(Arc::new(store), &settings).await?))
    }

    fn shared(&self) -> bool {
        true
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_in_a_bucket_keeps_every_promise() {
    let any = "127.0.0.1:0".parse().expect("address");
    let server = MemoryS3::default().serve(any).await.expect("server");
    every_promise(&Bucket(server)).await.expect("promise");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_cloud_finds_everything_in_the_bucket() {
    let any = "127.0.0.1:0".parse().expect("address");
    let server = MemoryS3::default().serve(any).await.expect("server");
    tokio::task::spawn_blocking(move || {
        let folder = tempfile::tempdir().expect("folder");
        let cloud = Cloud::start_in_bucket(server, "killed");
        let quick = ["--set", "uplink.backoff_min_ms=50", "--set", "uplink.backoff_max_ms=500"];
        let edge = Edge::start_with(folder.path(), "gw1", Some(cloud.mqtt), &quick);
        let mut checker = Checker::default();
        let mut device = Device::connect(edge.mqtt, "d").expect("connect");
        let mut publish = |range: std::ops::Range<u64>, checker: &mut Checker| {
            let from = range.start;
            range.clone().for_each(|seq| checker.sent("d", seq));
            let messages = range.map(|seq| ("b/d".to_owned(), payload("d", seq).into()));
            device
                .publish_all(messages, 50, |index| checker.acked("d", from + index as u64))
                .expect("published");
        };
        publish(0..3_000, &mut checker);
        let cloud = cloud.restart();
        publish(3_000..5_000, &mut checker);
        let reader = Reader::new(cloud.kafka, "mqtt.messages");
        while !checker.complete() {
            let message = reader.next(Duration::from_secs(30)).expect("more");
            checker.read(message.payload().unwrap_or_default());
        }
        assert_eq!(checker.verdict(), Verdict::default());
    })
    .await
    .expect("run");
}
