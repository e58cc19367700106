//! The evaluations that compute a metric from the features of two sets of pictures: one line of
//! [`PAIR_METRICS`] each.

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, Error, FromArgMatches, Subcommand};
use tessera_base::{random::Purpose, random::item_rng};
use tessera_eval::{Report, Vectors, cmmd, kid, precision_recall};

use super::Pair;
use super::eval::hide_if_only_for_fid_and_is;

/// A metric of two sets of pictures.
pub struct PairMetric {
    /// The name of the subcommand.
    name: &'static str,
    /// What it computes.
    about: &'static str,
    /// Computes the metric from the features of real pictures and of generated pictures.
    pub measure: fn(&Vectors, &Vectors) -> Result<Vec<Report>>,
}

/// All such metrics. FID is not among them, because it can also be computed from statistics.
const PAIR_METRICS: &[PairMetric] = &[
    PairMetric {
        name: "kid",
        about: "Compute KID, a distance between two sets of pictures that is unbiased for small sets",
        measure: |real, fake| Ok(vec![kid(real, fake, &mut item_rng(0, Purpose::Subset, 0, 0))?]),
    },
    PairMetric {
        name: "cmmd",
        about: "Compute CMMD, a distance between the embeddings of two sets, scaled to unit length",
        measure: |real, fake| Ok(vec![cmmd(real, fake)?]),
    },
    PairMetric {
        name: "precision-recall",
        about: "Compute precision and recall: the fraction of each set that lies among the pictures of the other set",
        measure: |real, fake| Ok(precision_recall(real, fake)?.into()),
    },
];

/// A metric and the sets to measure.
pub struct MeasurePair {
    /// The metric.
    pub metric: &'static PairMetric,
    /// The sets of pictures.
    pub pair: Pair,
}

impl FromArgMatches for MeasurePair {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let (name, matches) = matches.subcommand().ok_or_else(|| Error::new(ErrorKind::MissingSubcommand))?;
        let metric = PAIR_METRICS.iter().find(|metric| metric.name == name);
        let metric = metric.ok_or_else(|| Error::new(ErrorKind::InvalidSubcommand))?;
        Ok(MeasurePair { metric, pair: Pair::from_arg_matches(matches)? })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = MeasurePair::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Subcommand for MeasurePair {
    fn augment_subcommands(command: Command) -> Command {
        PAIR_METRICS.iter().fold(command, |command, metric| {
            // `augment_args` also sets the texts of `Pair`, so those of the metric come after it.
            let subcommand = Pair::augment_args(Command::new(metric.name)).about(metric.about);
            command.subcommand(subcommand.mut_args(hide_if_only_for_fid_and_is))
        })
    }

    fn augment_subcommands_for_update(command: Command) -> Command {
        MeasurePair::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        PAIR_METRICS.iter().any(|metric| metric.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args;

    /// Returns the texts at the top of the help of a command and its subcommands.
    fn headings(command: &Command) -> Vec<String> {
        let own = command.get_about().map(ToString::to_string);
        own.into_iter().chain(command.get_subcommands().flat_map(headings)).collect()
    }

    #[test]
    fn no_command_has_the_heading_of_its_flags() {
        let wrong = ["The flags of", "The commands of", "How "];
        let headings = headings(&args::command());
        assert!(headings.iter().any(|heading| heading.starts_with("Compute KID")), "{headings:?}");
        for heading in headings {
            assert!(!wrong.iter().any(|start| heading.starts_with(start)), "{heading}");
        }
    }
}
