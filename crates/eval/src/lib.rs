//! Metrics and plots: how good a dVAE's reconstructions are, how much a prior's loss depends on the
//! caption, and whether generated pictures match their captions.

#![forbid(unsafe_code)]

mod blur;
mod blur_curve;
mod clip_score;
mod cmmd;
mod conditioning;
mod curves;
mod drawing;
mod drawn;
mod drawn_study;
mod embedding;
mod features;
mod frechet;
#[cfg(test)]
mod golden;
mod held_out;
mod human;
mod inception;
mod inception_score;
mod interval;
mod kid;
mod overlap;
mod overlap_report;
mod page;
mod pairs;
mod plot;
mod precision_recall;
mod protocol;
mod recon;
mod reconstruct;
mod report;
mod rerank_curve;
mod retrieval;
mod set;
mod statistics;
mod store;
mod vectors;
mod zero_shot;

pub use blur::{blur, blur_at};
pub use blur_curve::{Blurs, blur_curve};
pub use clip_score::clip_score;
pub use cmmd::cmmd;
pub use conditioning::{Conditioning, Conditions, DrawnLoss, Figure, LabelledCodes, conditioning};
pub use curves::curves;
pub use drawing::{DrawingReport, Subject, drawing};
pub use drawn::{Draws, best_of, draw_each, pictures_in};
pub use drawn_study::{DrawnStudy, describe_sampling, doublings, held_out_captions};
pub use embedding::Embedding;
pub use features::{FeatureExtractor, Features};
pub use frechet::{Gaussian, fid, frechet_distance};
pub use held_out::{
    centre_crop, code_item, codes_of, held_out_codes, held_out_pictures, held_out_subjects, labelled_codes,
};
pub use human::{Comparison, Hasty, Votes, comparison_page, votes};
pub use inception::{Convention, Inception, Resize, TF_2015_URL, TORCHVISION_URL};
pub use inception_score::InceptionScore;
pub use interval::Estimate;
pub use kid::kid;
pub use overlap::{Overlap, OverlapSearch, split_by_overlap};
pub use overlap_report::{OverlapReport, overlap_report};
pub use page::Page;
pub use pairs::Pairs;
pub use plot::{Frame, Panel, Point, Series, XAxis, line_plots};
pub use precision_recall::precision_recall;
pub use protocol::{DmGan, Protocol};
pub use recon::{Recon, RelaxationGap, recon, relaxation_gap};
pub use reconstruct::{Reconstruction, reconstruct};
pub use report::Report;
pub use rerank_curve::{CurvePoint, Real, plot_curve, rerank_curve};
pub use retrieval::{Recall, r_precision, recall_at, retrieval};
pub use set::{Change, Extraction};
pub use statistics::read_statistics;
pub use store::Store;
pub use vectors::Vectors;
pub use zero_shot::{
    CaseResult, Found, KindFigures, Mistakes, PanelResult, Probe, Probed, Variety, ZeroShot, ZeroShotFigure,
    zero_shot_figures,
};
