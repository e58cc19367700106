//! A fuzz test of `tessera serve` with mutated pictures and requests, which are the same in each
//! run. The server must answer without an internal error or close the connection, and its memory
//! must stay bounded.

use std::io::{Cursor, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageFormat, RgbImage, RgbaImage};
use serde_json::{Value, json};

use super::program::folder;
use super::serve::{ask, serve};
use super::serve_memory::{MAX_MB, peak_memory, png_with_packed, profile_bomb, request, varied};

const PICTURES: usize = 2000;
const REQUESTS: usize = 1000;
const CLIENTS: usize = 4;

#[test]
fn serve_survives_mutated_pictures_and_requests() {
    let dir = folder();
    let (mut child, address) = serve(dir.path(), &["--log", "off"]);
    let (seeds, profile) = (pictures(), varied(&profile_bomb()));
    let (text, tables) = (varied(&text_bomb()), varied(&table_flood()));
    let mut counts = [0; 6];
    for (what, n, statuses, make) in [
        (
            "pictures",
            PICTURES,
            200..500,
            &(|random: &mut Random| varied(&mutated_picture(&seeds, random))) as &Make,
        ),
        ("requests", REQUESTS, 200..500, &(|random: &mut Random| mutated_request(&seeds, random))),
        ("profiles", 4 * CLIENTS, 200..201, &(|_: &mut Random| profile.clone())),
        ("texts", 4 * CLIENTS, 200..201, &(|_: &mut Random| text.clone())),
        ("Huffman tables", 4 * CLIENTS, 400..401, &(|_: &mut Random| tables.clone())),
        ("header floods", 4 * CLIENTS, 400..500, &header_flood),
    ] {
        let answers: Vec<Vec<u16>> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    let random = move |i: usize| Random::new((i * CLIENTS + client) as u64);
                    let address = &address;
                    scope.spawn(move || {
                        (0..n / CLIENTS).map(|i| status(address, &make(&mut random(i)))).collect::<Vec<u16>>()
                    })
                })
                .collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        for (at, status) in answers.iter().flatten().enumerate() {
            assert!(statuses.contains(status) || *status == HUNG_UP, "{what} {at}: {status}");
            counts[usize::from(*status / 100)] += 1;
        }
        let peak = peak_memory(&child);
        eprintln!("{what}: {counts:?} answers by hundreds of their status, peak of {peak} MB so far");
        assert!(peak < MAX_MB, "{what}: {peak} MB");
    }
    // Some are refused and some are accepted.
    assert!(counts[2] > PICTURES / 20 && counts[4] > PICTURES / 20, "{counts:?}");
    assert!(ask(&address, "GET /healthz", "").contains(r#""status":"ok""#));
    child.kill().unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    child.wait().unwrap();
    assert!(!stderr.contains("panicked"), "{stderr}");
}

type Make<'a> = dyn Fn(&mut Random) -> Vec<u8> + Sync + 'a;

/// The status that stands for no answer.
const HUNG_UP: u16 = 0;

/// Sends a request and closes the sending side. Returns the status of the answer.
fn status(address: &str, request: &[u8]) -> u16 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let _ = stream.write_all(request).and_then(|()| stream.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    let text = String::from_utf8_lossy(&answer);
    let text = text.trim_start_matches("HTTP/1.1 100 Continue\r\n\r\n");
    text.split(' ').nth(1).map_or(HUNG_UP, |status| status.parse().unwrap())
}

/// A small random number generator, whose numbers must never change.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() % most.max(1) as u64) as usize
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// Small pictures of each kind that the server reads.
fn pictures() -> Vec<Vec<u8>> {
    let rgba = RgbaImage::from_fn(40, 30, |x, y| image::Rgba([x as u8 * 6, y as u8 * 8, 90, 255 - x as u8]));
    let rgba = DynamicImage::from(rgba);
    let kinds = [
        rgba.clone(),
        rgba.to_rgb8().into(),
        rgba.to_luma8().into(),
        rgba.to_luma_alpha8().into(),
        rgba.to_rgb16().into(),
        rgba.to_rgba16().into(),
    ];
    let written = |image: &DynamicImage, format: ImageFormat| {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    };
    let mut all: Vec<Vec<u8>> = kinds.iter().map(|image| written(image, ImageFormat::Png)).collect();
    all.extend([written(&kinds[0], ImageFormat::WebP), written(&kinds[1], ImageFormat::WebP)]);
    for (image, quality) in [(&kinds[1], 20), (&kinds[1], 95), (&kinds[2], 80)] {
        let mut bytes = Vec::new();
        JpegEncoder::new_with_quality(&mut bytes, quality).encode_image(image).unwrap();
        all.push(bytes);
    }
    all.push(png_with_packed(b"zTXt", "tessera", &b"{\"prompt\": \"a cat\"}"[..]));
    all
}

/// A PNG of less than 1 MB whose text chunk, with Tessera's name, decompresses to 256 MiB.
fn text_bomb() -> Vec<u8> {
    png_with_packed(b"zTXt", "tessera", std::io::repeat(b'a').take(256 << 20))
}

/// A JPEG of 23 MB with a million Huffman tables of one code each.
fn table_flood() -> Vec<u8> {
    let mut picture = Vec::new();
    JpegEncoder::new(&mut picture).encode_image(&RgbImage::new(64, 64)).unwrap();
    let table = [&[0x10, 1][..], &[0; 15], &[7]].concat();
    let n = 3000;
    let length = (2 + n * table.len()) as u16;
    let segment = [b"\xff\xc4", &length.to_be_bytes()[..], &table.repeat(n)].concat();
    [&picture[..2], &segment.repeat(430), &picture[2..]].concat()
}

/// A request with many headers, or with many headers in or before the first part of its form.
fn header_flood(random: &mut Random) -> Vec<u8> {
    let lines = "X-Flood: 0123456789\r\n".repeat(1000 << random.below(8));
    let kind = "multipart/form-data; boundary=edge";
    match random.below(3) {
        0 => format!("GET /healthz HTTP/1.1\r\nHost: here\r\n{lines}\r\n").into_bytes(),
        1 => request("variations", kind, format!("--edge\r\n{lines}\r\n--edge--\r\n").as_bytes()),
        _ => request("variations", kind, lines.as_bytes()),
    }
}

fn mutated_picture(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut picture = random.of(seeds).clone();
    for _ in 0..=random.below(4) {
        mutate(&mut picture, seeds, random);
    }
    // With a wrong checksum, a PNG decoder would stop after the first chunk.
    if random.below(2) == 0 { with_valid_checksums(&picture) } else { picture }
}

/// Applies one random mutation, as disks, networks and attackers make them.
fn mutate(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let (at, length) = (random.below(bytes.len()), 1 + random.below(16));
    let end = (at + length).min(bytes.len());
    match random.below(8) {
        0 | 1 => bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << random.below(8)),
        2 => bytes[at..end].iter_mut().for_each(|byte| *byte = random.next() as u8),
        3 => bytes[at..end].fill(*random.of(&[0, 0x7f, 0x80, 0xff])),
        4 => drop(bytes.drain(at..end)),
        5 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
        6 => bytes.truncate(at),
        _ => {
            let other = random.of(seeds);
            let from = random.below(other.len());
            bytes.splice(at.., other[from..].iter().copied());
        }
    }
}

