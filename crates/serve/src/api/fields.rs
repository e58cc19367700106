//! The parameters of a request, from JSON or a form, read one by one; what is left over is refused.

use std::collections::BTreeMap;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use serde_json::{Map, Value};

use super::ApiError;
use crate::limits::FORM_BYTES;

/// Longest text of a form's field that is no file.
const FIELD_BYTES: u64 = 64 * 1024;

/// Parameters by name.
pub struct Fields {
    values: Map<String, Value>,
    files: BTreeMap<String, Bytes>,
    /// In a form everything is text, numbers too.
    form: bool,
}

impl Fields {
    /// Of a JSON object.
    pub fn json(headers: &HeaderMap, body: &Bytes) -> Result<Fields, ApiError> {
        expect_type(headers, "application/json")?;
        let value: Value = serde_json::from_slice(body).map_err(|error| {
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", format!("The body is not JSON: {error}."))
        })?;
        match value {
            Value::Object(values) => Ok(Fields { values, files: BTreeMap::new(), form: false }),
            _ => Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "invalid_json",
                "The body is not a JSON object: wanted {\"prompt\": \"…\"}.",
            )),
        }
    }

    /// Of a form with files, read as it comes.
    pub async fn form(headers: &HeaderMap, body: Body) -> Result<Fields, ApiError> {
        expect_type(headers, "multipart/form-data")?;
        let broken = |error: multer::Error| match error {
            multer::Error::StreamSizeExceeded { .. } => ApiError::too_large(FORM_BYTES),
            error => {
                let message = format!("The form cannot be read: {error}.");
                ApiError::new(StatusCode::BAD_REQUEST, "invalid_form", message)
            }
        };
        let said =
            headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let boundary = multer::parse_boundary(said).map_err(broken)?;
        let limit = multer::SizeLimit::new().whole_stream(FORM_BYTES as u64);
        let constraints = multer::Constraints::new().size_limit(limit);
        let mut form = multer::Multipart::with_constraints(body.into_data_stream(), boundary, constraints);
        let mut fields = Fields { values: Map::new(), files: BTreeMap::new(), form: true };
        while let Some(field) = form.next_field().await.map_err(broken)? {
            // Clients that may send several pictures call one of them `image[]`.
            let name = field.name().unwrap_or_default().trim_end_matches("[]").to_string();
            let is_file = field.file_name().is_some();
            let bytes = field.bytes().await.map_err(broken)?;
            fields.put(name, is_file, bytes)?;
        }
        Ok(fields)
    }

    fn put(&mut self, name: String, is_file: bool, bytes: Bytes) -> Result<(), ApiError> {
        if self.values.contains_key(&name) || self.files.contains_key(&name) {
            return Err(ApiError::invalid(&name, format!("'{name}' comes twice: wanted it once.")));
        }
        if is_file {
            self.files.insert(name, bytes);
            return Ok(());
        }
        let long = bytes.len() as u64 > FIELD_BYTES;
        match String::from_utf8(bytes.to_vec()) {
            Ok(text) if !long => self.values.insert(name, Value::String(text)),
            _ => return Err(ApiError::invalid(&name, format!("'{name}' is no text, or too long a one."))),
        };
        Ok(())
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.values.remove(name).filter(|value| !value.is_null())
    }

    /// A text.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, &other, "a text")),
        }
    }

    /// A number.
    pub fn number(&mut self, name: &str) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = match &value {
            Value::String(text) if self.form => text.trim().parse().ok(),
            other => other.as_f64(),
        };
        number.map(Some).ok_or_else(|| wrong(name, &value, "a number"))
    }

    /// A whole number within bounds.
    pub fn whole(&mut self, name: &str, least: u64, most: u64) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = match &value {
            Value::String(text) if self.form => text.trim().parse().ok(),
            other => other.as_u64().or_else(|| {
                // 4.0 is a whole number, too.
                other
                    .as_f64()
                    .filter(|number| number.fract() == 0.0 && (0.0..1e15).contains(number))
                    .map(|n| n as u64)
            }),
        };
        let within = number.filter(|number| (least..=most).contains(number));
        within.map(Some).ok_or_else(|| wrong(name, &value, &format!("a whole number from {least} to {most}")))
    }

    /// Yes or no; no if absent.
    pub fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(Value::String(text)) if self.form && ["true", "True", "1"].contains(&text.as_str()) => {
                Ok(true)
            }
            Some(Value::String(text)) if self.form && ["false", "False", "0"].contains(&text.as_str()) => {
                Ok(false)
            }
            Some(other) => Err(wrong(name, &other, "true or false")),
        }
    }

    /// A file.
    pub fn file(&mut self, name: &str) -> Option<Bytes> {
        self.files.remove(name)
    }

    /// Parameters of OpenAI's that mean nothing here, and may be given.
    pub fn ignore(&mut self, names: &[&str]) {
        names.iter().for_each(|name| drop(self.values.remove(*name)));
    }

    /// Refuses what nobody asked for.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.values.keys().chain(self.files.keys()).next() {
            None => Ok(()),
            Some(name) => Err(ApiError {
                code: "unknown_parameter",
                ..ApiError::invalid(name, format!("There is no parameter '{}'.", shortened(name)))
            }),
        }
    }
}

fn expect_type(headers: &HeaderMap, wanted: &str) -> Result<(), ApiError> {
    let said = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = said.split(';').next().unwrap_or_default().trim();
    match kind.eq_ignore_ascii_case(wanted) {
        true => Ok(()),
        false => Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            format!("The content type is '{}': wanted {wanted}.", shortened(kind)),
        )),
    }
}

fn wrong(name: &str, got: &Value, wanted: &str) -> ApiError {
    ApiError::invalid(name, format!("'{name}' is {}: wanted {wanted}.", shortened(&got.to_string())))
}

/// Enough of what came to recognise it.
pub fn shortened(text: &str) -> String {
    match text.char_indices().nth(60) {
        None => text.to_string(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
