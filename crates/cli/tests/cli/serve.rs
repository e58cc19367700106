//! Tests of `tessera serve` as a program: its output, its log and its end. The crate `serve` tests
//! its answers.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};

use super::pipeline::pipeline;
use super::program::{Finished, command, folder, mistake};

/// Starts a server whose standard error is a pipe, and returns it with its address.
pub fn serve(dir: &Path, args: &[&str]) -> (Child, String) {
    serve_with(dir, args, Stdio::piped())
}

/// Starts a server with this standard error, and returns it with its address.
pub fn serve_with(dir: &Path, args: &[&str], stderr: Stdio) -> (Child, String) {
    let model = pipeline().model();
    let bind: &[&str] = if args.contains(&"--bind") { &[] } else { &["--bind", "127.0.0.1:0"] };
    let all = [&["serve", "--model", &model], bind, args].concat();
    let mut child = command(dir, &all).stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let suffix = " is ready; press Ctrl-C to stop\n";
    let address = line.strip_prefix("http://").and_then(|line| line.strip_suffix(suffix));
    let address = address.unwrap_or_else(|| panic!("the server printed {line:?}")).to_string();
    (child, address)
}

/// Sends a request and returns the answer.
pub fn ask(address: &str, head: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(
        stream,
        "{head} HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
#[cfg(unix)]
fn serve_draws_logs_and_stops_on_sigterm() {
    let dir = folder();
    let (mut child, address) = serve(dir.path(), &["--log", "json"]);
    assert!(ask(&address, "GET /healthz", "").contains(r#""status":"ok""#));
    let answer =
        ask(&address, "POST /v1/images/generations", r#"{"prompt": "a secret cat", "size": "32x32"}"#);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("b64_json"), "{answer}");
    let stop = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(stop.success());
    assert!(child.wait().unwrap().success());
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let drawn = lines.iter().find(|line| line["route"] == "/v1/images/generations").unwrap();
    assert_eq!((&drawn["status"], &drawn["method"]), (&200.into(), &"POST".into()));
    assert!(!log.contains("secret"), "prompts must not be logged");
}

#[test]
fn serve_with_invalid_flags_is_an_error_of_one_line() {
    let dir = folder();
    fs::write(dir.path().join("no-keys"), "# none\n").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (args, wanted) in [
        (&["--api-key-file", "none"][..], "cannot read none"),
        (&["--api-key-file", "no-keys"], "no-keys contains no key: wanted one per line"),
        (&["--rows", "0"], "--rows 0: wanted 1 to 1024"),
        (&["--model", "none.safetensors"], "cannot read none.safetensors"),
        (&["--bind", &taken], "choose another --bind"),
        (&["--bind", "localhost"], "wanted HOST:PORT of this machine"),
    ] {
        let error = mistake(dir.path(), &[&["serve", "--log", "off"], args].concat());
        assert!(error.contains(wanted), "{args:?}: {error}");
    }
    for (flag, value, wanted) in [
        ("--public-url", "example.org", "wanted an address such as https://example.org/tessera"),
        ("--cors-origin", "https://example.org/page", "not an origin: wanted one such as"),
    ] {
        let output = Finished::of(command(dir.path(), &["serve", flag, value]).output().unwrap());
        assert!(output.code == Some(2) && output.stderr.contains(wanted), "{flag}: {}", output.stderr);
    }
}

#[test]
fn serve_binds_to_a_host_name() {
    let dir = folder();
    let (mut child, address) = serve(dir.path(), &["--bind", "localhost:0"]);
    assert!(ask(&address, "GET /healthz", "").contains(r#""status":"ok""#), "{address}");
    child.kill().unwrap();
    child.wait().unwrap();
}