/// Corrects the checksums of the chunks of a PNG, as far as the bytes are one.
fn with_valid_checksums(png: &[u8]) -> Vec<u8> {
    let mut bytes = png.to_vec();
    let mut at = 8;
    while let Some(length) = png.get(at..at + 4) {
        let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
        let Some(sum) = at.checked_add(8 + length).filter(|sum| sum + 4 <= png.len()) else { break };
        let mut crc = flate2::Crc::new();
        crc.update(&png[at + 4..sum]);
        bytes[sum..sum + 4].copy_from_slice(&crc.sum().to_be_bytes());
        at = sum + 4;
    }
    bytes
}

fn mutated_request(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut request = match random.below(5) {
        0 | 1 => return request("generations", "application/json", odd_json(random).to_string().as_bytes()),
        2 => request("generations", "application/json", odd_json(random).to_string().as_bytes()),
        3 => varied(random.of::<Vec<u8>>(seeds).as_slice()),
        _ => format!("GET {} HTTP/1.1\r\nHost: here\r\n\r\n", random.of(&PATHS)).into_bytes(),
    };
    for _ in 0..=random.below(4) {
        mutate(&mut request, seeds, random);
    }
    request
}

const PATHS: [&str; 6] =
    ["/", "/v1/models", "/v1/models/tessera/codes.png", "/v1/pictures/a.png", "/v1/events/a", "/metrics"];

const NAMES: [&str; 20] = [
    "prompt",
    "n",
    "best_of",
    "size",
    "seed",
    "temperature",
    "top_k",
    "top_p",
    "guidance",
    "negative_prompt",
    "stream",
    "async",
    "partial_images",
    "stream_tokens",
    "response_format",
    "output_format",
    "output_compression",
    "model",
    "user",
    "other",
];

/// Parameters with unusual values.
fn odd_json(random: &mut Random) -> Value {
    let values = [
        json!(null),
        json!(true),
        json!("true"),
        json!(""),
        json!(0),
        json!(-1),
        json!(1),
        json!(2),
        json!("3"),
        json!(0.5),
        json!(1e308),
        json!(-0.0),
        json!(u64::MAX),
        json!(i64::MIN),
        json!("a"),
        json!([]),
        json!({ "a": [1] }),
        json!("url"),
        json!("webp"),
        json!("jpeg"),
        json!("64x64"),
        json!("1x1"),
        json!("4294967295x4294967295"),
        json!("\u{0}\u{feff}\u{202e}"),
        json!("é\u{301}🦊".repeat(300)),
        json!("NaN"),
        json!("1e999"),
    ];
    let mut parameters = json!({ "prompt": "a cat" });
    for _ in 0..=random.below(4) {
        parameters[*random.of(&NAMES)] = random.of(&values).clone();
    }
    parameters
}
