//! How long a shard takes to open after its owner was killed, and to close: on the S3 test server with a latency, and in a
//! folder.
//!
//! In: how many small commits, each durable before the next, and how long a request takes. Out: one line a measurement.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use clap::Parser;
use slatedb::object_store::{
    ClientOptions, ObjectStore,
    aws::AmazonS3Builder,
    throttle::{ThrottleConfig, ThrottledStore},
};
use tokio::time::Instant;
use tributary_cloud::engine::{
    Engine, Settings, ShardId, Sharing, Write, open, slate::SlateEngine,
};
use tributary_tests::s3::{ACCESS_KEY, MemoryS3, SECRET_KEY};

/// Measures taking over a shard whose owner wrote many small objects and was killed.
#[derive(Parser)]
struct Arguments {
    /// Commits of 100 bytes, each of them durable before the next.
    #[arg(long, default_value_t = 10_000)]
    commits: u64,
    /// What a request to the bucket takes while the shard is opened and closed, ms.
    #[arg(long, default_value_t = 10)]
    latency_ms: u64,
    /// In a folder instead of a bucket.
    #[arg(long)]
    folder: bool,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let settings = Settings { shards: 1, flush_ms: 1, ..Settings::default() };
    let folder = tempfile::tempdir()?;
    if arguments.folder {
        let url = format!("file://{}", folder.path().display());
        let settings = Settings { flush_ms: 0, ..settings };
        let (engine, _) = open(&url, &settings, Sharing::Alone).await?;
        fill(engine.as_ref(), arguments.commits).await?;
        // Opening again ends the earlier opening first, without a flush: what a kill leaves.
        return measure("folder", engine.as_ref()).await;
    }
    let server = MemoryS3::default().serve("127.0.0.1:0".parse()?).await?;
    let bucket = AmazonS3Builder::new()
        .with_endpoint(format!("http://{server}"))
        .with_client_options(ClientOptions::new().with_allow_http(true))
        .with_region("us-east-1")
        .with_bucket_name("measure")
        .with_access_key_id(ACCESS_KEY)
        .with_secret_access_key(SECRET_KEY)
        .build()?;
    let slow = Arc::new(ThrottledStore::new(bucket, ThrottleConfig::default()));
    let objects: Arc<dyn ObjectStore> = Arc::clone(&slow) as _;
    let killed = SlateEngine::objects(Arc::clone(&objects), &settings).await?;
    fill(&killed, arguments.commits).await?;
    let wait = Duration::from_millis(arguments.latency_ms);
    slow.config_mut(|config| {
        config.wait_get_per_call = wait;
        config.wait_put_per_call = wait;
        config.wait_delete_per_call = wait;
        config.wait_list_per_call = wait;
        config.wait_list_with_delimiter_per_call = wait;
    });
    let settings = Settings { flush_ms: 0, ..settings };
    let engine = SlateEngine::objects(objects, &settings).await?;
    measure("bucket", &engine).await
}

async fn fill(engine: &dyn Engine, commits: u64) -> Result<(), Box<dyn std::error::Error>> {
    let shard = engine.open(ShardId(0)).await?;
    let start = Instant::now();
    for n in 0..commits {
        let commit = shard.write(some(n)).await?;
        shard.durable(commit).await?;
    }
    tributary_tests::say(&format!("{commits} commits in {:.1} s", start.elapsed().as_secs_f64()));
    Ok(())
}

/// Records, a tail and a mark, as a commit of the log has them.
fn some(n: u64) -> Vec<Write> {
    let value = Bytes::from(vec![7; 100]);
    let record = Bytes::from([b"R\0".as_slice(), &n.to_be_bytes()].concat());
    ["T", "E"]
        .into_iter()
        .map(|key| Write::Put(Bytes::from(format!("{key}{}", n % 10)), Bytes::from(n.to_string())))
        .chain([Write::Put(record, value)])
        .collect()
}

async fn measure(name: &str, engine: &dyn Engine) -> Result<(), Box<dyn std::error::Error>> {
    let start = Instant::now();
    let shard = engine.open(ShardId(0)).await?;
    tributary_tests::say(&format!("{name}: open after a kill {} ms", start.elapsed().as_millis()));
    shard.write(some(0)).await?;
    let start = Instant::now();
    shard.close().await?;
    tributary_tests::say(&format!("{name}: close {} ms", start.elapsed().as_millis()));
    let start = Instant::now();
    let shard = engine.open(ShardId(0)).await?;
    tributary_tests::say(&format!("{name}: open after a close {} ms", start.elapsed().as_millis()));
    Ok(shard.close().await?)
}
