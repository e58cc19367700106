//! The server as its clients meet it: each test talks to one that runs in this process, over real sockets.
//!
//! What a browser, OpenAI's client and schemathesis make of it is tested in `tests/web`.

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
