//! `tessera plan --simulate`: simulates one update of a prior on more and more GPUs.

use anyhow::{Result, ensure};
use serde::Serialize;
use serde_json::json;
use tessera_base::atomic;
use tessera_eval::{Frame, Panel, Series, XAxis, line_plots};
use tessera_model::prior::Activations;
use tessera_train::dist::plan::{Cluster, Training, plan, usual_rank};
use tessera_train::dist::simulate::{Link, Links, MessageFormats, ReplicaSum, Simulated, Simulation};
use tessera_train::{Config, Moments};

use crate::args::PlanArgs;
use crate::commands::output::{Content, Outputs};

/// The paper's number of GPUs.
const PAPER_GPUS: usize = 1024;
/// The largest number of GPUs, in multiples of `--gpus`.
const BEYOND: usize = 4;

/// An update with a number of GPUs, without compression and with PowerSGD.
#[derive(Serialize)]
struct Row {
    gpus: usize,
    batch: usize,
    exact: Simulated,
    powersgd: Simulated,
}

/// The simulated updates.
#[derive(Serialize)]
struct Table {
    /// The number of GPUs for which the config's batch is meant.
    gpus: usize,
    /// PowerSGD's rank.
    rank: usize,
    /// Each GPU has as many sequences as with `gpus` GPUs.
    weak: Vec<Row>,
    /// The batch is that of the config.
    strong: Vec<Row>,
}

/// Runs `tessera plan --simulate`.
pub fn run(args: &PlanArgs, config: &Config) -> Result<()> {
    let plot = args.simulation.plot.as_deref();
    let files: Vec<_> = plot.map(|path| (path, Content::Plot)).into_iter().collect();
    let outputs = Outputs::check(&files, args.json)?;
    let gpus = args.gpus.unwrap_or(PAPER_GPUS);
    let cluster = super::cluster(args, gpus)?;
    let links = links(args)?;
    let rank = args.rank.unwrap_or_else(|| usual_rank(config.prior.d_model, cluster.per_machine));
    let table = table(config, cluster, links, formats(args, config), rank)?;
    if let Some(path) = plot {
        atomic::write(path, table.plot()?.as_bytes())?;
    }
    if args.json {
        let mut value = json!(table);
        value["cluster"] =
            json!({"per_machine": cluster.per_machine, "peak_flops": cluster.peak_flops, "mfu": cluster.mfu});
        value["links"] = json!(links);
        value["formats"] = json!(formats(args, config));
        return outputs.say(value);
    }
    outputs.say([heading(&cluster, args), table.text()].join("\n\n"))
}

/// Returns the links of one GPU. Those of a machine share its link to other machines.
fn links(args: &PlanArgs) -> Result<Links> {
    let (args, per_machine) = (&args.simulation, args.gpus_per_machine);
    for (flag, value) in [("inside-gbps", args.inside_gbps), ("between-gbps", args.between_gbps)] {
        ensure!(value > 0.0 && value.is_finite(), "--{flag} {value}: wanted a number of Gbit/s above 0");
    }
    for (flag, value) in [("inside-us", args.inside_us), ("between-us", args.between_us)] {
        ensure!(value >= 0.0 && value.is_finite(), "--{flag} {value}: wanted 0 or more microseconds");
    }
    let link = |gbps: f64, us: f64| Link { latency_s: us * 1e-6, bytes_per_s: gbps * 1e9 / 8.0 };
    Ok(Links {
        inside: link(args.inside_gbps, args.inside_us),
        between: link(args.between_gbps / per_machine as f64, args.between_us),
    })
}

/// Returns the bytes per value in messages.
fn formats(args: &PlanArgs, config: &Config) -> MessageFormats {
    let factors = match config.powersgd.storage {
        Moments::Small => 2.0,
        Moments::Full => 4.0,
    };
    MessageFormats { matrices: args.simulation.wire.bytes(), factors }
}

/// Simulates updates with one machine, two, four and so on, and with the number of GPUs of
/// `cluster`.
fn table(
    config: &Config,
    cluster: Cluster,
    links: Links,
    formats: MessageFormats,
    rank: usize,
) -> Result<Table> {
    let fit = &config.train_prior;
    let (batch, micro_batches, gpus) = (fit.batch, fit.micro_batches, cluster.gpus);
    plan(&config.prior, &Training { batch, steps: fit.steps, rank }, &cluster)?;
    ensure!(
        batch.is_multiple_of(gpus * micro_batches),
        "--gpus {gpus}: times {micro_batches} micro-batches, it must divide the batch, {batch} (train_prior.batch)"
    );
    let row = |gpus: usize, batch: usize| -> Result<Row> {
        let simulate = |sum: ReplicaSum| {
            let simulation = Simulation {
                config: &config.prior,
                training: Training { batch, steps: fit.steps, rank },
                cluster: Cluster { gpus, ..cluster },
                links,
                formats,
                micro_batches,
                recompute: config.chain.activations == Activations::Recompute,
                sum,
            };
            simulation.run()
        };
        let (exact, powersgd) = (simulate(ReplicaSum::Exact)?, simulate(ReplicaSum::Compressed)?);
        Ok(Row { gpus, batch, exact, powersgd })
    };
    let largest = gpus.saturating_mul(BEYOND);
    let doublings = std::iter::successors(Some(cluster.per_machine), |gpus| gpus.checked_mul(2));
    let mut sizes: Vec<usize> = doublings.take_while(|&gpus| gpus <= largest).chain([gpus]).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let weak = sizes.iter().map(|&size| row(size, batch / gpus * size));
    let divides = |size: &&usize| batch.is_multiple_of(*size * micro_batches);
    let strong = sizes.iter().filter(divides).map(|&size| row(size, batch));
    Ok(Table { gpus, rank, weak: weak.collect::<Result<_>>()?, strong: strong.collect::<Result<_>>()? })
}

