//! Who may draw: keys from a file, sent as `Authorization: Bearer KEY`.

use std::path::Path;

use anyhow::{Result, ensure};
use axum::http::{HeaderMap, StatusCode, header};
use tessera_data::{read_text, text_lines};

use crate::api::ApiError;

/// Keys that are let in.
pub struct Keys(Vec<String>);

impl Keys {
    /// The keys of a file, one a line; empty lines and those that begin with # are left out.
    ///
    /// # Errors
    /// If the file cannot be read or holds no key.
    pub fn read(path: &Path) -> Result<Keys> {
        let shown = path.display();
        let lines = text_lines(&read_text(path)?);
        let keys: Vec<String> = lines.into_iter().filter(|line| !line.starts_with('#')).collect();
        ensure!(!keys.is_empty(), "{shown} holds no key: wanted one a line");
        Ok(Keys(keys))
    }

    /// Lets the request in, or says what is wrong with its key.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let said = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let refused =
            |message: &str| Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message));
        // The scheme is a word in any case.
        let bearer = said.and_then(|said| said.trim().split_once(' '));
        let Some((_, key)) = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) else {
            return refused("This server wants a key: send the header Authorization: Bearer KEY.");
        };
        // Every key is looked at whole, so that the time taken tells nothing.
        match self.0.iter().filter(|known| same(known.as_bytes(), key.trim().as_bytes())).count() {
            0 => refused("This key is not known here."),
            _ => Ok(()),
        }
    }
}

/// Whether two keys are equal, in a time that depends on their lengths alone.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}
