//! A server for tests, and a client that can also send invalid requests.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use serde_json::Value;
use tessera_model::Tessera;
use tessera_model::weights::model_id;
use tessera_serve::{About, Options, Server};
use tokio::sync::oneshot;

/// A running server with the embedded model. Dropping it stops the server.
pub struct Running {
    /// The address on which the server listens.
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    /// Starts a server with the default options.
    pub fn new() -> Running {
        Running::with(|options| options)
    }

    /// Starts a server with changed options.
    pub fn with(change: impl FnOnce(Options) -> Options + Send + 'static) -> Running {
        let (sender, address) = channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let id = model_id(tessera_pretrained::MODEL);
            let about = About { name: "embedded".into(), id, text: String::new(), examples: Vec::new() };
            let options = change(Options::new(Tessera::embedded().unwrap(), about));
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let server = Server::bind("127.0.0.1:0", options).await.unwrap();
                sender.send(server.address().unwrap()).unwrap();
                server.run(async { drop(stopped.await) }).await;
            });
        });
        Running { address: address.recv().unwrap(), stop: Some(stop), thread: Some(thread) }
    }

    /// Asks the server to stop after the current requests, and does not wait for it.
    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Sends a GET request and reads the answer.
    pub fn get(&self, path: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"), &[])
    }

    /// Sends a POST request with a JSON body and reads the answer.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_as(path, "application/json", body.to_string().as_bytes())
    }

    /// Sends a POST request with a body of the content type `kind` and reads the answer.
    pub fn post_as(&self, path: &str, kind: &str, body: &[u8]) -> Answer {
        self.send(&head(path, kind, body.len()), body)
    }

    /// Sends these bytes and reads the answer.
    pub fn send(&self, head: &str, body: &[u8]) -> Answer {
        let mut stream = self.connect();
        stream.write_all(head.as_bytes()).unwrap();
        // This fails if the server refuses the request early and closes the connection.
        let _ = stream.write_all(body);
        Answer::read(stream)
    }

    /// Opens a connection to the server.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(100))).unwrap();
        stream
    }

    /// Waits until the server draws nothing any more. The worker cancels requests of disconnected
    /// clients between two steps.
    pub fn comes_to_rest(&self) {
        let start = Instant::now();
        while self.pending() > 0 {
            assert!(start.elapsed() < Duration::from_secs(2), "still drawing for a disconnected client");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Returns the number of requests that are being drawn or waiting.
    pub fn pending(&self) -> u64 {
        self.get("/healthz").json()["pending"].as_u64().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Returns the head of a request with a body.
pub fn head(path: &str, kind: &str, length: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    )
}

/// The answer to a request.
pub struct Answer {
    /// The HTTP status code.
    pub status: u16,
    /// The status line and the headers, in lower case.
    pub head: String,
    /// The body, joined if it was sent in chunks.
    pub body: Vec<u8>,
}

impl Answer {
    /// Reads the answer up to the end of the connection.
    pub fn read(mut stream: TcpStream) -> Answer {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("the head is incomplete");
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = bytes[end + 4..].to_vec();
        let chunked = head.contains("transfer-encoding: chunked");
        Answer { status, body: if chunked { joined(&body) } else { body }, head }
    }

    /// Parses the body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    /// Returns the body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns the status and the message of an error, and checks its format.
    pub fn error(&self) -> (u16, String) {
        let error = &self.json()["error"];
        assert!(
            error["type"].is_string() && error["code"].is_string() && error.get("param").is_some(),
            "{error}"
        );
        (self.status, error["message"].as_str().unwrap().to_string())
    }

    /// Returns the data of the server-sent events.
    pub fn events(&self) -> Vec<Value> {
        let text = self.text();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

/// Joins the chunks of a body.
fn joined(mut body: &[u8]) -> Vec<u8> {
    let mut joined = Vec::new();
    while let Some(end) = body.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        joined.extend(&body[end + 2..(end + 2 + size).min(body.len())]);
        body = body.get(end + 4 + size..).unwrap_or_default();
    }
    joined
}

/// Returns the content type and the body of a form. A field has a name, an optional file name, and
/// bytes.
pub fn form(fields: &[(&str, Option<&str>, &[u8])]) -> (String, Vec<u8>) {
    let mut body = Vec::new();
    for (name, file, bytes) in fields {
        let file = file.map(|file| format!("; filename=\"{file}\"")).unwrap_or_default();
        let head = format!("--edge\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n");
        body.extend([head.as_bytes(), bytes, b"\r\n"].concat());
    }
    body.extend(b"--edge--\r\n");
    ("multipart/form-data; boundary=edge".to_string(), body)
}
