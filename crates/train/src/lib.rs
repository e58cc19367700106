//! One loop, and the tasks that it runs: BPE, the dVAE (paper §2.1), encoding, and the prior (paper §2.2, §B.2).

mod bpe;
mod config;
mod dvae;
mod encode;
mod events;
mod fit;
mod log;
mod optim;
mod picture;
mod prior;
mod run_dir;
mod schedule;

pub use bpe::train_bpe;
pub use config::{Config, DataConfig, FitConfig, RelaxConfig};
pub use dvae::train_dvae;
pub use encode::{encode, held_out_codes, held_out_pictures, held_out_subjects};
pub use fit::{Gradient, Loss, Outcome, Task, Trainer, differentiate};
pub use log::Metrics;
pub use picture::grid;
pub use prior::train_prior;
pub use run_dir::RunOptions;
pub use schedule::{cosine, warmup_cosine};
