//! The parameters of a request, from JSON or a form. They are taken one by one, and parameters that
//! remain are refused as unknown.

use std::collections::BTreeMap;
use std::fmt::Display;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use serde_json::{Map, Value};
use tessera_data::decode_text;

use super::ApiError;
use super::form_body::{FormBody, NoFieldData};
use super::intake::Intake;
use crate::limits::{FORM_BYTES, FORM_PARTS};

/// The maximum size of a form's field that is not a file, in bytes.
const FIELD_BYTES: usize = 64 * 1024;
/// The parameters that are always files, even if a form does not declare them as such.
const FILES: [&str; 2] = ["image", "mask"];

/// The parameters of a request by name.
pub struct Fields {
    values: Map<String, Value>,
    files: BTreeMap<String, Bytes>,
}

impl Fields {
    /// Reads the parameters of a JSON object.
    pub fn json(headers: &HeaderMap, body: &Bytes) -> Result<Fields, ApiError> {
        expect_type(headers, "application/json")?;
        let no_json = |error: &dyn Display| {
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", format!("The body is not JSON: {error}."))
        };
        let text = decode_text(body).map_err(|error| no_json(&error))?;
        let value: Value = serde_json::from_str(&text).map_err(|error| no_json(&error))?;
        match value {
            Value::Object(values) => Ok(Fields { values, files: BTreeMap::new() }),
            _ => Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "invalid_json",
                "The body is not a JSON object: wanted {\"prompt\": \"…\"}.",
            )),
        }
    }

    /// Reads the parameters of a form with files, while its body arrives.
    pub async fn form(headers: &HeaderMap, body: Body, intake: &mut Intake<'_>) -> Result<Fields, ApiError> {
        expect_type(headers, "multipart/form-data")?;
        let kind =
            headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let boundary = multer::parse_boundary(kind).map_err(broken)?;
        let limit = multer::SizeLimit::new().whole_stream(FORM_BYTES as u64);
        let constraints = multer::Constraints::new().size_limit(limit);
        let (body, progress) = FormBody::new(body);
        let mut form = multer::Multipart::with_constraints(body, boundary, constraints);
        let mut fields = Fields { values: Map::new(), files: BTreeMap::new() };
        let mut parts = 0;
        while let Some(mut field) = intake.next(async { form.next_field().await.map_err(broken) }).await? {
            intake.count(progress.take()).await?;
            parts += 1;
            if parts > FORM_PARTS {
                return Err(invalid_form(format!("The form has more than {FORM_PARTS} parts.")));
            }
            let name = plain(field.name().unwrap_or_default()).to_string();
            let is_file = FILES.contains(&name.as_str()) || is_file(&field);
            let is_named = field.file_name().is_some_and(|name| !name.is_empty());
            let mut bytes = Vec::new();
            while let Some(chunk) = intake.next(async { field.chunk().await.map_err(broken) }).await? {
                intake.count(progress.take()).await?;
                bytes.extend_from_slice(&chunk);
            }
            match is_file {
                // If the user of a web form chooses no file, it sends an empty one without a name.
                true if bytes.is_empty() && !is_named => {}
                true => fields.put_file(name, bytes.into())?,
                false => fields.put_text(name, &bytes)?,
            }
        }
        Ok(fields)
    }

    fn put_file(&mut self, name: String, bytes: Bytes) -> Result<(), ApiError> {
        if self.files.contains_key(&name) {
            return Err(ApiError::invalid(&name, format!("'{name}' comes twice: wanted one picture.")));
        }
        self.files.insert(name, bytes);
        Ok(())
    }

    fn put_text(&mut self, name: String, bytes: &[u8]) -> Result<(), ApiError> {
        if self.values.contains_key(&name) {
            return Err(ApiError::invalid(&name, format!("'{name}' comes twice: wanted it once.")));
        }
        match decode_text(bytes) {
            Ok(text) if text.len() <= FIELD_BYTES => {
                self.values.insert(name, Value::String(text));
                Ok(())
            }
            Ok(_) | Err(_) => {
                let most = FIELD_BYTES / 1024;
                Err(ApiError::invalid(&name, format!("'{name}' must be UTF-8 text of at most {most} KiB.")))
            }
        }
    }

    /// Takes the value of this name. Null and an empty text count as absent.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.values.remove(name).filter(|value| !value.is_null() && value.as_str() != Some(""))
    }

    /// Takes a text. An empty one counts as absent.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        text_of(name, self.take(name))
    }

    /// Takes a text that may be empty, such as a prompt.
    pub fn prose(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        let value = self.values.remove(name).filter(|value| !value.is_null());
        text_of(name, value)
    }

    /// Takes a number that is finite in f32, because models compute in f32.
    pub fn number(&mut self, name: &str) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = number_of(&value).filter(|number| (*number as f32).is_finite());
        number.map(Some).ok_or_else(|| wrong(name, &value, "a number up to 3.4e38"))
    }

    /// Takes a whole number from `least` to `most`; 4.0 counts as a whole number.
    pub fn whole(&mut self, name: &str, least: u64, most: u64) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let exact = match &value {
            Value::String(text) => text.trim().parse().ok(),
            other => other.as_u64(),
        };
        let number = exact.or_else(|| {
            let number = number_of(&value)?;
            (number.fract() == 0.0 && (0.0..1e15).contains(&number)).then_some(number as u64)
        });
        let within = number.filter(|number| (least..=most).contains(number));
        within.map(Some).ok_or_else(|| wrong(name, &value, &format!("a whole number from {least} to {most}")))
    }

    /// Takes true or false; false if absent.
    pub fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("true") || text == "1" => Ok(true),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("false") || text == "0" => Ok(false),
            Some(other) => Err(wrong(name, &other, "true or false")),
        }
    }

    /// Takes a file.
    pub fn file(&mut self, name: &str) -> Option<Bytes> {
        self.files.remove(name)
    }

    /// Returns the names of all files that were not taken.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Drops parameters that are accepted but have no effect.
    pub fn ignore(&mut self, names: &[&str]) {
        names.iter().for_each(|name| drop(self.values.remove(*name)));
    }

    /// Returns an error if a parameter was not taken.
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

