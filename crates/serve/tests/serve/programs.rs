//! Tests with requests as OpenAI's clients, browsers and other programs send them.

use std::io::Cursor;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, RgbImage};
use serde_json::{Value, json};
use tessera_serve::{Keys, Options, Origin, public_url};

use super::client::{Answer, Running, form, head};

const GENERATIONS: &str = "/v1/images/generations";
const EDITS: &str = "/v1/images/edits";
const VARIATIONS: &str = "/v1/images/variations";

fn picture() -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    RgbImage::from_pixel(64, 64, image::Rgb([200, 30, 30])).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Returns the body of a form of parts with the given headers.
fn parts(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (head, bytes) in parts {
        body.extend([b"--edge\r\n", head.as_bytes(), b"\r\n\r\n", bytes, b"\r\n"].concat());
    }
    [&body[..], b"--edge--\r\n"].concat()
}

fn edit(server: &Running, body: &[u8]) -> Answer {
    server.post_as(EDITS, "multipart/form-data; boundary=edge", body)
}

#[test]
fn model_is_found_by_each_of_its_names() {
    let server = Running::new();
    let listed = server.get("/v1/models").json()["data"][0].clone();
    for name in ["tessera", listed["id"].as_str().unwrap(), "dall-e-3", "gpt-image-1", "chatgpt-image-latest"]
    {
        assert_eq!(server.get(&format!("/v1/models/{name}")).json(), listed, "{name}");
    }
    for path in ["/v1/models/sdxl", "/v1/models/sdxl/codes.png"] {
        let (status, message) = server.get(path).error();
        assert!(
            status == 404 && message.contains("There is no model 'sdxl' here: wanted 'tessera-"),
            "{message}"
        );
    }
}

#[test]
fn file_part_is_recognised_however_it_is_declared() {
    let server = Running::new();
    let (png, disposition) = (picture(), "Content-Disposition: form-data; name=\"image");
    for head in [
        format!("{disposition}\"; filename*=utf-8''%C3%A9.png\r\nContent-Type: image/png"),
        format!("{disposition}\"; FileName*=utf-8''a.png"),
        format!("{disposition}\"\r\nContent-Type: image/png"),
        format!("{disposition}\"\r\nContent-Type: application/octet-stream"),
        format!("{disposition}\""),
        format!("{disposition}[]\"; filename=\"a.png\""),
        format!("{disposition}[0]\"; filename=\"a.png\""),
    ] {
        let prompt: (&str, &[u8]) = ("Content-Disposition: form-data; name=\"prompt\"", b"a cat");
        let rows: (&str, &[u8]) = ("Content-Disposition: form-data; name=\"keep_rows\"", b"4");
        let answer = edit(&server, &parts(&[(&head, &png), prompt, rows]));
        assert_eq!(answer.status, 200, "{head}: {}", answer.text());
    }
}

