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
