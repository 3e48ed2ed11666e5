//! `enrol`: a token becomes a key and a certificate in the data folder.
//!
//! Change here: what the person reads. Not here: how it is done (`enrol`).

use std::path::Path;

use clap::Args;
use tributary_shared::enrol::Token;

use super::{Failed, say, serve::Serve};
use crate::enrol;

/// Arguments of `enrol`.
#[derive(Debug, Args)]
pub struct Enrol {
    #[command(flatten)]
    serve: Serve,
    /// What `tributary-cloud enroll token` printed; - reads it from stdin.
    #[arg(value_name = "TOKEN")]
    token: String,
}

impl Enrol {
    /// Enrols.
    pub async fn run(&self) -> Result<(), Failed> {
        let config = self.serve.config().map_err(Failed::cannot)?;
        let mut text = self.token.clone();
        if text == "-" {
            text.clear();
            std::io::stdin().read_line(&mut text).map_err(Failed::cannot)?;
        }
        let token = Token::parse(&text).ok_or_else(|| {
            Failed::cannot(
                "this is no token: give the whole line that `tributary-cloud enroll token` printed",
            )
        })?;
        if !config.id.is_empty() && config.id != token.id {
            let (own, its) = (&config.id, &token.id);
            let why = format_args!("the token is for {its}, and `id` of this edge is {own}");
            return Err(Failed::cannot(why));
        }
        let done = enrol::enrol(&token, Path::new(&config.data)).await.map_err(Failed::refused)?;
        let host = token.at.rsplit_once(':').map_or(&*token.at, |(host, _)| host);
        let mut text = format!("{done}.\n");
        if !config.uplink.cloud.starts_with("mqtts://") {
            let id = &token.id;
            let next = format!(
                "Now set `id = \"{id}\"` and, below [uplink], `cloud = \"mqtts://{host}:8883\"` (or where your cloud listens), and start the edge.\n",
            );
            text.push_str(&next);
        }
        text += "`tributary-edge doctor` tries the way to the cloud. The certificate renews itself while the edge runs.\n";
        say(text.as_bytes()).map(|_| ())
    }
}
