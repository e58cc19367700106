//! Tests of the server. Each test starts a server in this process and connects to it over sockets.
//!
//! The tests with a browser, OpenAI's client and schemathesis are in `tests/web`.

#[cfg(test)]
mod api;
#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod client;
#[cfg(test)]
mod connections;
#[cfg(test)]
mod document;
#[cfg(test)]
mod programs;
