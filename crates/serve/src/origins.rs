//! The server's public URL, and the other sites whose pages may use the server (CORS).

use anyhow::{Result, ensure};
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// Checks the URL at which clients reach the server, and returns it without a slash at its end. The
/// URL may be that of a proxy and contain a path.
///
/// # Errors
/// If `text` is not an http or https URL, or contains a query or a fragment.
pub fn public_url(text: &str) -> Result<String> {
    let wanted = "wanted an address such as https://example.org/tessera";
    let uri: Option<Uri> = text.parse().ok().filter(is_web);
    ensure!(
        uri.is_some_and(|uri| uri.query().is_none()) && !text.contains('#'),
        "not an http or https URL without query and fragment: {wanted}"
    );
    Ok(text.trim_end_matches('/').to_string())
}

fn is_web(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
}

/// An origin whose pages may use the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Any origin.
    Any,
    /// A scheme, a host and an optional port, in the form that browsers send.
    Site(HeaderValue),
}

impl std::str::FromStr for Origin {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Origin> {
        if text == "*" {
            return Ok(Origin::Any);
        }
        let text = text.trim_end_matches('/').to_ascii_lowercase();
        let uri: Option<Uri> = text.parse().ok().filter(is_web);
        let bare = uri.is_some_and(|uri| uri.path() == "/" && uri.query().is_none()) && !text.contains('#');
        ensure!(bare, "not an origin: wanted one such as https://example.org, or *");
        Ok(Origin::Site(text.parse()?))
    }
}

/// All origins whose pages may use the server.
#[derive(Clone)]
pub struct Origins(Vec<Origin>);

impl Origins {
    /// Allows the pages of these origins.
    pub fn new(origins: Vec<Origin>) -> Origins {
        Origins(origins)
    }

    /// Whether pages of other sites are refused.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a request with these headers comes from a page of an allowed origin.
    pub fn allow(&self, headers: &HeaderMap) -> bool {
        headers.get(header::ORIGIN).is_some_and(|from| self.has(from))
    }

    fn has(&self, from: &HeaderValue) -> bool {
        self.0.iter().any(|origin| match origin {
            Origin::Any => true,
            Origin::Site(site) => site == from,
        })
    }

    /// Returns the layer that adds the CORS headers for browsers.
    pub fn layer(&self) -> CorsLayer {
        let origins = self.clone();
        let allowed = AllowOrigin::predicate(move |from, _| origins.has(from));
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST, Method::DELETE])
            // API keys, content types, and headers in which clients describe themselves.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers([header::RETRY_AFTER])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_urls_and_origins_are_validated() {
        assert_eq!(public_url("https://example.org/tessera/").unwrap(), "https://example.org/tessera");
        for text in
            ["example.org", "ftp://example.org", "https://", "/tessera", "https://a/?b", "https://a/#b", ""]
        {
            assert!(public_url(text).is_err(), "{text}");
        }
        assert_eq!("*".parse::<Origin>().unwrap(), Origin::Any);
        let site = Origin::Site(HeaderValue::from_static("http://localhost:3000"));
        assert_eq!("http://LOCALHOST:3000/".parse::<Origin>().unwrap(), site);
        for text in ["example.org", "https://example.org/page", "null", "https://a b"] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }
}
