//! Load test of the server with many simultaneous clients. It compares batched drawing with drawing
//! one picture at a time, in alternating rounds:
//!
//! ```sh
//! cargo run --release -p tessera-serve --example load -- [CANDIDATES [ROWS]]
//! ```
//!
//! It prints the table of docs/performance.md (throughput and latency of requests), and the time to
//! the first partial picture on an idle server. `CANDIDATES` is the number of candidates per
//! request (default 1), and `ROWS` the maximum batch size. The clients are threads of this process,
//! so they share its processors with the server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tessera_model::Tessera;
use tessera_serve::{About, Options, Server};
use tokio::sync::oneshot;

const CLIENTS: usize = 64;
const REQUESTS: usize = 4;
const ROUNDS: usize = 5;
/// The number of rows of one candidate with guidance.
const ONE: usize = 2;

/// The parts of the prompts; each request has a different prompt.
const COLOURS: [&str; 8] = ["red", "blue", "green", "yellow", "black", "white", "purple", "orange"];
const THINGS: [&str; 8] = ["apple", "cat", "flower", "heart", "pizza", "rocket", "tree", "umbrella"];
const STYLES: [&str; 4] = ["noto", "twemoji", "flat", "glossy"];

fn prompt(i: usize) -> String {
    format!("a {} {}, {} style", COLOURS[i % 8], THINGS[i / 8 % 8], STYLES[i / 64 % 4])
}

fn main() -> Result<()> {
    let argument = |at: usize, default: usize| {
        let value = std::env::args().nth(at).map_or(Ok(default), |text| text.parse());
        value.context("wanted: load [candidates per request [rows of a batch]]")
    };
    let (best_of, together) = (argument(1, 1)?, argument(2, Options::ROWS)?);
    let mut rounds = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (rows, rounds) in [together, ONE].into_iter().zip(&mut rounds) {
            rounds.push(with_server(rows, |address| load(address, best_of))?);
        }
    }
    println!("| drawn | requests/s | median | p99 | slowest |\n| --- | --- | --- | --- | --- |");
    for (how, rounds) in ["together", "one at a time"].into_iter().zip(&rounds) {
        let of = |what: fn(&Round) -> f64| median(rounds.iter().map(what));
        let [rate, half, p99, slowest] =
            [of(|r| r.rate), of(|r| r.at(0.5)), of(|r| r.at(0.99)), of(|r| r.at(1.0))];
        println!("| {how} | {rate:.1} | {half:.2} s | {p99:.2} s | {slowest:.2} s |");
    }
    let ratios = rounds[0].iter().zip(&rounds[1]).map(|(together, one)| together.rate / one.rate);
    println!("\nRatio: {:.2}, the median of {ROUNDS} rounds\n", median(ratios));
    let firsts: Vec<f64> =
        with_server(together, |address| (0..21).map(|_| first_partial(address)).collect())?;
    let mut sorted = firsts.clone();
    sorted.sort_by(f64::total_cmp);
    println!(
        "First partial picture on an idle server: median {:.0} ms, slowest of 21 {:.0} ms",
        1e3 * sorted[10],
        1e3 * sorted[20]
    );
    Ok(())
}

/// The measurements of one round of all clients.
struct Round {
    /// The throughput in requests per second.
    rate: f64,
    /// The seconds of each request, sorted.
    seconds: Vec<f64>,
}

impl Round {
    fn at(&self, share: f64) -> f64 {
        let last = self.seconds.len() - 1;
        self.seconds[(share * last as f64).ceil() as usize]
    }
}

fn load(address: SocketAddr, best_of: usize) -> Result<Round> {
    let start = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            std::thread::spawn(move || {
                let request =
                    |i: usize| draw(address, &prompt(client * REQUESTS + i), client * REQUESTS + i, best_of);
                (0..REQUESTS).map(request).collect::<Result<Vec<f64>>>()
            })
        })
        .collect();
    let mut seconds = Vec::new();
    for client in clients {
        seconds.extend(client.join().map_err(|_| anyhow::anyhow!("a client has failed"))??);
    }
    seconds.sort_by(f64::total_cmp);
    Ok(Round { rate: seconds.len() as f64 / start.elapsed().as_secs_f64(), seconds })
}

/// Sends one request and returns its seconds.
fn draw(address: SocketAddr, prompt: &str, seed: usize, best_of: usize) -> Result<f64> {
    let start = Instant::now();
    let mut stream =
        post(address, &json!({ "prompt": prompt, "seed": seed, "best_of": best_of, "size": "192x192" }))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{}", answer.lines().next().unwrap_or_default());
    Ok(start.elapsed().as_secs_f64())
}

/// Returns the seconds from a request to its first partial picture.
fn first_partial(address: SocketAddr) -> Result<f64> {
    let start = Instant::now();
    let stream = post(address, &json!({ "prompt": "a red apple", "stream": true, "partial_images": 11 }))?;
    let mut lines = BufReader::new(stream).lines();
    lines
        .find(|line| {
            line.as_ref().is_ok_and(|line| line.starts_with("event: image_generation.partial_image"))
        })
        .context("no partial picture came")??;
    let seconds = start.elapsed().as_secs_f64();
    lines.for_each(drop); // waits until the server is idle again
    Ok(seconds)
}

fn post(address: SocketAddr, body: &serde_json::Value) -> Result<TcpStream> {
    let body = body.to_string();
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(300)))?;
    write!(
        stream,
        "POST /v1/images/generations HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    Ok(stream)
}

fn with_server<T>(rows: usize, work: impl FnOnce(SocketAddr) -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let about = About { name: "embedded".into(), id: "0".into(), text: String::new(), examples: Vec::new() };
    let options = Options { rows, ..Options::new(Tessera::embedded()?, about) };
    let server = runtime.block_on(Server::bind("127.0.0.1:0", options))?;
    let (address, (stop, stopped)) = (server.address()?, oneshot::channel::<()>());
    let running = runtime.spawn(server.run(async { drop(stopped.await) }));
    // A warm-up: the first request is slower.
    draw(address, "a star", 0, 1)?;
    let done = work(address);
    let _ = stop.send(());
    runtime.block_on(running)?;
    done
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
