//! Tests with connections that are half closed, slow, idle, or refused while they still send.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;
use tessera_serve::{Keys, Options, limits};

use super::client::{Answer, Running, form, head};

const GENERATIONS: &str = "/v1/images/generations";
const EDITS: &str = "/v1/images/edits";
const FORM: &str = "multipart/form-data; boundary=edge";

#[test]
fn half_closed_connection_still_gets_its_answer() {
    let server = Running::new();
    for (stream, version) in [(false, "1.1"), (true, "1.1"), (false, "1.0")] {
        let asked = json!({ "prompt": "a cat", "best_of": 256, "stream": stream }).to_string();
        let head = head(GENERATIONS, "application/json", asked.len())
            .replace("HTTP/1.1", &format!("HTTP/{version}"));
        let mut client = server.connect();
        client.write_all(&[head.as_bytes(), asked.as_bytes()].concat()).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        // HTTP/1.1 allows this before the answer.
        let answer = answer.trim_start_matches("HTTP/1.1 100 Continue\r\n\r\n");
        assert!(
            answer.starts_with(&format!("HTTP/{version} 200 OK")) && answer.contains("b64_json"),
            "{answer:.300}"
        );
    }
    assert!(server.get("/metrics").text().contains("tessera_cancelled_total 0"));
}

/// Forms that do not arrive do not block other forms.
#[test]
fn slow_forms_do_not_block_other_forms() {
    let server = Running::new();
    let start = b"--edge\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a\"\r\n\r\n";
    let slow = |bytes: usize| {
        let mut client = server.connect();
        client.write_all(head(EDITS, FORM, 1_000_000).as_bytes()).unwrap();
        client.write_all(&[start, &vec![0; bytes][..]].concat()).unwrap();
        client
    };
    let waiting: Vec<TcpStream> = (0..40).map(|_| slow(0)).collect();
    let begun = Instant::now();
    large_form(&server);
    assert!(begun.elapsed() < Duration::from_secs(5), "waited for {:?}", begun.elapsed());
    // Forms that have a place must continue to arrive.
    let stalled: Vec<TcpStream> = (0..limits::FORMS_AT_ONCE).map(|_| slow(500_000)).collect();
    std::thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    large_form(&server);
    assert!(
        begun.elapsed() < limits::FORM_PACE.window + Duration::from_secs(5),
        "waited for {:?}",
        begun.elapsed()
    );
    for client in stalled {
        let (status, message) = Answer::read(client).error();
        assert!(
            status == 408 && message.contains("of the body came within 5 seconds: wanted 64 KiB at least"),
            "{message}"
        );
    }
    for client in waiting {
        let (status, message) = Answer::read(client).error();
        assert!(status == 408 && message.contains("within 30 seconds"), "{message}");
    }
}

/// Sends a form that is large enough to need a place.
fn large_form(server: &Running) {
    let large = vec![0; limits::SMALL_FORM_BYTES + 1000];
    let (kind, body) = form(&[("image", Some("a.png"), &large[..]), ("keep_rows", None, b"4")]);
    let (status, message) = server.post_as(EDITS, &kind, &body).error();
    assert!(status == 400 && message.contains("not a PNG, JPEG or WebP"), "{message}");
}

/// Most clients do not read anything before they have sent everything.
#[test]
fn refused_client_can_send_everything_and_read_the_error() {
    let keys = std::env::temp_dir().join(format!("tessera-drained-{}", std::process::id()));
    std::fs::write(&keys, "key").unwrap();
    let known = Keys::read(&keys).unwrap();
    std::fs::remove_file(&keys).unwrap();
    let (open, closed) = (Running::new(), Running::with(|options| Options { keys: Some(known), ..options }));
    let twice = form(&[
        ("prompt", None, b"a"),
        ("prompt", None, b"b"),
        ("image", Some("a.png"), &vec![0; 10_000_000]),
    ]);
    for (server, path, kind, body, status) in [
        (&open, EDITS, FORM, vec![b'0'; 30_000_000], 413),
        (&open, GENERATIONS, "application/json", vec![b'0'; 300_000], 413),
        (&open, EDITS, FORM, twice.1, 400),
        (&open, "/v1/nothing", "text/plain", vec![b'0'; 3_000_000], 404),
        (&closed, EDITS, FORM, vec![b'0'; 10_000_000], 401),
    ] {
        let mut client = server.connect();
        client.write_all(head(path, kind, body.len()).as_bytes()).unwrap();
        for piece in body.chunks(1 << 16) {
            client.write_all(piece).unwrap();
        }
        assert_eq!(Answer::read(client).error().0, status);
    }
    // A client that sends `Expect` is answered immediately and need not send the body.
    let mut client = open.connect();
    let head = head(EDITS, FORM, 30_000_000).replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    client.write_all(head.as_bytes()).unwrap();
    let begun = Instant::now();
    let answer = Answer::read(client);
    assert!(answer.status == 413 && begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

/// Clients keep connections, some for a minute, and send their next request without checking
/// whether the connection is still open.
#[test]
fn idle_connection_stays_open_for_the_next_request() {
    let server = Running::new();
    let mut client = BufReader::new(server.connect());
    for pause in [limits::HEAD_TIMEOUT + Duration::from_secs(3), Duration::ZERO] {
        client.get_mut().write_all(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
        let mut line = String::new();
        client.read_line(&mut line).unwrap();
        assert_eq!(line, "HTTP/1.1 200 OK\r\n");
        let mut length = 0;
        while line != "\r\n" {
            line.clear();
            client.read_line(&mut line).unwrap();
            length =
                line.strip_prefix("content-length: ").map_or(length, |value| value.trim().parse().unwrap());
        }
        client.read_exact(&mut vec![0; length]).unwrap();
        std::thread::sleep(pause);
    }
    assert_eq!(limits::IDLE_TIMEOUT, Duration::from_secs(75));
}
