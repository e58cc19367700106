//! Tests of the answers to valid requests.

use std::io::Cursor;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, GrayImage, ImageFormat, Luma, RgbImage};
use serde_json::{Value, json};
use tessera_data::png_text;
use tessera_model::{Event, Parameters, Request, Tessera};
use tessera_serve::{Keys, Options};

use super::client::{Answer, Running, form};

fn png(entry: &Value) -> Vec<u8> {
    STANDARD.decode(entry["b64_json"].as_str().unwrap()).unwrap()
}

fn made(png: &[u8]) -> Parameters {
    serde_json::from_str(&png_text::read(Cursor::new(png)).unwrap().unwrap()).unwrap()
}

fn tokens(answer: &Answer) -> Vec<Vec<u32>> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["data"].as_array().unwrap().iter().map(|entry| made(&png(entry)).tokens.unwrap()).collect()
}

fn bytes_of(image: impl Into<DynamicImage>) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

#[test]
fn pictures_equal_those_of_the_library() {
    let server = Running::new();
    let asked =
        json!({ "prompt": "A red  apple", "n": 2, "best_of": 5, "seed": 7, "size": "96x96", "user": "me" });
    let answer = server.post("/v1/images/generations", &asked).json();
    let request =
        Request { prompt: "a red apple".into(), n: 5, best: Some(2), seed: 7, ..Request::default() };
    let events: Vec<_> = Tessera::embedded().unwrap().draw(request).unwrap().map(Result::unwrap).collect();
    let expected = events.into_iter().filter_map(|event| match event {
        Event::Picture(picture) => Some(picture),
        _ => None,
    });
    let expected: Vec<_> = expected.collect();
    let data = answer["data"].as_array().unwrap();
    assert_eq!(data.len(), 2);
    for (entry, expected) in data.iter().zip(&expected) {
        let png = png(entry);
        assert_eq!(image::load_from_memory(&png).unwrap().width(), 96);
        let made = made(&png);
        assert_eq!((made.tokens.unwrap(), made.index), (expected.tokens.clone(), Some(expected.index)));
        assert_eq!((made.seed, made.of, made.prompts), (7, Some(5), vec!["a red apple".to_string()]));
        assert_eq!(entry["score"].as_f64().unwrap() as f32, expected.score.unwrap());
        assert_eq!((&entry["seed"], &entry["revised_prompt"]), (&7.into(), &"a red apple".into()));
    }
    assert_eq!((&answer["size"], &answer["usage"]["output_tokens"]), (&"96x96".into(), &(5 * 144).into()));
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
}

#[test]
fn unknown_words_are_returned_with_suggestions() {
    let known = ["a", "red", "apple"].map(str::to_string);
    let server = Running::with(|mut options| {
        options.tessera.words = Some(known.into());
        options
    });
    let ask = |stream: bool| {
        let asked = json!({
            "prompt": "a red aplpe, zorp", "best_of": 1, "stream": stream, "stream_tokens": stream,
        });
        server.post("/v1/images/generations", &asked)
    };
    let expected =
        json!([{ "word": "aplpe", "suggestion": "apple" }, { "word": "zorp", "suggestion": null }]);
    assert_eq!(ask(false).json()["data"][0]["unknown_words"], expected);
    let events = ask(true).events();
    for event in [&events[0], events.last().unwrap()] {
        assert_eq!(event["unknown_words"], expected);
    }
    // The embedded model's file does not list its words.
    let answer = Running::new().post("/v1/images/generations", &json!({ "prompt": "zorp", "best_of": 1 }));
    assert_eq!(answer.json()["data"][0]["unknown_words"], Value::Null);
}

#[test]
fn truncated_prompt_is_reported_beside_the_one_that_was_read() {
    let server = Running::new();
    for (prompt, truncated) in [("A red  apple".to_string(), false), ("A red apple and ".repeat(20), true)] {
        let asked = json!({ "prompt": prompt, "best_of": 1, "stream": true, "stream_tokens": true });
        let events = server.post("/v1/images/generations", &asked).events();
        for event in [&events[0], events.last().unwrap()] {
            assert_eq!((&event["prompt"], &event["truncated"]), (&json!(prompt), &json!(truncated)));
            let read = event["revised_prompt"].as_str().unwrap();
            assert!(read.starts_with("a red apple") && (read.len() < prompt.len()), "{read}");
        }
    }
}

