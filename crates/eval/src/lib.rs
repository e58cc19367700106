//! Tensors in, numbers and plots out: how good a dVAE's reconstructions are, how much a prior listens to words, and
//! whether drawings look like what they were asked for.

mod blur;
mod conditioning;
mod curves;
mod drawing;
mod features;
mod frechet;
mod inception;
mod recon;
mod report;

pub use blur::blur;
pub use conditioning::{Conditioning, Conditions, Drawn, Figure, LabelledCodes, conditioning};
pub use curves::curves;
pub use drawing::{DrawingReport, Subject, drawing};
pub use features::{Features, Seen};
pub use frechet::{Gaussian, frechet_distance};
pub use inception::{Convention, Inception, Resize, TF_2015_URL, TORCHVISION_URL};
pub use recon::{Recon, RelaxationGap, recon, relaxation_gap};
pub use report::Report;
