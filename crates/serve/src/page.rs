//! The page at `/`: one document that loads nothing else. It is put together at compile time.

/// What a browser lets the page do: load nothing from other servers.
pub const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
    img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The document.
pub const PAGE: &str = concat!(
    include_str!("page/head.html"),
    "<style>\n",
    include_str!("page/page.css"),
    "</style>\n",
    include_str!("page/body.html"),
    "<script>\n\"use strict\";\n",
    include_str!("page/api.js"),
    include_str!("page/draw.js"),
    include_str!("page/gallery.js"),
    include_str!("page/source.js"),
    include_str!("page/history.js"),
    include_str!("page/page.js"),
    "</script>\n</html>\n",
);