/// The tile of a code is a cell of that colour, up to its edges.
#[test]
fn sheet_of_codes_has_a_tile_for_each_code() {
    let server = Running::new();
    let model = server.get("/v1/models").json()["data"][0]["tessera"].clone();
    let number = |name: &str| model[name].as_u64().unwrap() as u32;
    let (side, cell) = (number("side"), number("side") / number("grid"));
    let answer = server.get("/v1/models/tessera/codes.png");
    let sheet = image::load_from_memory(&answer.body).unwrap().into_rgb8();
    let columns = sheet.width() / cell;
    assert!(columns * (sheet.height() / cell) >= number("codes"));
    let tessera = Tessera::embedded().unwrap();
    for colour in [[255, 255, 255], [200, 40, 40], [40, 90, 200]].map(image::Rgb) {
        let tokens = tessera.encode(&RgbImage::from_pixel(side, side, colour)).unwrap();
        let code = tokens[tokens.len() / 2 + number("grid") as usize / 2];
        for (x, y) in (0..cell * cell).map(|at| (at % cell, at / cell)) {
            let pixel = sheet.get_pixel(code % columns * cell + x, code / columns * cell + y);
            let off = (0..3).map(|i| pixel[i].abs_diff(colour[i])).max().unwrap();
            assert!(off < 40, "{colour:?}: the pixel at {x}, {y} of the tile is {pixel:?}");
        }
    }
}

#[test]
fn url_of_a_picture_returns_the_picture() {
    let server = Running::new();
    let asked = json!({ "prompt": "a cat", "response_format": "url", "best_of": 1, "model": "dall-e-2" });
    let answer = server.post("/v1/images/generations", &asked).json();
    let url = answer["data"][0]["url"].as_str().unwrap();
    let path = url.strip_prefix("http://here").unwrap();
    let picture = server.get(path);
    assert!(picture.status == 200 && picture.head.contains("content-type: image/png"), "{}", picture.head);
    assert_eq!(made(&picture.body).prompts, ["a cat"]);
}

#[test]
fn stream_contains_tokens_partial_pictures_and_pictures() {
    let server = Running::new();
    let asked = json!({
        "prompt": "a cat", "n": 2, "best_of": 3, "seed": 1, "stream": true, "partial_images": 3, "stream_tokens": true,
    });
    let answer = server.post("/v1/images/generations", &asked);
    assert!(answer.head.contains("content-type: text/event-stream"), "{}", answer.head);
    let events = answer.events();
    let kind = |event: &Value| event["type"].as_str().unwrap().to_string();
    assert_eq!(kind(&events[0]), "tessera.started");
    let of = |name: &str| events.iter().filter(|event| kind(event) == name).collect::<Vec<_>>();
    let new = of("tessera.tokens").iter().map(|event| event["new"].as_array().unwrap().len()).sum::<usize>();
    assert_eq!(new, 3 * 144);
    assert_eq!(of("tessera.tokens").last().unwrap()["done"], 3 * 144);
    let partial: Vec<u64> = of("image_generation.partial_image")
        .iter()
        .map(|event| event["partial_image_index"].as_u64().unwrap())
        .collect();
    assert_eq!(partial, [0, 0, 0, 1, 1, 1, 2, 2, 2]);
    let completed = of("image_generation.completed");
    let plain =
        server.post("/v1/images/generations", &json!({ "prompt": "a cat", "n": 2, "best_of": 3, "seed": 1 }));
    let streamed: Vec<Vec<u32>> = completed.iter().map(|event| made(&png(event)).tokens.unwrap()).collect();
    assert_eq!(streamed, tokens(&plain));
    // The tokens of the events equal those of the picture.
    let index = completed[0]["index"].as_u64().unwrap();
    let mut sent = vec![0; 144];
    for token in of("tessera.tokens").iter().flat_map(|event| event["new"].as_array().unwrap()) {
        if token[0] == index {
            sent[token[1].as_u64().unwrap() as usize] = token[2].as_u64().unwrap() as u32;
        }
    }
    assert_eq!(sent, streamed[0]);
}

