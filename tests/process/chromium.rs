//! A real browser, driven over the `DevTools` protocol (<https://chromedevtools.github.io/devtools-protocol/>) through
//! a pipe: messages are JSON and end with NUL.

use std::{path::PathBuf, process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::{
    fs::File,
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
};
use uuid::Uuid;

/// Where distributions put it; `CHROMIUM` says otherwise.
const PROGRAMS: [&str; 4] =
    ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome", "/snap/bin/chromium"];

/// A running browser with one page. Killed when it goes out of scope.
pub struct Chromium {
    _child: Child,
    directory: PathBuf,
    to: File,
    from: BufReader<File>,
    session: String,
    last_id: u64,
    complaints: Vec<String>,
}

impl Chromium {
    /// Starts it without a window, on an empty page.
    pub async fn start() -> Self {
        let mut programs = std::env::var("CHROMIUM").into_iter().chain(PROGRAMS.map(str::to_owned));
        let program = programs.find(|path| std::path::Path::new(path).exists()).expect("Chromium is installed");
        let directory = std::env::temp_dir().join(format!("workflow-api-chromium-{}", Uuid::new_v4()));
        std::fs::create_dir(&directory).expect("a directory");
        let (to, from) = (directory.join("to"), directory.join("from"));
        let made = Command::new("mkfifo").args([&to, &from]).status().await.expect("mkfifo runs");
        assert!(made.success());
        // The shell opens the pipes as the descriptors that the browser reads and writes.
        let script = r#"exec "$0" --headless --no-sandbox --disable-gpu --disable-dev-shm-usage \
            --user-data-dir="$1/profile" --remote-debugging-pipe about:blank 3<"$1/to" 4>"$1/from" 2>"$1/log""#;
        let mut command = Command::new("bash");
        command.arg("-c").arg(script).arg(program).arg(&directory).stdin(Stdio::null()).kill_on_drop(true);
        let child = command.spawn().expect("bash starts");
        let to = File::options().write(true).open(&to).await.expect("the pipe to the browser");
        let from = BufReader::new(File::open(&from).await.expect("the pipe from the browser"));
        let mut browser =
            Self { _child: child, directory, to, from, session: String::new(), last_id: 0, complaints: Vec::new() };
        let targets = browser.call("Target.getTargets", json!({})).await;
        let pages = targets["targetInfos"].as_array().expect("targets");
        let page = pages.iter().find(|target| target["type"] == "page").expect("a page")["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({"targetId": page, "flatten": true})).await;
        browser.session = attached["sessionId"].as_str().expect("a session").to_owned();
        browser
    }

    /// From here on takes note of errors on the console, among them what a content policy has forbidden.
    pub async fn watch_log(&mut self) {
        for domain in ["Log.enable", "Runtime.enable", "Audits.enable"] {
            self.call(domain, json!({})).await;
        }
    }

    /// What was noted so far.
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// Takes note of an event that tells of an error.
    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        let complains = match event["method"].as_str() {
            Some("Log.entryAdded") => params["entry"]["level"] == "error",
            Some("Runtime.consoleAPICalled") => params["type"] == "error",
            Some("Runtime.exceptionThrown") => true,
            Some("Audits.issueAdded") => params["issue"]["code"] == "ContentSecurityPolicyIssue",
            _ => false,
        };
        if complains {
            self.complaints.push(params.to_string());
        }
    }

    /// Calls a method and gives its result; of events meanwhile only errors are noted.
    pub async fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let mut message = json!({"id": self.last_id, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).await.expect("the browser listens");
        self.to.flush().await.expect("the browser listens");
        loop {
            let mut answer = Vec::new();
            let read = self.from.read_until(0, &mut answer);
            let length =
                tokio::time::timeout(Duration::from_mins(10), read).await.expect("the browser answers in time");
            assert_ne!(length.expect("the browser answers"), 0, "the browser ended: {}", self.log());
            let answer: Value = serde_json::from_slice(&answer[..answer.len() - 1]).expect("JSON");
            if answer["id"] == self.last_id {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
            self.note(&answer);
        }
    }

    /// The value of a JavaScript expression; of a promise, what it comes to.
    pub async fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let result = self.call("Runtime.evaluate", params).await;
        assert!(result.get("exceptionDetails").is_none(), "{}", result["exceptionDetails"]);
        result["result"]["value"].clone()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
