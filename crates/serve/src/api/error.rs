//! Errors in OpenAI's format, which its clients can read.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// The error answer to a request.
#[derive(Debug, Clone)]
pub struct ApiError {
    /// The HTTP status code of the answer.
    pub status: StatusCode,
    /// The explanation for people.
    pub message: String,
    /// The name of the invalid parameter, if there is one.
    pub param: Option<String>,
    /// The kind of error, as a word for programs.
    pub code: &'static str,
}

impl ApiError {
    /// Returns an error without the name of a parameter.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into(), param: None, code }
    }

    /// Returns the error of an invalid parameter.
    pub fn invalid(param: &str, message: impl Into<String>) -> ApiError {
        let error = ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", message);
        ApiError { param: Some(param.to_string()), ..error }
    }

    /// Returns the same error with this parameter name.
    pub fn of(self, param: &str) -> ApiError {
        ApiError { param: Some(param.to_string()), ..self }
    }

    /// Returns the error of a URL that does not exist.
    pub fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// Returns the error of a request body of more than `most` bytes.
    pub fn too_large(most: usize) -> ApiError {
        let message = format!("The body is larger than {} KiB.", most / 1024);
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
    }

    /// Returns the error of a failure in the server; a different request would not help.
    pub fn ours(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// Returns the error of a server that has too much to do; the client can try again later.
    pub fn busy(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message)
    }

    /// Returns the JSON for the body of an answer or an event of a stream.
    pub fn json(&self) -> serde_json::Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "requests",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let ApiError { message, param, code, .. } = self;
        json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.json())).into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