#[test]
fn async_request_can_be_read_again_resumed_and_cancelled() {
    let server = Running::new();
    let started =
        server.post("/v1/images/generations", &json!({ "prompt": "a cat", "best_of": 2, "async": true }));
    assert_eq!(started.status, 202);
    let path = started.json()["events"].as_str().unwrap().to_string();
    let all = server.get(&path);
    let [.., last] = &all.events()[..] else { panic!("no events") };
    assert_eq!(last["type"], "image_generation.completed");
    // Read the log again from the start, and then from the middle.
    assert_eq!(server.get(&path).events(), all.events());
    let seen = all.events().len();
    let again = format!(
        "GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\nLast-Event-ID: {}\r\n\r\n",
        seen - 1
    );
    assert_eq!(server.send(&again, &[]).events(), std::slice::from_ref(last));

    let long = json!({ "prompt": "a cat", "n": 16, "best_of": 512, "async": true });
    let path = server.post("/v1/images/generations", &long).json()["events"].as_str().unwrap().to_string();
    let delete = format!("DELETE {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n");
    assert_eq!(server.send(&delete, &[]).status, 204);
    assert_eq!(server.send(&delete, &[]).error().0, 404);
    server.comes_to_rest();
}

#[test]
fn edits_keep_the_chosen_cells_exactly() {
    let server = Running::new();
    let cat = server.post("/v1/images/generations", &json!({ "prompt": "a cat", "seed": 4, "best_of": 1 }));
    let original = tokens(&cat).remove(0);
    let cat = png(&cat.json()["data"][0]);
    let edit = |extra: &[(&str, Option<&str>, &[u8])]| {
        // With a random seed, a redrawn cell could by chance get the same token again.
        let all = [
            ("image", Some("cat.png"), &cat[..]),
            ("prompt", None, b"a dog"),
            ("n", None, b"3"),
            ("seed", None, b"4"),
        ];
        let fields = [&all[..], extra].concat();
        let (kind, body) = form(&fields);
        tokens(&server.post_as("/v1/images/edits", &kind, &body))
    };
    let changed = |drawn: Vec<Vec<u32>>| -> Vec<usize> {
        let changed = (0..144).filter(|&at| drawn.iter().any(|tokens| tokens[at] != original[at]));
        changed.collect()
    };
    let rows = changed(edit(&[("keep_rows", None, b"6")]));
    assert!(!rows.is_empty() && rows.iter().all(|at| *at >= 72), "{rows:?}");
    // White over one cell of 16 × 16 pixels.
    let white = GrayImage::from_fn(192, 192, |x, y| Luma([if (x / 16, y / 16) == (5, 7) { 255 } else { 0 }]));
    let mask = bytes_of(white);
    assert_eq!(changed(edit(&[("mask", Some("mask.png"), &mask)])), [7 * 12 + 5]);
    // OpenAI's clients use this name when they can send several pictures.
    let (kind, body) = form(&[
        ("image[]", Some("cat.png"), &cat),
        ("mask", Some("mask.png"), &mask),
        ("prompt", None, b"a dog"),
        ("stream", None, b"true"),
    ]);
    let events = server.post_as("/v1/images/edits", &kind, &body).events();
    assert_eq!(events.last().unwrap()["type"], "image_edit.completed");
}

