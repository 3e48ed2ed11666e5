//! A real browser on one page: Chromium without a window, driven over its DevTools protocol.
//!
//! Holds: start, load a page, wait for a condition in it, everything its console complained of. In: a URL. Out: values of
//! expressions. Change here: how the browser is started. Not here: what pages promise (`tests/consoles.rs`).

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

/// For a start, and for a condition to come true.
const PATIENCE: Duration = Duration::from_mins(1);

/// One page. The browser is killed when this is dropped.
#[derive(Debug)]
pub struct Browser {
    process: Child,
    _profile: TempDir,
    socket: WebSocketStream<TcpStream>,
    session: Option<String>,
    last: u64,
    /// Errors, warnings and exceptions, as the console showed them.
    pub complaints: Vec<String>,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The browser, if this machine has one.
pub fn installed() -> Option<PathBuf> {
    let folders = std::env::split_paths(&std::env::var_os("PATH")?).collect::<Vec<_>>();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let all = folders.iter().flat_map(|folder| names.map(|name| folder.join(name)));
    all.into_iter().find(|path| path.is_file())
}

impl Browser {
    /// Starts the browser and loads the page.
    pub async fn open(program: &Path, url: &str) -> Self {
        let profile = tempfile::tempdir().expect("folder");
        let mut process = Command::new(program)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
            ])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ])
            .args(["--disable-dev-shm-usage", "--remote-debugging-port=0", "about:blank"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("chromium starts");
        let mut lines = BufReader::new(process.stderr.take().expect("piped")).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("DevTools listening on ").map(str::to_owned))
            .expect("chromium says where it listens");
        // Whatever else it says must not block it.
        std::thread::spawn(move || lines.map_while(Result::ok).count());
        let host = address.trim_start_matches("ws://").split('/').next().expect("a host");
        let stream = TcpStream::connect(host).await.expect("connect to chromium");
        let (socket, _) = client_async(&address, stream).await.expect("a WebSocket");
        let mut browser = Self {
            process,
            _profile: profile,
            socket,
            session: None,
            last: 0,
            complaints: Vec::new(),
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"})).await;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.call("Target.attachToTarget", attach).await;
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Runtime.enable", "Log.enable", "Page.enable"] {
            browser.call(domain, json!({})).await;
        }
        browser.call("Page.navigate", json!({"url": url})).await;
        browser
    }

    /// Waits until the JavaScript expression is true.
    pub async fn until(&mut self, condition: &str) {
        let expression = format!(
            "new Promise(done => {{ const look = () => {{ let is = false; try {{ is = ({condition}); }} \
             catch {{}} if (is) done(true); else setTimeout(look, 50); }}; look(); }})"
        );
        // A new document ends what waits in the old one: then it is asked again there.
        let asked = async { while self.evaluate(&expression).await != Value::Bool(true) {} };
        let came = timeout(PATIENCE, asked).await.is_ok();
        if !came {
            let text = self.evaluate("document.body.innerText").await;
            panic!("never: {condition}; the page says:\n{}", text.as_str().unwrap_or_default());
        }
    }

    /// The value of an expression, awaited if it is a promise.
    pub async fn evaluate(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        self.call("Runtime.evaluate", asked).await["result"]["value"].take()
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let id = self.last;
        let mut request = json!({"id": id, "method": method, "params": params});
        if let Some(session) = &self.session {
            request["sessionId"] = session.as_str().into();
        }
        self.socket.send(Message::text(request.to_string())).await.expect("chromium lives");
        loop {
            let message = self.socket.next().await.expect("chromium lives").expect("a message");
            let Ok(text) = message.to_text() else { continue };
            let Ok(mut message) = serde_json::from_str::<Value>(text) else { continue };
            if message["id"] == id {
                return message["result"].take();
            }
            self.complaints.extend(complaint(&message));
        }
    }
}

/// What an event complains of.
fn complaint(event: &Value) -> Option<String> {
    let params = &event["params"];
    let what = match event["method"].as_str()? {
        "Runtime.exceptionThrown" => &params["exceptionDetails"],
        "Runtime.consoleAPICalled" if params["type"] == "error" || params["type"] == "warning" => {
            &params["args"]
        }
        "Log.entryAdded"
            if params["entry"]["level"] == "error" || params["entry"]["level"] == "warning" =>
        {
            &params["entry"]["text"]
        }
        _ => return None,
    };
    Some(what.to_string())
}
