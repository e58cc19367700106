//! Addresses that a server is told of: its own, as clients see it, and those of other sites whose pages may ask it.

use anyhow::{Result, ensure};
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// The address at which clients reach the server, perhaps through a proxy and below a path; without a slash at its end.
///
/// # Errors
/// If it is no address of the web.
pub fn public_url(text: &str) -> Result<String> {
    let wanted = "wanted an address such as https://example.org/tessera";
    let uri: Option<Uri> = text.parse().ok().filter(is_web);
    ensure!(
        uri.is_some_and(|uri| uri.query().is_none()) && !text.contains('#'),
        "not an address of the web: {wanted}"
    );
    Ok(text.trim_end_matches('/').to_string())
}

fn is_web(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
}

/// An origin whose pages may ask the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Any at all.
    Any,
    /// A scheme, a host and perhaps a port, as browsers send them.
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

/// All of them.
#[derive(Clone)]
pub struct Origins(Vec<Origin>);

impl Origins {
    pub fn new(origins: Vec<Origin>) -> Origins {
        Origins(origins)
    }

    /// Whether no other site's pages may ask.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a request comes from a page of one of them.
    pub fn allow(&self, headers: &HeaderMap) -> bool {
        headers.get(header::ORIGIN).is_some_and(|from| self.has(from))
    }

    fn has(&self, from: &HeaderValue) -> bool {
        self.0.iter().any(|origin| match origin {
            Origin::Any => true,
            Origin::Site(site) => site == from,
        })
    }

    /// What tells browsers so.
    pub fn layer(&self) -> CorsLayer {
        let origins = self.clone();
        let allowed = AllowOrigin::predicate(move |from, _| origins.has(from));
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST, Method::DELETE])
            // Keys, types, and what clients tell of themselves.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers([header::RETRY_AFTER])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
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
