//! The sub-commands `ca` and `enroll`: files of the authority; what a running cloud is asked through its admin port.
//!
//! Change here: what an operator types and reads. Not here: what it does (`enrol`, `admin`).

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tributary_shared::clock::wall_ms;

use super::authority;

/// For an answer of the running cloud.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of the longest answer.
const LONGEST: u64 = 64 * 1024 * 1024;

/// Files of the fleet's authority.
#[derive(Debug, Subcommand)]
pub enum Ca {
    /// Make the authority (ca.pem, ca.key) and the certificate of the cloud's listeners (server.pem, server.key).
    ///
    /// Once a fleet. All nodes of the cloud use the same files. Keep a copy of ca.key where nobody reads it.
    ///
    /// Example: tributary-cloud ca init --dir /etc/tributary/ca --host cloud.example.com
    Init {
        /// Folder; made if missing.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Name or address by which edges reach the cloud; may be repeated.
        #[arg(long, value_name = "HOST", required = true)]
        host: Vec<String>,
        /// Name of the fleet.
        #[arg(long, default_value = "Tributary fleet")]
        name: String,
    },
    /// Make a new certificate for the cloud's listeners, good for two years. A running cloud takes it within ten seconds.
    ///
    /// Example: tributary-cloud ca server --dir /etc/tributary/ca --host cloud.example.com
    Server {
        /// Folder with ca.pem and ca.key.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Name or address by which edges reach the cloud; may be repeated.
        #[arg(long, value_name = "HOST", required = true)]
        host: Vec<String>,
    },
}

impl Ca {
    /// Does it; says what was done.
    pub fn run(&self) -> Result<String, Box<dyn std::error::Error>> {
        let now_s = u64::try_from(wall_ms() / 1_000)?;
        let (dir, host) = match self {
            Self::Init { dir, host, name } => {
                authority::init(dir, name, now_s)?;
                (dir, host)
            }
            Self::Server { dir, host } => (dir, host),
        };
        authority::server(dir, host, now_s)?;
        let dir = dir.display();
        Ok(match self {
            Self::Init { .. } => format!(
                "made ca.pem, ca.key, server.pem and server.key in {dir}; docs/operating/enrolment.md says which settings name them\n"
            ),
            Self::Server { .. } => format!("made server.pem and server.key in {dir}\n"),
        })
    }
}

/// Who may be an edge. Asks a running cloud on this machine.
#[derive(Debug, Args)]
pub struct Enroll {
    /// The cloud's admin port.
    #[arg(long, global = true, default_value = "127.0.0.1:8080", value_name = "HOST:PORT")]
    admin: String,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print a one-time token for a gateway: one string for `tributary-edge enrol`.
    ///
    /// Example: tributary-cloud enroll token --edge gw7 --ttl 1h
    Token {
        /// Name of the edge.
        #[arg(long, value_name = "ID")]
        edge: String,
        /// How long it is good: 90s, 30m, 1h, 2d.
        #[arg(long, default_value = "1h", value_parser = seconds)]
        ttl: u64,
    },
    /// Shut an edge out, by its id, or one certificate, by its serial number: now, and at every connect.
    Deny {
        /// Id or serial number.
        name: String,
    },
    /// Let it in again.
    Allow {
        /// Id or serial number.
        name: String,
    },
    /// List enrolled edges and what is denied.
    List,
}

/// Reads 90s, 30m, 1h, 2d.
fn seconds(text: &str) -> Result<u64, &'static str> {
    const FORM: &str = "expected a number and s, m, h or d, as in 1h";
    let unit = text.chars().last().ok_or(FORM)?;
    let each = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(FORM),
    };
    let number: u64 = text.trim_end_matches(unit).parse().map_err(|_| FORM)?;
    number.checked_mul(each).ok_or(FORM)
}

impl Enroll {
    /// Asks; says what was answered.
    pub fn run(&self) -> Result<String, Box<dyn std::error::Error>> {
        match &self.what {
            What::Token { edge, ttl } => {
                let answer = self.ask("/token", Some(json!({"edge": edge, "ttl_s": ttl})))?;
                Ok(format!("{}\n", answer.get("token").and_then(Value::as_str).unwrap_or_default()))
            }
            What::Deny { name } => {
                let answer = self.ask("/deny", Some(json!({"name": name})))?;
                let known = answer.get("known").and_then(Value::as_bool).unwrap_or_default();
                let unknown = "; no edge enrolled here is called so, and no newest certificate has this serial number";
                let more = if known { "" } else { unknown };
                Ok(format!("{name} is denied; its connections are cut{more}\n"))
            }
            What::Allow { name } => {
                let answer = self.ask("/allow", Some(json!({"name": name})))?;
                let was = answer.get("was_denied").and_then(Value::as_bool).unwrap_or_default();
                Ok(format!("{name} {}\n", if was { "is allowed again" } else { "was not denied" }))
            }
            What::List => Ok(listed(&self.ask("", None)?)),
        }
    }

    fn ask(&self, path: &str, body: Option<Value>) -> Result<Value, Box<dyn std::error::Error>> {
        let admin = &self.admin;
        let no = |error: std::io::Error| format!("no cloud at http://{admin}: {error}");
        let mut stream = TcpStream::connect(admin).map_err(no)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(no)?;
        let method = if body.is_some() { "POST" } else { "GET" };
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let length = body.len();
        write!(
            stream,
            "{method} /api/enrol{path} HTTP/1.1\r\nHost: {admin}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
        .map_err(no)?;
        let mut answer = Vec::new();
        stream.take(LONGEST).read_to_end(&mut answer).map_err(no)?;
        let answer = String::from_utf8_lossy(&answer);
        let parts = answer.split_once("\r\n\r\n").and_then(|(head, body)| {
            Some((head.starts_with("HTTP/1.1 200"), serde_json::from_str::<Value>(body).ok()?))
        });
        match parts {
            Some((true, answer)) => Ok(answer),
            Some((false, answer)) => {
                let why = answer.get("error").and_then(Value::as_str).unwrap_or("refused");
                Err(why.to_owned().into())
            }
            None => Err(format!("what listens on {admin} is no cloud's admin port").into()),
        }
    }
}

fn listed(answer: &Value) -> String {
    let mut out = String::new();
    let rows = |kind: &str| answer.get(kind).and_then(Value::as_array).cloned().unwrap_or_default();
    for row in rows("edges") {
        let text = |key: &str| row.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let days = row.get("days_left").and_then(Value::as_i64).unwrap_or_default();
        let (id, serial) = (text("id"), text("serial"));
        out.extend([
            "edge ",
            &*id,
            "  serial ",
            &*serial,
            "  ",
            &*days.to_string(),
            " days left\n",
        ]);
    }
    for row in rows("denied") {
        let name = row.get("name").and_then(Value::as_str).unwrap_or_default();
        out.extend(["denied ", name, "\n"]);
    }
    if out.is_empty() { "nobody is enrolled, nobody is denied\n".to_owned() } else { out }
}
