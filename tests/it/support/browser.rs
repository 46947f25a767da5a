//! [`Browser`]: a headless Chromium, driven through its DevTools protocol over a pair of pipes.
//!
//! The protocol has JSON messages that end with a zero byte. A library for its thousands of commands would take longer
//! to compile than the tests that need ten of them. Always holds: exceptions of scripts and violations of the browser's
//! policy are kept ([`Browser::complaints`]). The browser has its own profile and ends with the value.

use std::{collections::VecDeque, path::Path, process::Command};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::unix::pipe,
    time::timeout,
};

use super::{eventually, patience, process::Process};

/// Usual names, if `CHROMIUM` is not set.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// No sandbox, because tests may run as root in a container, and no requests to the internet.
const FLAGS: [&str; 13] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
];

/// Opens the pipes as the browser expects them, as file descriptors 3 and 4.
const STARTER: &str = r#"
folder=$1
shift
exec "$@" 3<"$folder/commands" 4>"$folder/answers"
"#;

/// A browser with one page.
#[derive(Debug)]
pub struct Browser {
    commands: pipe::Sender,
    answers: BufReader<pipe::Receiver>,
    session: String,
    last: u64,
    events: VecDeque<Value>,
    complaints: Vec<String>,
    process: Process,
    _folder: TempDir,
}