#[test]
fn empty_parameters_count_as_absent() {
    let server = Running::new();
    let png = picture();
    let names = [
        "n",
        "size",
        "seed",
        "model",
        "user",
        "stream",
        "guidance",
        "output_format",
        "response_format",
        "keep",
    ];
    let mut fields =
        vec![("image", Some("a.png"), &png[..]), ("prompt", None, b"a cat"), ("keep_rows", None, b"4")];
    fields.extend(names.map(|name| (name, None, &b""[..])));
    // A web form sends this if no file is chosen.
    fields.push(("mask", Some(""), b""));
    let (kind, body) = form(&fields);
    let answer = server.post_as(EDITS, &kind, &body);
    assert!(answer.status == 200 && answer.json()["data"][0]["b64_json"].is_string(), "{}", answer.text());
    for empty in [Value::Null, "".into()] {
        let mut asked = json!({ "prompt": "a cat", "best_of": 1 });
        names.iter().filter(|name| **name != "keep").for_each(|name| asked[name] = empty.clone());
        let answer = server.post(GENERATIONS, &asked);
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    // An empty prompt is valid: the model can draw without a caption.
    assert_eq!(server.post(GENERATIONS, &json!({ "prompt": "" })).status, 200);
}

/// Editors on Windows begin files with a byte order mark or write them in UTF-16.
#[test]
fn json_and_keys_may_begin_with_a_byte_order_mark() {
    let path = std::env::temp_dir().join(format!("tessera-marked-keys-{}", std::process::id()));
    std::fs::write(&path, b"\xef\xbb\xbfsecret\r\n").unwrap();
    let keys = Keys::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let server = Running::with(|options| Options { keys: Some(keys), ..options });
    let text = r#"{"prompt":"a cät","best_of":1}"#;
    let utf16: Vec<u8> = [0xfeff].into_iter().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    let ask = |body: &[u8]| {
        let head = head(GENERATIONS, "application/json", body.len())
            .replace("\r\n\r\n", "\r\nAuthorization: Bearer secret\r\n\r\n");
        server.send(&head, body)
    };
    for body in [text.as_bytes(), &[b"\xef\xbb\xbf", text.as_bytes()].concat(), &utf16] {
        let answer = ask(body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["data"][0]["revised_prompt"], "a cät");
    }
    let (status, message) = ask(b"{\"prompt\":\"\xe9\"}").error();
    assert!(status == 400 && message.contains("not JSON: not UTF-8: byte 0xe9 at position 11"), "{message}");
}

#[test]
fn numbers_and_flags_may_be_sent_as_text() {
    let server = Running::new();
    let drawn = |asked: Value| {
        let answer = server.post(GENERATIONS, &asked);
        assert_eq!(answer.status, 200, "{asked}: {}", answer.text());
        answer.json()["data"].clone()
    };
    let expected = drawn(json!({ "prompt": "a cat", "n": 2, "best_of": 2, "seed": 5, "guidance": 3 }));
    let asked = json!({ "prompt": "a cat", "n": "2", "best_of": "2.0", "seed": " 5", "guidance": "3", "stream": "False" });
    assert_eq!(drawn(asked), expected);
    let asked = json!({ "prompt": "a cat", "best_of": 1, "stream": "TRUE" });
    assert!(server.post(GENERATIONS, &asked).head.contains("text/event-stream"));
}

#[test]
fn default_response_format_depends_on_the_model_name() {
    let server = Running::new();
    let entry = |asked: Value| server.post(GENERATIONS, &asked).json()["data"][0].clone();
    for (model, format, key) in [
        ("dall-e-2", None, "url"),
        ("dall-e-3", None, "url"),
        ("dall-e-3", Some("b64_json"), "b64_json"),
        ("gpt-image-1", None, "b64_json"),
        ("tessera", None, "b64_json"),
        ("tessera", Some("url"), "url"),
    ] {
        let entry = entry(json!({ "prompt": "a", "best_of": 1, "model": model, "response_format": format }));
        assert!(entry[key].is_string(), "{model} {format:?}: {entry}");
        assert_eq!(entry.as_object().unwrap().contains_key("url"), key == "url");
    }
    assert!(entry(json!({ "prompt": "a", "best_of": 1 }))["b64_json"].is_string());
    // Streams contain the pictures, like those of all of OpenAI's models.
    let events = server
        .post(GENERATIONS, &json!({ "prompt": "a", "best_of": 1, "model": "dall-e-2", "stream": true }));
    assert!(events.events().last().unwrap()["b64_json"].is_string());
    // OpenAI's only model for variations returns URLs.
    let png = picture();
    let (kind, body) = form(&[("image", Some("a.png"), &png[..])]);
    assert!(server.post_as(VARIATIONS, &kind, &body).json()["data"][0]["url"].is_string());
}

#[test]
fn pictures_come_as_png_jpeg_or_webp() {
    let server = Running::new();
    let drawn = |format: &str, compression: u32, response: &str| {
        let asked = json!({
            "prompt": "a cat", "best_of": 1, "seed": 1, "output_format": format, "output_compression": compression,
            "response_format": response,
        });
        let answer = server.post(GENERATIONS, &asked).json();
        assert_eq!(answer["output_format"], format);
        answer["data"][0].clone()
    };
    let bytes = |format: &str, compression: u32| {
        STANDARD.decode(drawn(format, compression, "b64_json")["b64_json"].as_str().unwrap()).unwrap()
    };
    let png = image::load_from_memory(&bytes("png", 100)).unwrap().into_rgb8();
    for (format, kind) in
        [("png", ImageFormat::Png), ("jpeg", ImageFormat::Jpeg), ("webp", ImageFormat::WebP)]
    {
        let file = bytes(format, 90);
        assert_eq!(image::guess_format(&file).unwrap(), kind);
        let picture = image::load_from_memory(&file).unwrap().into_rgb8();
        let off = picture.iter().zip(png.iter()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>();
        let off = off / png.len() as f64;
        assert!(if format == "jpeg" { off < 4.0 } else { off == 0.0 }, "{format} is off by {off}");
        let url = drawn(format, 90, "url")["url"].as_str().unwrap().to_string();
        let kept = server.get(url.strip_prefix("http://here").unwrap());
        assert!(
            url.ends_with(format) && kept.head.contains(&format!("content-type: image/{format}")),
            "{}",
            kept.head
        );
        assert_eq!(kept.body, file);
    }
    assert!(2 * bytes("jpeg", 0).len() < bytes("jpeg", 100).len());
}

#[test]
fn urls_in_answers_begin_with_the_public_url() {
    let url = public_url("https://example.org/tessera/").unwrap();
    let server = Running::with(|options| Options { public_url: Some(url), ..options });
    let asked = json!({ "prompt": "a cat", "best_of": 1, "response_format": "url" });
    let answer = server.post(GENERATIONS, &asked).json();
    let url = answer["data"][0]["url"].as_str().unwrap();
    assert_eq!(server.get(url.strip_prefix("https://example.org/tessera").unwrap()).status, 200, "{url}");
    let started = server.post(GENERATIONS, &json!({ "prompt": "a", "best_of": 1, "async": true })).json();
    assert!(started["events"].as_str().unwrap().starts_with("https://example.org/tessera/v1/events/"));
    // The page uses only relative URLs.
    let page = server.get("/").text();
    for rooted in ["\"/v1", "`/v1", "href=\"/", "src=\"/"] {
        assert!(!page.contains(rooted), "{rooted}");
    }
}

#[test]
fn pages_of_allowed_sites_may_use_the_server() {
    let server = Running::with(|options| {
        let origins: Vec<Origin> = vec!["https://example.org".parse().unwrap()];
        Options { origins, ..options }
    });
    let body = r#"{"prompt":"a","best_of":1}"#;
    let ask = |method: &str, origin: &str, extra: &str| {
        let length = if method == "OPTIONS" { 0 } else { body.len() };
        let head = format!(
            "{method} {GENERATIONS} HTTP/1.1\r\nHost: here\r\nConnection: close\r\nOrigin: {origin}\r\n\
             Sec-Fetch-Site: cross-site\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{extra}\r\n"
        );
        server.send(&head, &body.as_bytes()[..length])
    };
    let preflight = "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization,x-stainless-os\r\n";
    let allowed = ask("OPTIONS", "https://example.org", preflight);
    assert_eq!(allowed.status, 200);
    for header in [
        "access-control-allow-origin: https://example.org",
        "authorization,x-stainless-os",
        "get,post,delete",
    ] {
        assert!(allowed.head.contains(header), "{header} is not in {}", allowed.head);
    }
    let drawn = ask("POST", "https://example.org", "");
    assert!(
        drawn.status == 200 && drawn.head.contains("access-control-allow-origin: https://example.org"),
        "{}",
        drawn.head
    );
    assert!(!ask("OPTIONS", "https://example.com", preflight).head.contains("access-control-allow-origin"));
    assert_eq!(ask("POST", "https://example.com", "").error().0, 403);
}
