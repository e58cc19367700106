"""Runs one peer on one benchmark, in a separate process.

    echo go | python worker.py torch gpt-step bf16 [cuda]

It warms up once and prints the result of that. Then it does one repetition for every line that it reads, and prints one
JSON object for each, with the fields of `tessera bench BENCHMARK --json`. In between it waits, so that `compare.py` can
run several of these processes in turns.
"""

import contextlib
import importlib
import itertools
import json
import resource
import sys
import time

import torch

from benchmarks import THREADS, BENCHMARKS

PEERS = {
    "torch": "torch_benchmarks",
    "torch.compile": "torch_compile_benchmarks",
    "dalle-pytorch": "dalle_pytorch_benchmarks",
    "min-dalle": "min_dalle_benchmarks",
    "dall-e": "openai_dalle_benchmarks",
}


def main() -> None:
    peer, name, precision, *device = sys.argv[1:]
    torch.set_default_device(device[0] if device else "cpu")
    torch.manual_seed(0)
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # some peers print to standard output
        repetition, times = importlib.import_module(PEERS[peer]).build(name, precision)
        torch.set_num_threads(THREADS)  # after the import, since min-dalle sets another number
        for warm in itertools.chain([False], (True for _ in sys.stdin)):
            start = time.perf_counter()
            repetition()
            if torch.get_default_device().type == "cuda":
                torch.cuda.synchronize()
            seconds = (time.perf_counter() - start) / times
            print(json.dumps(answer(name, precision, seconds, warm)), file=answers, flush=True)


def answer(name: str, precision: str, seconds: float, warm: bool) -> dict[str, object]:
    benchmark = BENCHMARKS[name]
    rate = benchmark.rate(seconds)
    return {
        "benchmark": name,
        "seconds": seconds,
        "min": seconds,
        "max": seconds,
        "rate": rate,
        "unit": benchmark.unit,
        "gflops": rate if benchmark.unit == "GFLOP/s" else None,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "warm": warm,
    }


if __name__ == "__main__":
    main()
