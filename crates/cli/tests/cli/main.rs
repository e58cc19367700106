//! Tests of the program: each runs the binary in a separate folder. `tidy` and `book` check the
//! sources and the documentation.
//!
//! Drawing needs a model. `pipeline` trains one on `fixtures/emoji`, once for all tests.

#[cfg(test)]
mod bench;
#[cfg(test)]
mod book;
#[cfg(test)]
mod captions;
#[cfg(test)]
mod config;
#[cfg(test)]
mod data;
#[cfg(test)]
mod draw;
#[cfg(test)]
mod eval;
#[cfg(test)]
mod first_hour;
#[cfg(test)]
mod gallery;
#[cfg(test)]
#[cfg(unix)]
mod interrupt;
#[cfg(test)]
mod killed;
#[cfg(test)]
mod model_file;
#[cfg(test)]
mod online;
#[cfg(test)]
#[cfg(unix)]
mod outputs;
#[cfg(test)]
mod picture_prompt;
#[cfg(test)]
mod pictures;
#[cfg(test)]
mod pipeline;
#[cfg(test)]
mod plan;
#[cfg(test)]
mod program;
#[cfg(test)]
mod published;
#[cfg(test)]
#[cfg(feature = "mpi")]
mod ranks;
#[cfg(test)]
mod resume;
#[cfg(test)]
mod serve;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod serve_fuzz;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod serve_memory;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod streams;
#[cfg(test)]
mod tidy;
#[cfg(test)]
mod zero_shot;
