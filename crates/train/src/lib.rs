//! Training: one loop for all models, and the commands that use it or prepare its data.
//!
//! The commands are `train bpe` (paper §2.2), `train dvae` (§2.1), `encode`, `train prior` (§2.2,
//! §B.2) and `train rerank` (§2.6).

#![cfg_attr(not(feature = "mpi"), forbid(unsafe_code))]

mod best;
mod bpe;
mod buffer;
mod capacity;
mod captions;
mod checkpoint;
mod config;
mod control;
pub mod dist;
mod dvae;
mod encode;
mod fit;
#[cfg(test)]
mod golden;
mod gradient;
mod log;
mod optim;
mod pace;
#[cfg(test)]
mod paper;
mod params;
mod precision;
mod prefetch;
mod prior;
mod rerank;
mod run_dir;
mod run_model;
mod same_run;
mod samples;
mod schedule;
mod slots;
mod split_codes;
mod stage;
mod tensorboard;
mod tokens;

pub use bpe::train_bpe;
pub use capacity::{Need, Stage};
pub use config::{
    ChainConfig, CompressionRank, Config, DataConfig, Encoding, FitConfig, PowerSgdConfig, RelaxConfig,
    TrainingDtype,
};
pub use control::Control;
pub use dvae::train_dvae;
pub use encode::{EncodeInputs, encode};
pub use fit::{Outcome, Task, Trainer, Training, Update, Validation};
pub use gradient::{Loss, Sums, differentiate};
pub use log::Metrics;
pub use optim::Moments;
pub use pace::{Length, Pace};
pub use params::{ParamStore, Which};
pub use precision::{Scales, Scaling};
pub use prior::{PriorInputs, train_prior};
pub use rerank::{RerankInputs, train_rerank};
pub use run_dir::{RunOptions, has_checkpoint};
pub use run_model::{RunFiles, run_model};
pub use samples::ScenesConfig;
pub use schedule::{Plateau, Schedule, cosine_decay, rise};
pub use slots::Slots;
