//! Tests of `tessera plan` against the paper's numbers (§2.4, §2.5, §E).

use serde_json::Value;

use super::program::{folder, mistake, succeed};

const PAPER: [&str; 7] = ["plan", "--config", "paper", "--gpus", "1024", "--gpu-mem", "16GiB"];

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&succeed(folder().path(), &[args, &["--json"]].concat()).stdout).unwrap()
}

#[test]
fn plan_of_the_paper_has_the_papers_numbers() {
    let plan = json(&PAPER);
    let parameters = plan["parameters"].as_f64().unwrap();
    assert!((12.0e9..12.4e9).contains(&parameters), "{parameters}");
    assert!((24e9..25e9).contains(&plan["weight_bytes"].as_f64().unwrap()));
    assert!((plan["compression"].as_f64().unwrap() - 0.86).abs() < 0.005);
    assert_eq!(plan["fits"], true);
    let table = succeed(folder().path(), &PAPER).stdout;
    for part in [
        "12.29e9",
        "12.09e9 of them",
        "24.59 GB",
        "activations",
        "all-gather",
        "reduce-scatter",
        "PowerSGD, rank 896",
        "days",
    ] {
        assert!(table.contains(part), "no {part:?} in\n{table}");
    }
}

#[test]
fn plans_of_smaller_presets_have_the_papers_sizes() {
    for (preset, billions, rank) in [("2.8b", 2.8, 512), ("5.6b", 5.6, 640)] {
        let plan = json(&[&["plan", "--config", preset], &PAPER[3..]].concat());
        let layers = plan["matrix_parameters"].as_f64().unwrap() / 1e9;
        assert!((layers - billions).abs() < 0.1, "{preset}: {layers}");
        assert_eq!(plan["training"]["rank"], rank);
    }
}

#[test]
fn plan_reads_what_bench_measured() {
    let dir = folder();
    let plan = |line: &str| {
        std::fs::write(dir.path().join("gpu.json"), line).unwrap();
        ["plan", "--config", "paper", "--gpus", "1024", "--measured", "gpu.json", "--json"]
    };
    let line = |benchmark: &str, gflops: u64, bytes: &str| {
        format!(
            r#"{{"benchmark":"{benchmark}","gflops":{gflops},"peak_gflops":600000,"device_bytes":{bytes}}}"#
        )
    };
    let measured = plan(&line("paper-layers", 300_000, "80000000000"));
    let found: Value = serde_json::from_str(&succeed(dir.path(), &measured).stdout).unwrap();
    let cluster = &found["cluster"];
    assert_eq!(cluster["memory_bytes"], 8e10);
    assert_eq!((cluster["peak_flops"].as_f64(), cluster["mfu"].as_f64()), (Some(6e14), Some(0.5)));
    for (line, error) in [
        ("{}".to_string(), "it holds the benchmark null; wanted the output"),
        (line("gemm", 1, "1"), "it holds the benchmark \"gemm\""),
        (line("paper-layers", 900_000, "1"), "more than peak_gflops"),
        (line("paper-layers", 1, "null"), "add --gpu-mem"),
    ] {
        assert!(mistake(dir.path(), &plan(&line)).contains(error), "{line}");
    }
    let args = [&plan(&line("paper-layers", 300_000, "null"))[..], &["--gpu-mem", "16GiB"]].concat();
    succeed(dir.path(), &args);
    assert!(mistake(dir.path(), &plan("x")).contains("wanted one line of JSON"));
}

#[test]
fn plan_with_invalid_flags_is_an_error() {
    let error = |more: &[&str]| mistake(folder().path(), &[&["plan", "--config", "paper"], more].concat());
    assert!(
        error(&["--gpus", "1020", "--gpu-mem", "16GiB"])
            .contains("must be a positive multiple of --gpus-per-machine (8)")
    );
    assert!(error(&["--gpus", "1024", "--gpu-mem", "16"]).contains("wanted a size such as 16GiB"));
    assert!(error(&["--gpus", "0", "--gpu-mem", "16GiB"]).contains("--gpus 0"));
    assert!(error(&["--gpus", "1024", "--gpu-mem", "16GiB", "--rank", "5000"]).contains("--rank 5000"));
    assert!(error(&["--gpus", "1024", "--gpu-mem", "16GiB", "--mfu", "0"]).contains("--mfu 0"));
    assert!(
        error(&["--gpus", "1024", "--gpu-mem", "16GiB", "--peak-tflops", "nan"])
            .contains("--peak-tflops NaN")
    );
}

