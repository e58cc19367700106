//! [`Error`]: why the library's entry point could not load a model or draw.

use std::path::{Path, PathBuf};
use std::{error, io};

use tessera_base::Internal;
use tessera_container::Newer;

/// Why a model could not be loaded, or a request could not be drawn.
///
/// The message is one line that says what was wrong, what was expected and, if possible, what to
/// do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The path of the file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The file is not a model file, or it is damaged or cut short.
    #[error("{0}")]
    InvalidFile(String),
    /// The model file is intact, but a newer version of Tessera wrote it.
    #[error("{0}")]
    NewerFile(String),
    /// The model file is intact, but it lacks a part that drawing needs, or its parts do not fit
    /// each other.
    #[error("{0}")]
    UnusableModel(String),
    /// The request is invalid for this model.
    #[error("{0}")]
    InvalidRequest(String),
    /// The request asks for the best pictures, and the model has no reranker. Draw with
    /// `best: None`.
    #[error("the model has no reranker to choose the best with")]
    NoReranker,
    /// The library failed. This is a bug; no other request would help.
    #[error("drawing failed")]
    Internal(#[source] Box<dyn error::Error + Send + Sync>),
}

impl Error {
    /// The error for a file at `path` that could not be read as a model file.
    pub(crate) fn file(path: &Path, error: anyhow::Error) -> Error {
        let message = format!("{error:#}");
        match error.downcast::<io::Error>() {
            Ok(source) => Error::Io { path: path.to_path_buf(), source },
            Err(error) if error.is::<Newer>() => Error::NewerFile(message),
            Err(_) => Error::InvalidFile(message),
        }
    }

    /// The error for a request that could not be started.
    pub(crate) fn request(error: anyhow::Error) -> Error {
        match error.downcast::<Error>() {
            Ok(error) => error,
            Err(error) if error.chain().any(|cause| cause.is::<Internal>()) => Error::internal(error),
            Err(error) => Error::InvalidRequest(format!("{error:#}")),
        }
    }

    /// The error for a failure that no request should be able to cause.
    pub(crate) fn internal(error: anyhow::Error) -> Error {
        // Unlike `Into`, this keeps the type of the cause, by which `tessera_base::Fault` knows it.
        Error::Internal(error.reallocate_into_boxed_dyn_error_without_backtrace())
    }
}

#[cfg(test)]
mod tests {
    use tessera_base::Fault;

    use super::*;

    #[test]
    fn internal_errors_keep_their_cause() {
        let failed = || anyhow::Error::from(Internal("not f32".to_string()));
        for error in [Error::internal(failed()), Error::request(failed().context("the negative prompt"))] {
            assert!(matches!(error, Error::Internal(_)), "{error:?}");
            let error = anyhow::Error::from(error);
            assert_eq!(Fault::of(&error), Fault::Program);
            let message = format!("{error:#}");
            assert!(message.starts_with("drawing failed: ") && message.ends_with("not f32"), "{message}");
        }
    }
}