/// Returns the error of a form that cannot be read.
fn broken(error: multer::Error) -> ApiError {
    match error {
        multer::Error::StreamSizeExceeded { .. } => ApiError::too_large(FORM_BYTES),
        multer::Error::StreamReadFailed(error) if error.is::<NoFieldData>() => {
            invalid_form(format!("{error}."))
        }
        error => invalid_form(format!("The form cannot be read: {error}.")),
    }
}

fn invalid_form(message: String) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_form", message)
}

/// Returns the name of a part without brackets: clients that can send several pictures name them
/// `image[]` or `image[0]`.
fn plain(name: &str) -> &str {
    match name.strip_suffix(']').and_then(|name| name.split_once('[')) {
        Some((plain, index)) if index.bytes().all(|digit| digit.is_ascii_digit()) => plain,
        Some(_) | None => name,
    }
}

/// Whether a part is a file. Some clients send the file's name only as `filename*`, and others send
/// only a content type.
fn is_file(field: &multer::Field) -> bool {
    let disposition = field.headers().get(header::CONTENT_DISPOSITION).map(|value| value.as_bytes());
    let extended = b"filename*=";
    let is_named = field.file_name().is_some()
        || disposition.is_some_and(|value| {
            value.windows(extended.len()).any(|part| part.eq_ignore_ascii_case(extended))
        });
    let is_typed = field
        .content_type()
        .is_some_and(|kind| kind.type_() == "image" || kind.essence_str() == "application/octet-stream");
    is_named || is_typed
}

fn text_of(name: &str, value: Option<Value>) -> Result<Option<String>, ApiError> {
    match value {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(wrong(name, &other, "a text")),
    }
}

/// Returns a number, which may be sent as text: forms contain only text, and so does the JSON of
/// some clients.
fn number_of(value: &Value) -> Option<f64> {
    match value {
        Value::String(text) => text.trim().parse().ok().filter(|number: &f64| number.is_finite()),
        other => other.as_f64(),
    }
}

fn expect_type(headers: &HeaderMap, wanted: &str) -> Result<(), ApiError> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = value.split(';').next().unwrap_or_default().trim();
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

/// Returns the start of a text for an error message.
pub fn shortened(text: &str) -> String {
    match text.char_indices().nth(60) {
        None => text.to_string(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
