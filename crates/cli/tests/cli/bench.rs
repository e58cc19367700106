//! `tessera bench`: the fields that `benches/peers` reads, and the names that it knows.

use serde_json::Value;

use super::program::{folder, mistake, succeed};

const FIELDS: [&str; 10] =
    ["benchmark", "seconds", "min", "max", "rate", "unit", "gflops", "precision", "threads", "peak_rss_mib"];

#[test]
fn a_benchmark_is_one_json_object_with_all_fields() {
    let said = succeed(folder().path(), &["bench", "gemm", "--rounds", "1", "--json"]);
    assert_eq!(said.stdout.lines().count(), 1, "{}", said.stdout);
    let figures: Value = serde_json::from_str(&said.stdout).unwrap();
    for field in FIELDS {
        assert!(figures.get(field).is_some(), "no {field} in {figures}");
    }
    assert_eq!((&figures["benchmark"], &figures["unit"]), (&"gemm".into(), &"GFLOP/s".into()));
    // What is counted is arithmetic, so the rate is that of the arithmetic.
    assert_eq!(figures["rate"], figures["gflops"]);
    let [seconds, min, max] = ["seconds", "min", "max"].map(|field| figures[field].as_f64().unwrap());
    assert!(0.0 < seconds && min == seconds && max == seconds, "one round: {figures}");
}

/// Each benchmark runs in a process of its own, which has to be told.
#[test]
fn all_benchmarks_use_the_threads_that_were_asked_for() {
    let args = ["bench", "gemm", "conv", "--rounds", "1", "--json", "--threads", "1"];
    let said = succeed(folder().path(), &args).stdout;
    let threads = |line: &str| serde_json::from_str::<Value>(line).unwrap()["threads"].clone();
    assert_eq!(said.lines().map(threads).collect::<Vec<_>>(), [1, 1], "{said}");
}

#[test]
fn an_unknown_benchmark_is_refused_with_the_names_of_all() {
    let error = mistake(folder().path(), &["bench", "gem"]);
    assert!(error.contains("unknown benchmark \"gem\"; the benchmarks are gemm, conv, "), "{error}");
    for name in
        ["gpt-step", "paper-step", "dvae-step", "decode-16", "grow-2560", "released-decoder", "draw-9"]
    {
        assert!(error.contains(name), "no {name} in {error}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn recomputing_activations_takes_less_memory_the_deeper_the_prior() {
    // What the allocator happens to keep comes on top of what is needed: the least of a few runs is nearest to that.
    let peak = |benchmark: &str| {
        let once = |_| {
            let said = succeed(folder().path(), &["bench", benchmark, "--rounds", "1", "--json"]);
            serde_json::from_str::<Value>(&said.stdout).unwrap()["peak_rss_mib"].as_f64().unwrap()
        };
        (0..3).map(once).fold(f64::INFINITY, f64::min)
    };
    let saved = |depth| peak(&format!("depth-{depth}-keep")) - peak(&format!("depth-{depth}-recompute"));
    // With few layers the peak is that of the heads.
    let [shallow, deep] = [8, 32].map(saved);
    assert!(deep > 60.0 && deep > shallow + 40.0, "{shallow} MiB saved at 8 layers, {deep} at 32");
}
