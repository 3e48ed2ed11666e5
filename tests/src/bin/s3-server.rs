//! The in-memory S3-compatible server as a program: for trials, `s3-server 127.0.0.1:9000 [CONTROL]`.
//!
//! At CONTROL its faults are switched while it runs, by a line of JSON: `{"latency_ms":[20,80],"unavailable_percent":10}`; `{}` ends
//! them. It ends with SIGINT or SIGTERM, and its objects with it.

use tokio::signal::unix::{SignalKind, signal};
use tributary_tests::s3::MemoryS3;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut address = || arguments.next().unwrap_or_else(|| "127.0.0.1:0".into()).parse();
    let store = MemoryS3::default();
    let (s3, control) = (store.serve(address()?).await?, store.serve_control(address()?).await?);
    tributary_tests::say(&format!("ready {{\"s3\":\"{s3}\",\"control\":\"{control}\"}}"));
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        ended = tokio::signal::ctrl_c() => ended?,
        _ = terminate.recv() => {}
    }
    Ok(())
}
