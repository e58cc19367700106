//! `tessera eval fid` and similar: computes metrics of sets of pictures from a network's features.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tessera_base::atomic;
use tessera_data::counted;
use tessera_eval::{
    Blurs, Change, Extraction, FeatureExtractor, InceptionScore, Pairs, Protocol, Report, blur_curve,
    clip_score, fid, overlap_report, retrieval,
};

use super::protocol::{gaussian, is_statistics, network_of, with_network, with_protocol};
use super::{held_out_of, open};
use crate::args::{MeasurePair, Network, Pair};
use crate::commands::output::{Content, Outputs, write_picture};
use crate::commands::say;
use crate::reporter::Terminal;

/// Computes a metric of a pair of sets.
pub fn measure_pair(MeasurePair { metric, pair }: &MeasurePair) -> Result<()> {
    let terminal = Terminal::default();
    with_network(&pair.network, |network| {
        let sets = [pair.real.as_path(), &pair.fake];
        let [real, fake] = extraction(&pair.network, &terminal).pair(sets, network)?;
        print(&pair.network, &(metric.measure)(&real, &fake)?)
    })
}

/// Computes FID.
pub fn measure_fid(pair: &Pair) -> Result<()> {
    let terminal = Terminal::default();
    with_protocol(&pair.network, |protocol| {
        let extract = |path: &Path, network: &dyn FeatureExtractor| {
            extraction(&pair.network, &terminal).features(path, network, Change::NONE)
        };
        let real = gaussian(&pair.real, protocol, extract)?;
        print(&pair.network, &[fid(&real, &gaussian(&pair.fake, protocol, extract)?)?])
    })
}

/// Computes the Inception score of the pictures in `dir`.
pub fn measure_is(dir: &Path, flags: &Network) -> Result<()> {
    let terminal = Terminal::default();
    let measure = |network: &dyn FeatureExtractor| {
        ensure!(
            network.classes() > 1,
            "the contrastive model knows no classes: pass a file of captions with --classes, or weights with --inception"
        );
        let store = extraction(flags, &terminal).features(dir, network, Change::NONE)?;
        let splits = InceptionScore::SPLITS;
        let score = store.inception_score()?;
        print(
            flags,
            &[score.with_context(|| {
                format!("{}; wanted at least {splits}", counted(store.len() as u64, "picture"))
            })?],
        )
    };
    with_protocol(flags, |protocol| match protocol {
        Protocol::One(network) => measure(network),
        Protocol::DmGan(own) => measure(own.score()?),
    })
}

/// Plots FID and IS against the radius of a blur.
pub fn measure_blur(pair: &Pair, blurs: Blurs, out: &Path) -> Result<()> {
    let outputs = Outputs::check(&[(out, Content::Plot)], pair.network.json)?;
    for set in [&pair.real, &pair.fake] {
        let shown = set.display();
        ensure!(!is_statistics(set), "{shown}: statistics cannot be blurred; wanted a folder of pictures");
    }
    let terminal = Terminal::default();
    with_protocol(&pair.network, |protocol| {
        if let Protocol::DmGan(own) = protocol {
            own.score()?; // fails before the slow part if the network is missing
        }
        let sets = [pair.real.as_path(), &pair.fake];
        let (figures, plot) = blur_curve(protocol, sets, blurs, extraction(&pair.network, &terminal))?;
        atomic::write(out, plot.as_bytes())?;
        print_beside(&outputs, &pair.network, &figures)
    })
}

/// Looks for training pictures among the held-out ones, and writes a sheet of the closest pairs.
pub fn measure_overlap(
    data: &Path,
    flags: &Network,
    threshold: f32,
    fake: Option<&Path>,
    out: &Path,
) -> Result<()> {
    let outputs = Outputs::check(&[(out, Content::Picture)], flags.json)?;
    let dataset = open(data)?;
    let terminal = Terminal::default();
    with_network(flags, |network| {
        let found = overlap_report(network, &dataset, threshold, fake, extraction(flags, &terminal))?;
        write_picture(out, &found.sheet, None)?;
        print_beside(&outputs, flags, &found.figures)
    })
}

/// Computes the CLIP score of the captioned pictures in `dir`.
pub fn measure_clip_score(dir: &Path, flags: &Network) -> Result<()> {
    ensure_contrastive(flags)?;
    let pairs = Pairs::of_folder(&network_of(flags)?, dir, &Terminal::default())?;
    print(flags, &[clip_score(&pairs.images, &pairs.texts)?])
}

/// Measures retrieval among the held-out pictures of a data set.
pub fn measure_retrieval(data: &Path, flags: &Network) -> Result<()> {
    ensure_contrastive(flags)?;
    let pairs = Pairs::held_out(&network_of(flags)?, &held_out_of(data)?)?;
    print(flags, &retrieval(&pairs.images, &pairs.texts, None)?)
}

/// Returns how the flags want features to be extracted.
fn extraction<'a>(flags: &'a Network, reporter: &'a Terminal) -> Extraction<'a> {
    Extraction { work: flags.work.as_deref(), reporter }
}

/// Checks that no Inception is given, since it cannot embed captions.
fn ensure_contrastive(flags: &Network) -> Result<()> {
    ensure!(
        flags.inception.is_empty(),
        "--inception: pictures and captions are compared by a contrastive model; use --rerank"
    );
    Ok(())
}

/// Prints one line per result, or JSON.
fn print(flags: &Network, reports: &[Report]) -> Result<()> {
    match flags.json {
        true => say(serde_json::to_string_pretty(reports)?),
        false => reports.iter().try_for_each(say),
    }
}

/// Does the same for a command that also writes files, one of which may be standard output.
fn print_beside(outputs: &Outputs, flags: &Network, reports: &[Report]) -> Result<()> {
    match flags.json {
        true => print(flags, reports),
        false => reports.iter().try_for_each(|report| outputs.say(report)),
    }
}
