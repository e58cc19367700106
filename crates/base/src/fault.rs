//! Classifies errors by whose fault they are, which decides exit codes and HTTP statuses.

use std::error::Error;
use std::fmt::{Display, Formatter};
use std::io;

/// Whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The request is invalid; a different request may succeed.
    Request,
    /// The program failed; a different request would not help.
    Program,
    /// The machine failed, for example because a disk is full.
    Machine,
}

impl Fault {
    /// Classifies `error` by its chain of causes: a full disk, missing memory or a GPU that
    /// failed is the machine's fault, an [`Internal`] error is the program's, and any other error is the request's.
    pub fn of(error: &anyhow::Error) -> Fault {
        use io::ErrorKind::{OutOfMemory, QuotaExceeded, StorageFull};
        let is_machine = |cause: &(dyn Error + 'static)| {
            let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
            kind.is_some_and(|kind| matches!(kind, StorageFull | QuotaExceeded | OutOfMemory))
                || cause.is::<DeviceFailed>()
        };
        match () {
            () if error.chain().any(is_machine) => Fault::Machine,
            () if error.chain().any(|cause| cause.is::<Internal>()) => Fault::Program,
            () => Fault::Request,
        }
    }
}

/// An error that no valid or invalid request should be able to cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Internal(pub String);

impl Internal {
    /// Returns an internal error with the debug text of `error`, for errors without another text.
    pub fn debug(error: impl std::fmt::Debug) -> Internal {
        Internal(format!("{error:?}"))
    }
}

impl Display for Internal {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        write!(f, "internal error, please report it: {}", self.0)
    }
}

impl Error for Internal {}

/// An error of a GPU: it ran out of memory, or the driver lost it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFailed(pub String);

impl Display for DeviceFailed {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        write!(f, "the device failed: {}", self.0)
    }
}

impl Error for DeviceFailed {}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn faults_are_classified_by_their_causes() {
        let failed = |kind: io::ErrorKind| {
            let failed: Result<(), io::Error> = Err(kind.into());
            Fault::of(&failed.context("cannot write apple.png").unwrap_err())
        };
        assert_eq!(failed(io::ErrorKind::StorageFull), Fault::Machine);
        assert_eq!(failed(io::ErrorKind::NotFound), Fault::Request);
        let internal: Result<(), Internal> = Err(Internal("not f32".to_string()));
        assert_eq!(Fault::of(&internal.context("the picture").unwrap_err()), Fault::Program);
        assert_eq!(Fault::of(&anyhow::anyhow!("--scale 0: wanted 1 to 64")), Fault::Request);
    }
}
