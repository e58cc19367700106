//! API keys: they are read from a file, and requests send one as `Authorization: Bearer KEY`.

use std::path::Path;

use anyhow::{Result, ensure};
use axum::http::{HeaderMap, StatusCode, header};
use tessera_data::{read_text, text_lines};

use crate::api::ApiError;

/// The API keys that are accepted.
pub struct Keys(Vec<String>);

impl Keys {
    /// Reads the keys of a file, one per line. Empty lines and lines that begin with `#` are
    /// ignored.
    ///
    /// # Errors
    /// If the file cannot be read or contains no key.
    pub fn read(path: &Path) -> Result<Keys> {
        let shown = path.display();
        let lines = text_lines(&read_text(path)?);
        let keys: Vec<String> = lines.into_iter().filter(|line| !line.starts_with('#')).collect();
        ensure!(!keys.is_empty(), "{shown} contains no key: wanted one per line");
        Ok(Keys(keys))
    }

    /// Checks the key of a request with these headers.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let refused =
            |message: &str| Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message));
        // The scheme is case-insensitive.
        let bearer = value.and_then(|value| value.trim().split_once(' '));
        let Some((_, key)) = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) else {
            return refused("This server requires an API key: send the header Authorization: Bearer KEY.");
        };
        // Every key is compared completely, so that the time does not reveal how much was right.
        match self.0.iter().filter(|known| same(known.as_bytes(), key.trim().as_bytes())).count() {
            0 => refused("This API key is not valid on this server."),
            _ => Ok(()),
        }
    }
}

/// Whether two keys are equal. The time of the comparison depends only on their lengths.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}