impl Browser {
    /// Starts a browser. Without Chromium, prints a message and returns `None`.
    pub async fn start() -> Option<Self> {
        let Some(program) = program() else {
            println!("SKIPPED: there is no Chromium: scripts/chromium --bring installs one, and CHROMIUM names one.");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("etcd-relay-test-").tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        for name in ["commands", "answers"] {
            let made = Command::new("mkfifo").arg(path(name)).status().expect("mkfifo");
            assert!(made.success(), "mkfifo {name}");
        }
        // Opened for reading and writing, so that neither side waits for the browser or takes its absence for the end.
        let commands = pipe::OpenOptions::new().read_write(true).open_sender(path("commands")).expect("a pipe");
        let answers = pipe::OpenOptions::new().read_write(true).open_receiver(path("answers")).expect("a pipe");
        let mut command =
            vec!["sh".to_owned(), "-c".to_owned(), STARTER.to_owned(), "sh".to_owned(), text(folder.path())];
        command.push(program);
        command.extend(FLAGS.map(str::to_owned));
        command.push(format!("--user-data-dir={}", text(&path("profile"))));
        let process = Process::spawn("Chromium", &command, &[], &path("chromium.log"));
        let mut browser = Self {
            commands,
            answers: BufReader::new(answers),
            session: String::new(),
            last: 0,
            events: VecDeque::new(),
            complaints: Vec::new(),
            process,
            _folder: folder,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" })).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", attach).await;
        browser.session = attached["sessionId"].as_str().expect("a session").to_owned();
        for domain in ["Page.enable", "Runtime.enable", "Log.enable", "Network.enable"] {
            browser.call(domain, json!({})).await;
        }
        Some(browser)
    }

    /// Opens an address.
    pub async fn open(&mut self, url: &str) {
        let opened = self.call("Page.navigate", json!({ "url": url })).await;
        assert!(opened["errorText"].is_null(), "{url}: {opened}");
    }

    /// The value of an expression in the page; a promise is awaited.
    pub async fn value(&mut self, expression: &str) -> Value {
        let asked = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let answer = self.call("Runtime.evaluate", asked).await;
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer:#}");
        answer["result"]["value"].clone()
    }

    /// The visible text of the first match of a selector; empty if there is none.
    pub async fn text(&mut self, selector: &str) -> String {
        let value = self.value(&format!("document.querySelector({})?.innerText ?? ''", json!(selector))).await;
        value.as_str().expect("a text").to_owned()
    }

    /// Waits until the text of a selector's first match contains this text.
    pub async fn until_text(&mut self, selector: &str, wanted: &str) {
        self.until(&format!("document.querySelector({})?.innerText.includes({})", json!(selector), json!(wanted)))
            .await;
    }

    /// Waits until an expression is true.
    pub async fn until(&mut self, expression: &str) {
        let what = format!("the page: {expression}");
        eventually(&what, async || (self.value(expression).await == Value::Bool(true)).then_some(())).await;
    }

    /// Types a text into an empty field.
    pub async fn type_into(&mut self, selector: &str, typed: &str) {
        self.value(&format!("document.querySelector({}).focus()", json!(selector))).await;
        self.call("Input.insertText", json!({ "text": typed })).await;
    }

    /// Presses a key, such as `Enter`.
    pub async fn press(&mut self, key: &str, code: u32, typed: &str) {
        for kind in ["keyDown", "keyUp"] {
            let event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": if kind == "keyDown" { typed } else { "" } });
            self.call("Input.dispatchKeyEvent", event).await;
        }
    }

    /// Shows the page on a screen of this size, light or dark.
    pub async fn screen(&mut self, width: u32, height: u32, scheme: &str) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size).await;
        let scheme = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", scheme).await;
    }

    /// Saves a screenshot as PNG.
    pub async fn picture(&mut self, path: &Path) {
        let picture = self.call("Page.captureScreenshot", json!({ "format": "png", "optimizeForSpeed": false })).await;
        let data = BASE64_STANDARD.decode(picture["data"].as_str().expect("a picture")).expect("base64");
        std::fs::write(path, data).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Exceptions of scripts, violations of the browser's policy, and failed loads since the last call.
    pub async fn complaints(&mut self) -> Vec<String> {
        // This ensures that earlier events have arrived.
        self.value("0").await;
        std::mem::take(&mut self.complaints)
    }

    /// The requested addresses since the last call.
    pub async fn requests(&mut self) -> Vec<String> {
        self.value("0").await;
        let events = std::mem::take(&mut self.events).into_iter();
        let asked = events.filter(|event| event["method"] == "Network.requestWillBeSent");
        asked.filter_map(|event| event["params"]["request"]["url"].as_str().map(str::to_owned)).collect()
    }

    /// Sends a command of the protocol and returns its result.
    pub async fn call(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let id = self.last;
        let mut command = json!({ "id": id, "method": method, "params": params });
        if !self.session.is_empty() {
            command["sessionId"] = self.session.clone().into();
        }
        let mut bytes = command.to_string().into_bytes();
        bytes.push(0);
        self.commands.write_all(&bytes).await.expect("the browser takes commands");
        loop {
            let mut message = Vec::new();
            let read = timeout(patience(), self.answers.read_until(0, &mut message)).await;
            read.unwrap_or_else(|_| panic!("no answer to {method}")).expect("the browser answers");
            assert_eq!(message.pop(), Some(0), "the browser ended during {method}");
            let message: Value = serde_json::from_slice(&message).expect("JSON");
            if message["id"] == id {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
            self.note(message);
        }
    }

    fn note(&mut self, event: Value) {
        let params = &event["params"];
        match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.complaints.push(format!("thrown: {}", params["exceptionDetails"])),
            Some("Log.entryAdded") if params["entry"]["level"] == "error" => {
                self.complaints.push(format!("log: {} {}", params["entry"]["text"], params["entry"]["url"]));
            }
            // Any output on the console is unexpected, since the page itself writes none.
            Some("Runtime.consoleAPICalled") => self.complaints.push(format!("console: {}", params["args"])),
            Some("Page.javascriptDialogOpening") => self.complaints.push(format!("dialog: {params}")),
            Some("Network.requestWillBeSent") => self.events.push_back(event),
            _ => {}
        }
    }
}

fn program() -> Option<String> {
    let named = std::env::var("CHROMIUM").ok().filter(|name| !name.is_empty());
    named
        .into_iter()
        .chain(NAMES.map(str::to_owned))
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()))
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path of text").to_owned()
}
