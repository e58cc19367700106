//! Tests of `tessera bench`: the JSON fields that `benches/peers` reads, and benchmark names.

use serde_json::Value;

use super::program::{folder, mistake, succeed};

const FIELDS: [&str; 10] =
    ["benchmark", "seconds", "min", "max", "rate", "unit", "gflops", "precision", "threads", "peak_rss_mib"];

#[test]
fn bench_prints_one_json_object_with_all_fields() {
    let output = succeed(folder().path(), &["bench", "gemm", "--rounds", "1", "--json"]);
    assert_eq!(output.stdout.lines().count(), 1, "{}", output.stdout);
    let figures: Value = serde_json::from_str(&output.stdout).unwrap();
    for field in FIELDS {
        assert!(figures.get(field).is_some(), "no {field} in {figures}");
    }
    assert_eq!((&figures["benchmark"], &figures["unit"]), (&"gemm".into(), &"GFLOP/s".into()));
    // The unit is GFLOP/s, so both fields have the same value.
    assert_eq!(figures["rate"], figures["gflops"]);
    let [seconds, min, max] = ["seconds", "min", "max"].map(|field| figures[field].as_f64().unwrap());
    assert!(0.0 < seconds && min == seconds && max == seconds, "one round: {figures}");
}

/// Each benchmark runs in a separate process, which must get the flag.
#[test]
fn all_benchmarks_use_the_requested_threads() {
    let args = ["bench", "gemm", "conv", "--rounds", "1", "--json", "--threads", "1"];
    let output = succeed(folder().path(), &args).stdout;
    let threads = |line: &str| serde_json::from_str::<Value>(line).unwrap()["threads"].clone();
    assert_eq!(output.lines().map(threads).collect::<Vec<_>>(), [1, 1], "{output}");
}

#[test]
fn unknown_benchmark_is_an_error_with_a_suggestion() {
    let error = mistake(folder().path(), &["bench", "gem"]);
    let start = "unknown benchmark \"gem\"; did you mean \"gemm\"? The benchmarks are gemm, conv, ";
    assert!(error.contains(start), "{error}");
    for name in
        ["gpt-step", "paper-step", "dvae-step", "decode-16", "grow-2560", "released-decoder", "draw-9"]
    {
        assert!(error.contains(name), "no {name} in {error}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn recomputing_activations_saves_more_memory_in_deep_priors() {
    // The allocator keeps a varying amount of extra memory, so the minimum of several runs is used.
    let peak = |benchmark: &str| {
        let once = |_| {
            let output = succeed(folder().path(), &["bench", benchmark, "--rounds", "1", "--json"]);
            serde_json::from_str::<Value>(&output.stdout).unwrap()["peak_rss_mib"].as_f64().unwrap()
        };
        (0..3).map(once).fold(f64::INFINITY, f64::min)
    };
    let saved = |depth| peak(&format!("depth-{depth}-keep")) - peak(&format!("depth-{depth}-recompute"));
    // With few layers, the peak is in the output heads.
    let [shallow, deep] = [8, 32].map(saved);
    assert!(deep > 60.0 && deep > shallow + 40.0, "{shallow} MiB saved at 8 layers, {deep} at 32");
}
