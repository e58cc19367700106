//! Tests that the OpenAPI document describes the server correctly and completely.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tessera_serve::{ROUTES, limits};

use super::client::Running;

fn document() -> Value {
    serde_json::from_str(include_str!("../../src/openapi.json")).unwrap()
}

#[test]
fn document_lists_exactly_the_routes_of_the_server() {
    let document = document();
    let methods = |entry: &Value| -> Vec<String> {
        let names = entry.as_object().unwrap().keys().filter(|key| *key != "parameters");
        let mut names: Vec<String> = names.map(|name| name.to_uppercase()).collect();
        names.sort();
        names
    };
    let documented: BTreeMap<String, Vec<String>> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(path, entry)| (path.clone(), methods(entry)))
        .collect();
    let sorted = |methods: &[&str]| {
        let mut methods: Vec<String> = methods.iter().map(|method| method.to_string()).collect();
        methods.sort();
        methods
    };
    let expected = ROUTES.iter().map(|(path, methods, _)| (path.to_string(), sorted(methods))).collect();
    assert_eq!(documented, expected);
    // The document also states which routes require a key.
    for (path, _, requires_key) in ROUTES {
        for (method, entry) in
            document["paths"][path].as_object().unwrap().iter().filter(|(key, _)| *key != "parameters")
        {
            assert_eq!(entry.get("security").is_none(), requires_key, "{method} {path}");
        }
    }
}

#[test]
fn routes_accept_exactly_their_methods() {
    let server = Running::new();
    for (path, methods, _) in ROUTES {
        let path = path.replace("{model}", "tessera").replace(['{', '}'], "");
        for method in ["GET", "POST", "DELETE", "PUT", "PATCH"] {
            let head = format!(
                "{method} {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            );
            let status = server.send(&head, &[]).status;
            assert_eq!(status == 405, !methods.contains(&method), "{method} {path}: {status}");
        }
    }
    assert_eq!(server.get("/openapi.json").json(), document());
}

#[test]
fn document_states_the_limits_of_the_server() {
    let document = document();
    for form in ["Generation", "Edit", "Variation"] {
        let properties = &document["components"]["schemas"][form]["properties"];
        for (name, key, limit) in [
            ("n", "maximum", limits::N),
            ("best_of", "maximum", limits::BEST_OF),
            ("partial_images", "maximum", limits::PARTIAL_IMAGES),
            ("prompt", "maxLength", limits::PROMPT_CHARS),
            ("negative_prompt", "maxLength", limits::PROMPT_CHARS),
        ] {
            assert_eq!(properties[name][key], limit, "{form}.{name}.{key}");
        }
        let defaults = tessera_model::Sampling::default();
        assert_eq!(properties["guidance"]["default"], defaults.guidance);
        assert_eq!(properties["top_p"]["default"], defaults.top_p.unwrap());
    }
    let text = document.to_string();
    for phrase in [
        format!("a form larger than {} MiB", limits::FORM_BYTES >> 20),
        format!("JSON larger than {} KiB", limits::JSON_BYTES >> 10),
        format!("to {0}x{0}", limits::SIZE),
        "16,777,216 pixels at most".to_string(),
    ] {
        assert!(text.contains(&phrase), "{phrase:?} is not in the document");
    }
    assert_eq!(limits::ANSWER_PIXELS, 16_777_216);
}

/// The server accepts each documented parameter with an example of its type, and each answer has
/// the documented fields.
#[test]
fn documented_parameters_are_accepted_and_fields_returned() {
    let server = Running::new();
    let schemas = &document()["components"]["schemas"];
    let properties = schemas["Generation"]["properties"].as_object().unwrap().clone();
    for (name, property) in &properties {
        let kind = property["type"].as_str().unwrap_or_else(|| property["type"][0].as_str().unwrap());
        let example = match (name.as_str(), kind) {
            ("model", _) => json!("tessera"),
            ("stream" | "async", _) => json!(false),
            ("top_p", _) => json!(0.5),
            (_, _) if property.get("enum").is_some() => property["enum"][0].clone(),
            (_, _) if property.get("examples").is_some() => property["examples"][0].clone(),
            (_, "string") => json!("a cat"),
            (_, "boolean") => json!(true),
            _ => json!(2),
        };
        let mut asked = json!({ "prompt": "a cat", "best_of": 2 });
        asked[name] = example;
        let answer = server.post("/v1/images/generations", &asked);
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        let answer = answer.json();
        for field in schemas["Images"]["required"].as_array().unwrap() {
            assert!(answer.get(field.as_str().unwrap()).is_some(), "{field} is missing");
        }
        for field in schemas["Image"]["required"].as_array().unwrap() {
            assert!(answer["data"][0].get(field.as_str().unwrap()).is_some(), "{field} is missing");
        }
    }
}