fn heading(cluster: &Cluster, args: &PlanArgs) -> String {
    let args = &args.simulation;
    let reached = cluster.mfu * cluster.peak_flops / 1e12;
    [
        format!(
            "one update, simulated: GPUs with {reached:.3} TFLOP/s, {} per machine,",
            cluster.per_machine
        ),
        format!("{} Gbit/s per GPU and {} us within a machine,", args.inside_gbps, args.inside_us),
        format!("{} Gbit/s per machine and {} us between machines", args.between_gbps, args.between_us),
    ]
    .join("\n")
}

impl Table {
    fn text(&self) -> String {
        let is_paper = self.gpus == PAPER_GPUS;
        let mark = if is_paper { "* the paper's number of GPUs" } else { "* --gpus" };
        let mut lines = vec![format!("weak scaling: {}", self.sequences())];
        lines.extend(self.rows(&self.weak));
        lines.extend([
            String::new(),
            "strong scaling: the batch of the config, if it can be divided".to_string(),
        ]);
        lines.extend(self.rows(&self.strong));
        lines.extend([mark.to_string(), String::new()]);
        lines.extend(self.details());
        lines.join("\n")
    }

    /// Says how many sequences a GPU has in weak scaling.
    fn sequences(&self) -> String {
        let per_gpu = self.weak.first().map_or(0, |row| row.batch / row.gpus);
        format!("{per_gpu} sequence{} per GPU", if per_gpu == 1 { "" } else { "s" })
    }

    fn rows(&self, rows: &[Row]) -> Vec<String> {
        let powersgd = format!("PowerSGD, rank {}", self.rank);
        let column = format!("  {:>10}{:>12}", "s/update", "efficiency");
        let mut lines = vec![
            format!("  {:>6}{:>8}  {:>22}  {:>22}", "", "", "without compression", powersgd),
            format!("  {:>6}{:>8}{column}{column}", "GPUs", "batch"),
        ];
        lines.extend(rows.iter().map(|Row { gpus, batch, exact, powersgd }| {
            let mark = if *gpus == self.gpus { "*" } else { " " };
            let [exact, powersgd] = [exact, powersgd]
                .map(|found| format!("{:>10.4}{:>10.1} %", found.seconds, 100.0 * found.efficiency));
            format!("{mark} {gpus:>6}{batch:>8}  {exact}  {powersgd}")
        }));
        lines
    }

    /// Says what the time of the marked row is spent on.
    fn details(&self) -> Vec<String> {
        let Some(row) = self.strong.iter().find(|row| row.gpus == self.gpus) else { return Vec::new() };
        let line = |name: &str, pick: fn(&Simulated) -> f64| {
            let [exact, powersgd] = [&row.exact, &row.powersgd].map(|found| {
                format!("{:>9.4} s {:>8.1} %", pick(found), 100.0 * pick(found) / found.seconds)
            });
            format!("  {name:32}{exact}{powersgd}")
        };
        vec![
            format!("{} GPUs: time per update and share of it", row.gpus),
            format!(
                "  {:32}{:>22}{:>21}",
                "",
                "without compression",
                format!("PowerSGD, rank {}", self.rank)
            ),
            line("forward, backward and AdamW", |found| found.efficiency * found.seconds),
            line("PowerSGD's computation", |found| found.busy.compute - found.efficiency * found.seconds),
            line("waits for all-gathers", |found| found.waited.gather),
            line("waits for reduce-scatters", |found| found.waited.reduce_scatter),
            line("waits for all-reduces", |found| found.waited.all_reduce),
            line("links within the machine busy", |found| found.busy.inside),
            line("link between machines busy", |found| found.busy.between),
            format!(
                "PowerSGD makes this update {:.2} times as fast",
                row.exact.seconds / row.powersgd.seconds
            ),
        ]
    }

    /// Plots the efficiency over the number of GPUs.
    fn plot(&self) -> Result<String> {
        let titles = [
            format!("Weak scaling, {}", self.sequences()),
            format!("Strong scaling, batch {}", self.batch()),
        ];
        let series = |rows: &[Row]| -> Vec<Series> {
            let line = |pick: fn(&Row) -> &Simulated| {
                rows.iter().map(|row| (row.gpus as f64, 100.0 * pick(row).efficiency, None)).collect()
            };
            vec![
                ("exact".to_string(), line(|row| &row.exact)),
                ("PowerSGD".to_string(), line(|row| &row.powersgd)),
            ]
        };
        let x_label = &format!("GPUs (PowerSGD with rank {})", self.rank);
        let frame = |title| Frame { title, x_label, y_label: "efficiency in %", x_axis: XAxis::Log2 };
        let panels: Vec<Panel<'_>> = titles
            .iter()
            .zip([&self.weak, &self.strong])
            .map(|(title, rows)| (frame(title.as_str()), series(rows)))
            .collect();
        line_plots(&panels)
    }

    /// Returns the batch of the config.
    fn batch(&self) -> usize {
        self.strong.first().map_or(0, |row| row.batch)
    }
}
