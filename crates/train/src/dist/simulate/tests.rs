//! Tests of simulated updates against durations computed by hand.

use super::*;
use crate::config::Config;
use crate::dist::plan::usual_rank;

/// An infinitely fast link.
const FAST: Link = Link { latency_s: 0.0, bytes_per_s: f64::INFINITY };
/// A cluster whose devices do one operation per second.
const CLUSTER: Cluster = Cluster { gpus: 1, per_machine: 1, memory_bytes: 0.0, peak_flops: 1.0, mfu: 1.0 };

/// Two layers of width 8.
fn config() -> PriorConfig {
    let sets = ["prior.d_model=8", "prior.n_layers=2", "prior.n_heads=2"];
    let sets = sets.map(str::to_string);
    Config::resolve("tiny", &sets).unwrap().prior
}

fn simulation(config: &PriorConfig, gpus: usize, per_machine: usize) -> Simulation<'_> {
    Simulation {
        config,
        training: Training { batch: 4 * gpus, steps: 1, rank: per_machine },
        cluster: Cluster { gpus, per_machine, ..CLUSTER },
        links: Links { inside: FAST, between: FAST },
        formats: MessageFormats { matrices: 2.0, factors: 2.0 },
        micro_batches: 1,
        recompute: true,
        sum: ReplicaSum::Exact,
    }
}

/// The paper's prior on V100s, with one sequence for each of them.
fn paper(config: &PriorConfig, gpus: usize, sum: ReplicaSum) -> Simulation<'_> {
    let link = |latency_us: f64, gbit: f64| Link { latency_s: latency_us * 1e-6, bytes_per_s: gbit * 1.25e8 };
    Simulation {
        training: Training { batch: gpus, steps: 1, rank: usual_rank(config.d_model, 8) },
        cluster: Cluster { peak_flops: 125e12, mfu: 0.3, gpus, per_machine: 8, ..CLUSTER },
        links: Links { inside: link(10.0, 1200.0), between: link(50.0, 12.5) },
        sum,
        ..simulation(config, gpus, 8)
    }
}

fn assert_near(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1e-9), "{found}, not {expected}");
}

/// The seconds of a link in which its device sends `bytes`.
fn sent(seconds: f64, link: Link) -> f64 {
    seconds * link.bytes_per_s
}

#[test]
fn update_without_communication_takes_the_time_of_its_operations() {
    let config = config();
    for (gpus, per_machine, recompute) in [(1, 1, true), (4, 2, true), (4, 4, false), (4, 1, false)] {
        let simulation = Simulation { recompute, ..simulation(&config, gpus, per_machine) };
        let plan = plan(&config, &simulation.training, &simulation.cluster).unwrap();
        let found = simulation.run().unwrap();
        // Recomputation makes the device slower than `mfu` says, and AdamW faster.
        let recomputed = if recompute { plan.recomputed_flops_per_step } else { 0.0 };
        let rate = 1.0 + recomputed / plan.flops_per_step;
        let adamw = ADAMW * config.n_parameters() as f64 / per_machine as f64 / rate;
        assert_near(found.seconds, plan.flops_per_step / gpus as f64 + adamw);
        assert_near(found.efficiency, 1.0);
        assert_eq!(found.waited, Waits::default());
    }
}

#[test]
fn micro_batches_do_not_change_the_time_of_computation() {
    let config = config();
    let one = simulation(&config, 2, 2);
    let four = Simulation { micro_batches: 4, ..one };
    assert_near(four.run().unwrap().seconds, one.run().unwrap().seconds);
    // But they gather the layers and sum the gradients four times as often. The other parameters
    // are gathered once.
    let slow = Links { inside: Link { latency_s: 0.0, bytes_per_s: 1.0 }, between: FAST };
    let [once, often] = [one, four].map(|simulation| Simulation { links: slow, ..simulation }.run().unwrap());
    let others = one.inside(0.0) + 0.5 * (one.bytes(Part::Heads) + one.bytes(Part::Embed));
    assert_near(often.busy.inside - others, 4.0 * (once.busy.inside - others));
}

#[test]
fn volumes_are_those_of_the_plan() {
    let config = Config::resolve("paper", &[]).unwrap().prior;
    for sum in [ReplicaSum::Exact, ReplicaSum::Compressed] {
        let mut simulation = paper(&config, 64, sum);
        let traffic = plan(&config, &simulation.training, &simulation.cluster).unwrap().traffic;
        simulation.links.inside.latency_s = 0.0;
        simulation.links.between.latency_s = 0.0;
        let busy = simulation.run().unwrap().busy;
        let expected = match sum {
            ReplicaSum::Exact => traffic.all_reduce,
            ReplicaSum::Compressed => traffic.all_reduce_compressed,
        };
        assert_near(sent(busy.between, simulation.links.between), expected);
        // The plan gathers embeddings and heads in both passes, the training once.
        let others = 7.0 / 8.0 * (simulation.bytes(Part::Heads) + simulation.bytes(Part::Embed));
        let inside = traffic.all_gather + traffic.reduce_scatter - others;
        let small = 13.0 * 64.0 * config.d_model as f64; // gains and biases of layers
        assert!((sent(busy.inside, simulation.links.inside) / inside - 1.0).abs() < small / inside);
    }
}

