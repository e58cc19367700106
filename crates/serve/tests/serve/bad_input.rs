//! Tests with invalid input and misbehaving clients: each gets a clear error in the API's format,
//! and the requests of other clients are not affected.

use std::io::{Cursor, Read, Write};
use std::time::{Duration, Instant};

use image::{ImageFormat, RgbImage};
use serde_json::{Value, json};
use tessera_serve::limits;

use super::client::{Answer, Running, form, head};

const GENERATIONS: &str = "/v1/images/generations";
const EDITS: &str = "/v1/images/edits";

fn picture(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    RgbImage::new(width, height).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Returns a PNG whose header states a false size.
fn false_size(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = picture(48, 48);
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let sum = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |sum: u32, byte: &u8| {
        let mut sum = sum ^ u32::from(*byte);
        (0..8).for_each(|_| sum = if sum & 1 == 1 { 0xedb8_8320 ^ (sum >> 1) } else { sum >> 1 });
        sum
    };
    !bytes.iter().fold(!0, step)
}

fn still_draws(server: &Running) {
    let answer = server.post(GENERATIONS, &json!({ "prompt": "a red apple", "best_of": 1 }));
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn every_invalid_parameter_is_named() {
    let server = Running::new();
    let long = "a".repeat(limits::PROMPT_CHARS + 1);
    for (asked, status, wanted) in [
        (json!({}), 400, "There is no 'prompt'"),
        (json!({ "prompt": 7 }), 400, "'prompt' is 7: wanted a text"),
        (json!({ "prompt": long }), 400, "4001 characters: wanted 4000 at most"),
        (json!({ "prompt": "a", "n": 0 }), 400, "'n' is 0: wanted a whole number from 1 to 64"),
        (json!({ "prompt": "a", "n": 10_000 }), 400, "'n' is 10000: wanted a whole number from 1 to 64"),
        (json!({ "prompt": "a", "n": 1.5 }), 400, "'n' is 1.5"),
        (json!({ "prompt": "a", "n": "two" }), 400, "'n' is \"two\""),
        (json!({ "prompt": "a", "n": "2.5" }), 400, "'n' is \"2.5\""),
        (json!({ "prompt": "a", "n": [2] }), 400, "'n' is [2]"),
        (json!({ "prompt": "a", "guidance": "nan" }), 400, "'guidance' is \"nan\": wanted a number"),
        (
            json!({ "prompt": "a", "guidance": 1e39 }),
            400,
            "'guidance' is 1e+39: wanted a number up to 3.4e38",
        ),
        (json!({ "prompt": "a", "guidance": "-1e39" }), 400, "wanted a number up to 3.4e38"),
        (json!({ "prompt": "a", "temperature": 1e300 }), 400, "wanted a number up to 3.4e38"),
        (json!({ "prompt": "a", "top_p": 1e39 }), 400, "wanted a number up to 3.4e38"),
        (json!({ "prompt": "a", "n": -1 }), 400, "'n' is -1"),
        (json!({ "prompt": "a", "best_of": 513 }), 400, "from 1 to 512"),
        (json!({ "prompt": "a", "n": 4, "best_of": 2 }), 400, "'best_of' is 2: wanted at least 'n'"),
        (json!({ "prompt": "a", "size": "1024x1792" }), 400, "wanted a square from 48x48 to 1024x1024"),
        (json!({ "prompt": "a", "size": "99999999999x99999999999" }), 400, "wanted a square"),
        (json!({ "prompt": "a", "n": 64, "size": "1024x1024" }), 400, "pixels at most in all"),
        (
            json!({ "prompt": "a", "best_of": 512, "stream": true, "partial_images": 11 }),
            400,
            "5632 partial ones of 192x192",
        ),
        (json!({ "prompt": "a", "response_format": "png" }), 400, "wanted b64_json or url"),
        (json!({ "prompt": "a", "output_format": "gif" }), 400, "wanted png, jpeg or webp"),
        (json!({ "prompt": "a", "output_compression": 101 }), 400, "from 0 to 100"),
        (json!({ "prompt": "a", "temperature": -1 }), 400, "temperature -1: wanted 0 or more"),
        (json!({ "prompt": "a", "top_p": 0 }), 400, "top-p 0"),
        (json!({ "prompt": "a", "seed": -1 }), 400, "'seed' is -1"),
        (json!({ "prompt": "a", "stream": "yes" }), 400, "wanted true or false"),
        (json!({ "prompt": "a", "stream": true, "async": true }), 400, "wanted one of them"),
        (json!({ "prompt": "a", "negative_prompt": "b", "guidance": 1 }), 400, "works through guidance"),
        (json!({ "prompt": "a", "promtp": "b" }), 400, "There is no parameter 'promtp'"),
        (json!({ "prompt": "a", "model": "other" }), 404, "There is no model 'other' here"),
        (json!(["prompt"]), 400, "not a JSON object"),
    ] {
        let answer = server.post(GENERATIONS, &asked);
        let (got, message) = answer.error();
        assert!(got == status && message.contains(wanted), "{asked}: {got} {message}");
    }
    still_draws(&server);
}

#[test]
fn malformed_json_and_other_types_are_refused() {
    let server = Running::new();
    for body in ["", "{", "{\"prompt\": }", "{\"prompt\": \"\\ud800\"}", "\u{0}", "[[[[[[[["] {
        let (status, message) = server.post_as(GENERATIONS, "application/json", body.as_bytes()).error();
        assert!(status == 400 && message.contains("not JSON"), "{body}: {message}");
    }
    let deep = "[".repeat(200_000);
    assert_eq!(server.post_as(GENERATIONS, "application/json", deep.as_bytes()).error().0, 400);
    let (status, message) = server.post_as(GENERATIONS, "text/plain", b"{\"prompt\": \"a\"}").error();
    assert!(status == 415 && message.contains("wanted application/json"), "{message}");
    let (status, message) = server.post_as(EDITS, "application/json", b"{}").error();
    assert!(status == 415 && message.contains("wanted multipart/form-data"), "{message}");
    assert_eq!(server.post_as(EDITS, "multipart/form-data", b"").error().0, 400);
    for body in [&b"--edge"[..], b"", b"--edge\r\nContent-Disposition: form-data; name=\"image\"\r\n\r\nabc"]
    {
        assert_eq!(server.post_as(EDITS, "multipart/form-data; boundary=edge", body).error().0, 400);
    }
    still_draws(&server);
}

#[test]
fn body_of_100_megabytes_is_refused_before_it_is_read() {
    let server = Running::new();
    let start = Instant::now();
    let (status, message) = Answer::read({
        let mut stream = server.connect();
        stream.write_all(head(GENERATIONS, "application/json", 100_000_000).as_bytes()).unwrap();
        stream
    })
    .error();
    assert!(status == 413 && message.contains("larger than 256 KiB"), "{message}");
    assert!(start.elapsed() < Duration::from_secs(5));
    // The length is not stated.
    let picture = "--edge\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a\"\r\n\r\n";
    for (path, kind, start) in
        [(GENERATIONS, "application/json", " "), (EDITS, "multipart/form-data; boundary=edge", picture)]
    {
        let mut stream = server.connect();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{start}\r\n",
            start.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let chunk = [&b"100000\r\n"[..], &[b' '; 1 << 20], b"\r\n"].concat();
        let sent = (0..100).take_while(|_| stream.write_all(&chunk).is_ok()).count();
        assert!(sent < 100, "{path}: the complete body was read");
    }
    // A form may contain two large pictures, but not more.
    let (status, message) =
        server.send(&head(EDITS, "multipart/form-data; boundary=edge", 100_000_000), &[]).error();
    assert!(status == 413 && message.contains("larger than 24576 KiB"), "{message}");
    still_draws(&server);
}

#[test]
fn invalid_pictures_and_false_sizes_are_refused() {
    let server = Running::new();
    let good = picture(48, 48);
    let cut = &good[..good.len() / 2];
    for (image, wanted) in [
        (&b"not a picture"[..], "not a PNG, JPEG or WebP"),
        (b"", "not a PNG, JPEG or WebP"),
        (cut, "damaged"),
        // Few bytes that would need gigabytes when decoded.
        (&false_size(60_000, 60_000), "60000x60000 pixels, more than the 16000000 allowed"),
        (&false_size(0, 48), ""),
        (&false_size(4000, 4000), "damaged"),
        (&false_size(u32::MAX, u32::MAX), ""),
    ] {
        let (kind, body) =
            form(&[("image", Some("a.png"), image), ("prompt", None, b"a cat"), ("keep_rows", None, b"4")]);
        let (status, message) = server.post_as(EDITS, &kind, &body).error();
        assert!(status == 400 && message.contains(wanted) && message.contains("image"), "{message}");
    }
    still_draws(&server);
}

/// A small file that would need 768 MB when decoded is refused.
#[test]
fn decompression_bomb_is_not_decoded() {
    let server = Running::new();
    let bomb = picture(16_000, 16_000); // 768 MB of pixels in a few kilobytes
    assert!(bomb.len() < 4_000_000);
    let (kind, body) = form(&[("image", Some("a.png"), &bomb), ("strength", None, b"0.5")]);
    let (status, message) = server.post_as("/v1/images/variations", &kind, &body).error();
    assert!(status == 400 && message.contains("16000x16000 pixels"), "{message}");
    still_draws(&server);
}

/// A decoder would fill the missing part of a JPEG with grey, and the grey part of a mask would be
/// redrawn.
#[test]
fn truncated_jpegs_are_refused_as_pictures_and_as_masks() {
    let server = Running::new();
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/jpeg");
    for name in ["baseline.jpg", "progressive.jpg"] {
        let complete = std::fs::read(dir.join(name)).unwrap();
        let (cut, image) = (&complete[..complete.len() * 3 / 5], picture(53, 43));
        for (image, mask) in [(cut, None), (&image[..], Some(cut))] {
            let mut fields =
                vec![("image", Some("a.jpg"), image), ("prompt", None, b"a cat"), ("best_of", None, b"1")];
            fields.push(mask.map_or(("keep_rows", None, b"4"), |mask| ("mask", Some("m.jpg"), mask)));
            let (kind, body) = form(&fields);
            let (status, message) = server.post_as(EDITS, &kind, &body).error();
            assert!(status == 400 && message.contains("damaged: it is cut short"), "{name}: {message}");
        }
    }
    still_draws(&server);
}

#[test]
fn form_errors_name_what_is_missing_or_does_not_fit() {
    let server = Running::new();
    let (image, other) = (picture(48, 48), picture(50, 48));
    let image = ("image", Some("a.png"), &image[..]);
    let prompt = ("prompt", None, &b"a cat"[..]);
    for (fields, wanted) in [
        (vec![prompt], "There is no file 'image'"),
        (vec![image, prompt], "Which cells of the picture are kept?"),
        (vec![image, ("keep_rows", None, b"4")], "There is no 'prompt'"),
        (vec![image, prompt, ("mask", Some("m.png"), &other)], "the mask has 50x48 pixels: wanted 48x48"),
        (vec![image, prompt, ("mask", Some("m.png"), image.2)], "there is nothing to draw"),
        (vec![image, prompt, ("keep_rows", None, b"12")], "from 1 to 11"),
        (vec![image, prompt, ("keep", None, b"0,0,13,1")], "within 12x12 cells"),
        (vec![image, prompt, ("keep", None, b"1,2,3")], "wanted X,Y,WIDTH,HEIGHT"),
        (vec![image, prompt, ("keep", None, b"0,0,1,1"), ("keep_rows", None, b"1")], "are given twice"),
        (vec![image, image, prompt], "'image' comes twice: wanted one picture"),
        (vec![("images", Some("a.png"), image.2), prompt], "There is no file 'image', only 'images'"),
        (vec![("image", None, b"aGVsbG8="), prompt, ("keep_rows", None, b"4")], "not a PNG, JPEG or WebP"),
        (
            vec![image, prompt, ("keep_rows", None, b"4"), ("size", None, b"\xff")],
            "'size' must be UTF-8 text",
        ),
        (vec![image, prompt, ("keep_rows", None, b"4"), ("n", None, b"many")], "'n' is \"many\""),
        (vec![image, prompt, ("keep_rows", None, b"4"), ("fit", None, b"stretch")], "wanted crop or pad"),
        (
            vec![image, prompt, ("keep_rows", None, b"4"), ("extra", Some("e.png"), b"")],
            "There is no parameter 'extra'",
        ),
    ] {
        let (kind, body) = form(&fields);
        let (status, message) = server.post_as(EDITS, &kind, &body).error();
        assert!(status == 400 && message.contains(wanted), "{message}, wanted {wanted}");
    }
    still_draws(&server);
}

#[test]
fn paths_outside_the_routes_are_not_found() {
    let server = Running::new();
    for path in [
        "/v1/pictures/../../etc/passwd",
        "/v1/pictures/..%2f..%2fetc%2fpasswd",
        "/v1/pictures/%2e%2e/%2e%2e/etc/passwd.png",
        "/../../../etc/passwd",
        "//etc/passwd",
        "/v1/events/..",
        "/v1/events/%00",
        "/v1/models/..%2f/codes.png",
        "/v1/images",
        "/favicon.ico",
    ] {
        assert_eq!(server.get(path).error().0, 404, "{path}");
    }
    assert_eq!(server.get(GENERATIONS).error().0, 405);
    let delete = "DELETE / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n";
    assert_eq!(server.send(delete, &[]).error().0, 405);
}

#[test]
fn pages_of_other_sites_cannot_use_the_server() {
    let server = Running::new();
    let body = br#"{"prompt":"a"}"#;
    let crossing = head(GENERATIONS, "application/json", body.len())
        .replace("\r\n\r\n", "\r\nSec-Fetch-Site: cross-site\r\n\r\n");
    assert_eq!(server.send(&crossing, body).error().0, 403);
    let own = head(GENERATIONS, "application/json", body.len())
        .replace("\r\n\r\n", "\r\nSec-Fetch-Site: same-origin\r\n\r\n");
    assert_eq!(server.send(&own, body).status, 200);
    // Links from other sites are allowed.
    let link = "GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\nSec-Fetch-Site: cross-site\r\n\r\n";
    assert_eq!(server.send(link, &[]).status, 200);
}

#[test]
fn connection_that_does_not_send_http_is_closed() {
    let server = Running::new();
    for bytes in [&b"\x16\x03\x01\x02\x00"[..], b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", &[b'A'; 1 << 20]] {
        let mut stream = server.connect();
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(
            answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"),
            "{:?}",
            String::from_utf8_lossy(&answer)
        );
    }
    still_draws(&server);
}

/// Clients that do not finish the head of their request are disconnected after a while, and do not
/// block others.
#[test]
fn slow_client_is_disconnected_while_others_draw() {
    let server = Running::new();
    let mut slow: Vec<_> = (0..20).map(|_| server.connect()).collect();
    let start = Instant::now();
    slow.iter_mut()
        .for_each(|stream| stream.write_all(b"POST /v1/images/generations HTTP/1.1\r\nHo").unwrap());
    still_draws(&server);
    assert!(start.elapsed() < Duration::from_secs(10));
    let mut rest = Vec::new();
    let _ = slow[0].read_to_end(&mut rest);
    let waited = start.elapsed();
    assert!(waited < limits::HEAD_TIMEOUT + Duration::from_secs(5), "held for {waited:?}");
}

/// A request whose body never arrives gets a 408.
#[test]
fn missing_body_times_out() {
    let server = Running::new();
    let mut stream = server.connect();
    stream.write_all(head(GENERATIONS, "application/json", 100).as_bytes()).unwrap();
    stream.write_all(b"{").unwrap();
    still_draws(&server);
    let (status, message) = Answer::read(stream).error();
    assert!(status == 408 && message.contains("within 30 seconds"), "{message}");
}

#[test]
fn disconnected_clients_are_cancelled_and_others_served() {
    let server = Running::new();
    let long =
        |stream: bool| json!({ "prompt": "a tree", "n": 16, "best_of": 512, "stream": stream }).to_string();
    let patient = std::thread::scope(|scope| {
        for stream in [true, false] {
            let mut leaving = server.connect();
            let body = long(stream);
            leaving.write_all(head(GENERATIONS, "application/json", body.len()).as_bytes()).unwrap();
            leaving.write_all(body.as_bytes()).unwrap();
            while server.pending() == 0 {
                std::thread::yield_now();
            }
            let patient = scope.spawn(|| {
                server.post(GENERATIONS, &json!({ "prompt": "a red apple", "seed": 1, "best_of": 4 }))
            });
            std::thread::sleep(Duration::from_millis(300));
            drop(leaving);
            assert_eq!(patient.join().unwrap().status, 200);
            server.comes_to_rest();
        }
        server.post(GENERATIONS, &json!({ "prompt": "a red apple", "seed": 1, "best_of": 4 }))
    });
    assert_eq!(patient.status, 200);
    assert!(server.get("/metrics").text().contains("tessera_cancelled_total 2"));
}

/// Each of 200 simultaneous clients gets the picture of its own seed.
#[test]
fn two_hundred_clients_get_their_own_pictures() {
    let server = Running::new();
    let ask =
        |seed: usize| json!({ "prompt": "a red apple", "seed": seed % 20, "best_of": 1, "size": "48x48" });
    let pixels = |answer: &Answer| answer.json()["data"][0]["b64_json"].as_str().unwrap().to_string();
    let alone: Vec<String> = (0..20).map(|seed| pixels(&server.post(GENERATIONS, &ask(seed)))).collect();
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let server = &server;
        let clients: Vec<_> =
            (0..200).map(|seed| scope.spawn(move || server.post(GENERATIONS, &ask(seed)))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    for (seed, answer) in answers.iter().enumerate() {
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(pixels(answer) == alone[seed % 20], "client {seed} got a picture of another seed");
    }
}

#[test]
fn requests_above_the_queue_limit_get_429_and_retry_after() {
    let server = Running::new();
    let large: Value = json!({ "prompt": "a tree", "best_of": 512, "async": true });
    let mut started = Vec::new();
    let refused = loop {
        let answer = server.post(GENERATIONS, &large);
        if answer.status != 202 {
            break answer;
        }
        started.push(answer.json()["events"].as_str().unwrap().to_string());
        assert!(started.len() <= limits::PENDING_LOGS, "no request was refused");
    };
    assert_eq!(refused.error().0, 429);
    assert!(refused.head.contains("retry-after: "), "{}", refused.head);
    for path in started {
        let delete = format!("DELETE {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n");
        assert_eq!(server.send(&delete, &[]).status, 204);
    }
    still_draws(&server);
}