#[test]
fn strength_decides_how_much_variations_change() {
    let server = Running::new();
    let photo = bytes_of(RgbImage::from_fn(90, 60, |x, y| image::Rgb([x as u8 * 2, y as u8 * 4, 90])));
    let vary = |strength: &[u8]| {
        let (kind, body) = form(&[
            ("image", Some("a.png"), &photo),
            ("n", None, b"4"),
            ("response_format", None, b"b64_json"),
            ("strength", None, strength),
            ("seed", None, b"1"),
        ]);
        tokens(&server.post_as("/v1/images/variations", &kind, &body))
    };
    let same = vary(b"0");
    assert!(same.windows(2).all(|pair| pair[0] == pair[1]));
    let varied = vary(b"0.5");
    let kept = varied[0].iter().zip(&same[0]).filter(|(a, b)| a == b).count();
    assert!(varied[0] != varied[1] && (50..144).contains(&kept), "{kept} kept");
}

#[test]
fn requests_without_a_valid_key_are_refused() {
    let dir = std::env::temp_dir().join(format!("tessera-keys-{}", std::process::id()));
    std::fs::write(&dir, "# ours\n\nfirst-key\nsecond-key\n").unwrap();
    let keys = Keys::read(&dir).unwrap();
    let server = Running::with(|options| Options { keys: Some(keys), ..options });
    std::fs::remove_file(&dir).unwrap();
    let ask = |key: &str| {
        let head = format!("GET /v1/models HTTP/1.1\r\nHost: here\r\nConnection: close\r\n{key}\r\n");
        server.send(&head, &[])
    };
    for (key, wanted) in [
        ("", "requires an API key"),
        ("Authorization: Bearer third-key\r\n", "not valid"),
        ("Authorization: Bearer first-ke\r\n", "not valid"),
        ("Authorization: Bearer # ours\r\n", "not valid"),
        ("Authorization: Basic Zmlyc3Qta2V5\r\n", "requires an API key"),
    ] {
        let (status, message) = ask(key).error();
        assert!(status == 401 && message.contains(wanted), "{key}: {message}");
    }
    // The scheme is case-insensitive.
    for scheme in ["Bearer", "bearer", "BEARER", " Bearer "] {
        assert_eq!(ask(&format!("Authorization: {scheme} second-key\r\n")).status, 200, "{scheme}");
    }
    assert_eq!(server.post("/v1/images/generations", &json!({ "prompt": "a" })).error().0, 401);
    for open in ["/", "/healthz", "/openapi.json"] {
        assert_eq!(server.get(open).status, 200, "{open}");
    }
}

#[test]
fn metrics_count_requests_pictures_and_tokens() {
    let server = Running::new();
    server.post("/v1/images/generations", &json!({ "prompt": "a cat", "best_of": 2 }));
    server.post("/v1/images/generations", &json!({}));
    let text = server.get("/metrics").text();
    for line in [
        "tessera_requests_total{route=\"/v1/images/generations\",status=\"200\"} 1",
        "tessera_requests_total{route=\"/v1/images/generations\",status=\"400\"} 1",
        "tessera_pictures_total 1",
        "tessera_tokens_total 288",
        "tessera_pending_requests 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

#[test]
fn stopping_server_finishes_current_requests() {
    let mut server = Running::new();
    let address = server.address;
    let asked = json!({ "prompt": "a cat", "n": 4, "best_of": 64, "stream": true, "stream_tokens": true });
    std::thread::scope(|scope| {
        let drawing = scope.spawn(|| server.post("/v1/images/generations", &asked));
        while server.pending() == 0 {
            std::thread::yield_now();
        }
        drop(drawing);
        std::thread::sleep(std::time::Duration::from_millis(100));
    });
    // The scope has waited for the first answer. The next request is drawn while the server stops.
    let thread = std::thread::spawn({
        let head = super::client::head("/v1/images/generations", "application/json", asked.to_string().len());
        let mut stream = server.connect();
        move || {
            use std::io::Write;
            stream.write_all([head.as_bytes(), asked.to_string().as_bytes()].concat().as_slice()).unwrap();
            Answer::read(stream)
        }
    });
    while server.pending() == 0 {
        std::thread::yield_now();
    }
    server.stop();
    let answer = thread.join().unwrap();
    assert_eq!(
        answer.events().iter().filter(|event| event["type"] == "image_generation.completed").count(),
        4
    );
    drop(server);
    assert!(std::net::TcpStream::connect(address).is_err());
}