/// Two replicas of one device each. A sum of gradients hides behind the parts of the backward pass
/// that follow, unless the link is slow.
#[test]
fn slow_link_is_waited_for_if_its_sums_outlast_the_backward_pass() {
    let config = config();
    let fast = simulation(&config, 2, 1);
    let at = |bytes_per_s: f64| {
        let links = Links { between: Link { latency_s: 0.0, bytes_per_s }, inside: FAST };
        Simulation { links, ..fast }
    };
    let compute = fast.run().unwrap();
    // Two ranks send each value once: half of it to be summed, half of the sum.
    let bytes = |part| 2.0 * fast.matrices(part) + FULL * fast.others(part);
    let all = bytes(Part::Heads) + 2.0 * (bytes(Part::Mlp) + bytes(Part::Attention)) + bytes(Part::Embed);

    // Very slow: the link is busy from the end of the heads to AdamW.
    let slow = at(1e-9 * all).run().unwrap();
    let plan = plan(&config, &fast.training, &fast.cluster).unwrap();
    let (flops, layers) = (plan.flops_per_step, plan.recomputed_flops_per_step);
    let rate = (flops + layers) / flops;
    let before = (layers + 3.0 * (flops / 3.0 - layers)) / 2.0 / rate;
    let adamw = ADAMW * config.n_parameters() as f64 / rate;
    assert_near(slow.seconds, before + 1e9 + adamw);
    assert_near(slow.waited.all_reduce, slow.seconds - compute.seconds);

    // Fast enough that each sum ends before the next part's: only that of the embeddings is waited
    // for, because nothing is left to compute.
    let speed = 1e6 * all / compute.seconds;
    let quick = at(speed).run().unwrap();
    assert_near(quick.waited.all_reduce, (bytes(Part::Embed) + bytes(Part::Attention)) / speed);
}

#[test]
fn gathers_hide_behind_layers_that_take_longer() {
    let config = config();
    let base = simulation(&config, 2, 2);
    let waited = |bytes_per_s: f64| {
        let inside = Link { latency_s: 0.0, bytes_per_s };
        let links = Links { inside, between: FAST };
        let found = Simulation { links, ..base }.run().unwrap();
        (found, base.bytes(Part::Mlp) + base.bytes(Part::Attention), inside)
    };
    // Fast: the training waits for embeddings and heads, and for the first layer of each pass. That
    // of the backward pass comes after the sum of the heads. The last two sums are waited for, too.
    let (found, layer, link) = waited(1e4);
    let [heads, embed] = [Part::Heads, Part::Embed].map(|part| base.bytes(part));
    assert_near(sent(found.waited.gather, link), 0.5 * (heads + embed + 2.0 * layer));
    assert_near(sent(found.waited.reduce_scatter, link), 0.5 * (heads + base.bytes(Part::Attention) + embed));

    // Slow: the link is the bottleneck, and the update takes about as long as all its messages.
    let (found, ..) = waited(1e-6);
    assert!(found.waited.gather > 0.0 && found.waited.reduce_scatter > 0.0);
    assert!(found.busy.inside / found.seconds > 0.99, "{found:?}");
}

#[test]
fn latency_counts_once_per_exchange() {
    let config = config();
    let base = simulation(&config, 2, 1);
    let between = Link { latency_s: 1.0, bytes_per_s: f64::INFINITY };
    let links = Links { between, ..base.links };
    let busy = |sum| Simulation { links, sum, ..base }.run().unwrap().busy.between;
    // Two exchanges for each of six parts, and one for the losses.
    assert_near(busy(ReplicaSum::Exact), 13.0);
    // In addition, two for each factor of four resblocks, and one for their flags.
    assert_near(busy(ReplicaSum::Compressed), 13.0 + 4.0 * 5.0);
}

#[test]
fn compression_helps_when_the_link_between_machines_is_the_bottleneck() {
    let config = Config::resolve("paper", &[]).unwrap().prior;
    let seconds = |sum, speed: f64| {
        let mut simulation = paper(&config, 1024, sum);
        simulation.links.between.bytes_per_s *= speed;
        simulation.run().unwrap().seconds
    };
    let [exact, compressed] = [ReplicaSum::Exact, ReplicaSum::Compressed].map(|sum| seconds(sum, 1.0));
    assert!(compressed < 0.75 * exact, "{compressed} {exact}");
    // If the link is not the bottleneck, compression only costs.
    let [exact, compressed] = [ReplicaSum::Exact, ReplicaSum::Compressed].map(|sum| seconds(sum, 1e3));
    assert!(compressed > exact, "{compressed} {exact}");
}

#[test]
fn more_devices_never_make_an_update_of_constant_work_faster() {
    let config = Config::resolve("paper", &[]).unwrap().prior;
    for sum in [ReplicaSum::Exact, ReplicaSum::Compressed] {
        let seconds: Vec<f64> =
            (3..=12).map(|log2| paper(&config, 1 << log2, sum).run().unwrap().seconds).collect();
        assert!(seconds.is_sorted(), "{sum:?}: {seconds:?}");
    }
}

#[test]
fn batch_that_cannot_be_divided_is_refused() {
    let config = config();
    let simulation = Simulation { micro_batches: 3, ..simulation(&config, 2, 1) };
    let error = simulation.run().unwrap_err().to_string();
    assert!(error.contains("a batch of 8: wanted a multiple of 2 GPUs times 3 micro-batches"), "{error}");
}