const SIMULATION: [&str; 4] = ["plan", "--simulate", "--config", "paper"];
/// Processors that do 10¹⁰ operations per second, with one rank per machine.
const PROCESSORS: [&str; 13] = [
    "plan",
    "--simulate",
    "--config",
    "embedded",
    "--gpus",
    "4",
    "--gpus-per-machine",
    "1",
    "--peak-tflops",
    "0.01",
    "--mfu",
    "1",
    "--wire=f32",
];

#[test]
fn simulation_of_the_paper_shows_what_compression_buys() {
    let found = json(&SIMULATION);
    let gpus = |rows: &str| -> Vec<u64> {
        found[rows].as_array().unwrap().iter().map(|row| row["gpus"].as_u64().unwrap()).collect()
    };
    let doublings: Vec<u64> = (3..=12).map(|log2| 1 << log2).collect();
    assert_eq!((gpus("weak"), gpus("strong")), (doublings.clone(), doublings[..8].to_vec()));
    let row = &found["weak"][7];
    assert_eq!((&row["gpus"], &row["batch"], &found["rank"]), (&1024.into(), &1024.into(), &896.into()));
    assert_eq!(row, &found["strong"][7]);
    let efficiency = |sum: &str| row[sum]["efficiency"].as_f64().unwrap();
    assert!((0.4..0.7).contains(&efficiency("exact")), "{}", efficiency("exact"));
    assert!((0.9..1.0).contains(&efficiency("powersgd")), "{}", efficiency("powersgd"));
    let table = succeed(folder().path(), &SIMULATION).stdout;
    for part in [
        "weak scaling: 1 sequence per GPU",
        "\n*   1024    1024 ",
        "* the paper's number of GPUs",
        "PowerSGD, rank 896",
        "waits for all-reduces",
        "times as fast",
    ] {
        assert!(table.contains(part), "no {part:?} in\n{table}");
    }
}

/// One rank only computes. Two and four have the slow link of the flags.
#[test]
fn simulation_predicts_a_measured_cluster_of_processors() {
    let plan = json(&[
        "plan",
        "--config",
        "embedded",
        "--gpus",
        "1",
        "--gpus-per-machine",
        "1",
        "--gpu-mem",
        "1GiB",
    ]);
    let seconds = plan["flops_per_step"].as_f64().unwrap() / 1e10;
    let links = ["--between-gbps", "0.1", "--between-us", "0"];
    let found = json(&[&PROCESSORS[..], &links].concat());
    let exact = |row: usize| found["strong"][row]["exact"].clone();
    assert_eq!(
        (exact(0)["efficiency"].as_f64(), exact(0)["busy"]["between"].as_f64()),
        (Some(1.0), Some(0.0))
    );
    let one = exact(0)["seconds"].as_f64().unwrap();
    assert!((1.0..1.01).contains(&(one / seconds)), "{one}, not {seconds}"); // with AdamW
    // Two ranks send all gradients once, at 12.5 MB/s.
    let bytes = 4.0 * plan["parameters"].as_f64().unwrap();
    let busy = exact(1)["busy"]["between"].as_f64().unwrap();
    assert!((busy / (bytes / 12.5e6) - 1.0).abs() < 1e-9, "{busy}");
    assert!(exact(1)["seconds"].as_f64().unwrap() > busy);
}

#[test]
fn simulation_writes_a_plot() {
    let dir = folder();
    succeed(dir.path(), &[&SIMULATION[..], &["--plot", "efficiency.svg"]].concat());
    let svg = std::fs::read_to_string(dir.path().join("efficiency.svg")).unwrap();
    for text in ["Weak scaling", "Strong scaling", "exact", "PowerSGD", "4096", "efficiency in %"] {
        assert!(svg.contains(text), "no {text:?}");
    }
    let error = mistake(dir.path(), &[&SIMULATION[..], &["--plot", "efficiency.png"]].concat());
    assert!(error.contains("unsupported extension .png"), "{error}");
}

#[test]
fn simulation_with_invalid_flags_is_an_error() {
    for (flags, expected) in [
        (&["--inside-gbps", "0"][..], "--inside-gbps 0: wanted a number of Gbit/s above 0"),
        (&["--between-gbps", "nan"], "--between-gbps NaN"),
        (&["--between-us=-1"], "--between-us -1: wanted 0 or more microseconds"),
        (&["--gpus", "1020"], "must be a positive multiple of --gpus-per-machine (8)"),
        (&["--gpus", "1000"], "--gpus 1000: times 1 micro-batches, it must divide the batch, 1024"),
        (&["--gpus-per-machine", "0"], "must be a positive multiple"),
        (&["--mfu", "0"], "--mfu 0"),
    ] {
        let error = mistake(folder().path(), &[&SIMULATION[..], flags].concat());
        assert!(error.contains(expected), "{flags:?}: {error}");
    }
}
