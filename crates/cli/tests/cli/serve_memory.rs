//! Tests that the memory of `tessera serve` is bounded. Enough clients at a time send large or many
//! requests of each kind to exceed the limit if all were held in memory.

use std::fs;
use std::io::{Cursor, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Child;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use image::{ImageFormat, RgbImage};
use tessera_serve::limits;

use super::program::folder;
use super::serve::{ask, serve};

/// The maximum memory of a server with a small model: sixteen forms of 24 MB, each twice while it
/// grows, two pictures that are being decoded, and the stored answers and logs. Measurements were
/// 600 to 800 MB.
pub const MAX_MB: u64 = 1200;

#[test]
fn serve_memory_is_bounded_for_large_requests() {
    let dir = folder();
    let (mut child, address) = serve(dir.path(), &["--log", "off"]);
    let pictures = r#"{"prompt": "a cat", "n": 64, "size": "512x512", "response_format": "url"}"#;
    let logged = r#"{"prompt": "a cat", "n": 16, "size": "512x512", "partial_images": 2, "async": true}"#;
    for (what, clients, request, status) in [
        ("a body of 100 MB", 8, generation(&" ".repeat(100_000_000)), None),
        ("a bomb of 430 MB", 8, varied(&picture(12_000)), Some(400)),
        ("a colour profile of 1 GiB", 24, varied(&profile_bomb()), Some(200)),
        ("the largest picture", 24, varied(&picture(4000)), Some(200)),
        ("24 MB that are no picture", 64, varied(&vec![0; limits::FORM_BYTES - 1000]), Some(400)),
        ("answers of many pictures", 32, generation(pictures), Some(200)),
        ("logs of many pictures", limits::PENDING_LOGS, generation(logged), Some(202)),
        ("many clients", 200, generation(r#"{"prompt": "a cat"}"#), Some(200)),
    ] {
        let answers: Vec<String> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..clients).map(|_| scope.spawn(|| send(&address, &request))).collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        let start = status.map_or(String::new(), |status| format!("HTTP/1.1 {status} "));
        for answer in answers {
            assert!(answer.starts_with(&start), "{what}: {answer:.200}");
        }
        let peak = peak_memory(&child);
        eprintln!("{what}: peak of {peak} MB so far");
        assert!(peak < MAX_MB, "{what}: {peak} MB");
    }
    assert!(ask(&address, "GET /healthz", "").contains(r#""status":"ok""#));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Each request is refused before all of it has arrived, and the parser stores little of it.
#[test]
fn serve_refuses_forms_without_fields_before_storing_them() {
    let dir = folder();
    let (mut child, address) = serve(dir.path(), &["--log", "off"]);
    let kind = "multipart/form-data; boundary=edge";
    let large = vec![b'0'; limits::FORM_BYTES - 1000];
    let header = b"--edge\r\nX-Long: ";
    let before = peak_memory(&child);
    for (what, body) in [("no boundary", large.clone()), ("a part header", [header, &large[..]].concat())] {
        let request = request("variations", kind, &body);
        let answers: Vec<String> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..64).map(|_| scope.spawn(|| send(&address, &request))).collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        for answer in answers {
            assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("in which no field"), "{answer}");
        }
        let more = peak_memory(&child) - before;
        assert!(more < 200, "{what}: {more} MB");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A request to draw.
fn generation(body: &str) -> Vec<u8> {
    request("generations", "application/json", body.as_bytes())
}

/// A request for variations of a picture.
pub fn varied(picture: &[u8]) -> Vec<u8> {
    let head = "--edge\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a.png\"\r\n\r\n";
    let body = [head.as_bytes(), picture, b"\r\n--edge--\r\n"].concat();
    request("variations", "multipart/form-data; boundary=edge", &body)
}

/// Returns the bytes of a request to `/v1/images/{what}` with a body of the content type `kind`.
pub fn request(what: &str, kind: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST /v1/images/{what} HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

fn picture(side: u32) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    RgbImage::new(side, side).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A PNG of 64x64 pixels whose colour profile of 1 MB decompresses to 1 GiB.
pub fn profile_bomb() -> Vec<u8> {
    png_with_packed(b"iCCP", "name", std::io::repeat(0).take(1 << 30))
}

/// A PNG of 64x64 pixels with a chunk that has a name and compressed data, like those for colour
/// profiles (iCCP) and texts (zTXt).
pub fn png_with_packed(kind: &[u8; 4], name: &str, mut data: impl Read) -> Vec<u8> {
    let mut packed = ZlibEncoder::new([name.as_bytes(), b"\0\0"].concat(), Compression::best());
    std::io::copy(&mut data, &mut packed).unwrap();
    let packed = packed.finish().unwrap();
    let mut plain = Cursor::new(Vec::new());
    RgbImage::from_pixel(64, 64, image::Rgb([85; 3])).write_to(&mut plain, ImageFormat::Png).unwrap();
    let (header, pixels) = plain.get_ref().split_at(8 + 25);
    let mut sum = flate2::Crc::new();
    sum.update(kind);
    sum.update(&packed);
    let mut bytes = header.to_vec();
    bytes.write_all(&(packed.len() as u32).to_be_bytes()).unwrap();
    bytes.extend([kind, &packed[..], &sum.sum().to_be_bytes(), pixels].concat());
    bytes
}

/// Sends as much of a request as the server accepts. Returns the answer, which is empty if the
/// server closed the connection before it was read.
fn send(address: &str, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut answer = Vec::new();
    if let Err(error) = stream.write_all(request).and_then(|()| stream.read_to_end(&mut answer)) {
        assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// The peak memory of the program so far, in MB.
pub fn peak_memory(child: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() / 1000
}
