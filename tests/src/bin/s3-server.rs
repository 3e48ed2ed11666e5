//! The in-memory S3-compatible server as a program: for trials, `s3-server 127.0.0.1:9000`.

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into()).parse()?;
    let local = tributary_tests::s3::MemoryS3::default().serve(address).await?;
    tributary_tests::say(&format!("ready {{\"s3\":\"{local}\"}}"));
    tokio::signal::ctrl_c().await?;
    Ok(())
}
