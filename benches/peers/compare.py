"""Times every benchmark with Tessera and with the peers in turns, and writes the results as JSON and as a page.

    python compare.py --only gemm,gpt-step --rounds 5

Each peer at each precision is a separate process (`worker.py`) that is warmed up once. Then, in each round, every
contender does one repetition. Only one runs at a time, so that other load on the machine affects all of them. Tessera
takes part through `tessera bench BENCHMARK --json`. Benchmarks that are not run again keep their results from the last
time, and so do references that are left out.
"""

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import page
from benchmarks import BOTH, THREADS, BENCHMARKS, Benchmark

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGES = ("torch", "dalle-pytorch", "min-dalle", "dall-e", "numpy")
OUR_REPETITIONS = 5  # Tessera's repetitions per round, in one process; their median is the round's result
LONG = 3.0  # seconds; above this, one repetition per round is enough
Answer = dict[str, Any]


class Failed(Exception):
    """A contender cannot run the benchmark; the message says why."""


class Mismatch(Exception):
    """A contender does another amount of work, or reports it in another unit."""


def check(benchmark: Benchmark, who: str, answer: Answer) -> Answer:
    """Returns `answer`; raises `Mismatch` if its amount or unit is not that of `benchmark`."""
    amount = answer["rate"] * answer["seconds"]
    if answer["unit"] != benchmark.unit or not same(amount, benchmark.count):
        raise Mismatch(
            f"{benchmark.name}: {who} did {amount:.7g} in one repetition, in {answer['unit']}; "
            f"wanted {benchmark.count:.7g}, in {benchmark.unit}"
        )
    return answer


def same(amount: float, wanted: float) -> bool:
    return math.isclose(amount, wanted, rel_tol=1e-6)


class Worker:
    """A peer at one precision. Its process waits between repetitions."""

    def __init__(self, benchmark: Benchmark, peer: str, precision: str):
        self.benchmark, self.peer, self.precision = benchmark, peer, precision
        self.errors = tempfile.TemporaryFile("w+")
        command = [sys.executable, HERE / "worker.py", peer, benchmark.name, precision]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True, bufsize=1)
        self.answer()  # the warm-up's result

    def once(self) -> Answer:
        self.process.stdin.write("go\n")
        return self.answer()

    def answer(self) -> Answer:
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise Failed((self.errors.read().strip() or "the process ended without an error message").splitlines()[-1])
        return check(self.benchmark, self.peer, json.loads(line))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


class Ours:
    """Tessera's program. Each round starts a new process."""

    peer, precision = "tessera", ""

    def __init__(self, benchmark: Benchmark, program: Path):
        self.benchmark, self.program = benchmark, program.resolve()
        if not self.program.exists():
            raise Failed(f"there is no program {program}; build it with cargo build --release")
        # This reads the program from disk, and detects a wrong amount before the slow peers run.
        first = self.draw() if benchmark.name == "draw-9" else self.bench(1)
        self.repetitions = 1 if first["seconds"] > LONG else OUR_REPETITIONS

    def once(self) -> Answer:
        return self.draw() if self.benchmark.name == "draw-9" else self.bench(self.repetitions)

    def bench(self, repetitions: int) -> Answer:
        command = [self.program, "bench", self.benchmark.name, "--json", "--rounds", str(repetitions)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise Failed((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0])
        return check(self.benchmark, "ours", json.loads(done.stdout.splitlines()[-1]))

    def draw(self) -> Answer:
        with tempfile.TemporaryDirectory() as folder:
            command = [self.program, "draw", "a red apple", "-n", "9", "--seed", "1", "--out", f"{folder}/apple.png"]
            start = time.perf_counter()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise Failed(f"exit code {process.returncode}")
        return {"seconds": seconds, "precision": "", "peak_rss_mib": usage.ru_maxrss / 1024}

    def close(self) -> None:
        pass


def measure(benchmark: Benchmark, program: Path, rounds: int, precisions: tuple[str, ...], references: bool) -> Answer:
    """Runs `rounds` rounds of `benchmark` with all contenders in turns, and returns the results."""
    runs: dict[Worker | Ours, list[Answer]] = {}
    failed: dict[str, str] = {}
    try:
        warm_up(benchmark, program, precisions, references, runs, failed)
        take_turns(benchmark, rounds, runs, failed)
    finally:
        for contender in runs:
            contender.close()
    for name, reason in failed.items():
        say(f"{benchmark.name}: {name}: {reason}")
    results = [summary(benchmark, contender.peer, answers) for contender, answers in runs.items()]
    return {"results": results, "failed": failed, "rounds": rounds, **stamp()}


def warm_up(
    benchmark: Benchmark,
    program: Path,
    precisions: tuple[str, ...],
    references: bool,
    runs: dict[Worker | Ours, list[Answer]],
    failed: dict[str, str],
) -> None:
    """Adds each contender that can run to `runs`, and each other one, with the reason, to `failed`."""
    entrants = [("tessera", "")]
    for group in (benchmark.contenders, benchmark.references if references else {}):
        entrants += [(peer, each) for peer in group for each in group[peer] if each in precisions]
    for peer, precision in entrants:
        say(f"{benchmark.name}: warming up {peer} {precision}")
        try:
            runs[Ours(benchmark, program) if peer == "tessera" else Worker(benchmark, peer, precision)] = []
        except Failed as reason:
            failed[f"{peer} {precision}".strip()] = str(reason)


def take_turns(benchmark: Benchmark, rounds: int, runs: dict[Worker | Ours, list[Answer]], failed: dict[str, str]) -> None:
    """Adds one result per round to each of `runs`; a contender that fails moves to `failed`."""
    for number in range(rounds):
        for contender in list(runs):
            name = f"{contender.peer} {contender.precision}".strip()
            try:
                answer = contender.once()
            except Failed as reason:
                failed[name] = str(reason)
                del runs[contender]
            else:
                runs[contender].append(answer)
                say(f"{benchmark.name}: round {number + 1}: {name} {answer['seconds']:.4g} s")


def summary(benchmark: Benchmark, peer: str, answers: list[Answer]) -> Answer:
    seconds = [answer["seconds"] for answer in answers]
    return {
        "peer": peer,
        "precision": answers[-1]["precision"],
        "reference": peer in benchmark.references,
        "seconds": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "rate": benchmark.rate(statistics.median(seconds)),
        "unit": benchmark.unit,
        "peak_rss_mib": max(answer["peak_rss_mib"] for answer in answers),
        "runs": seconds,
    }


def stamp() -> Answer:
    """Returns the date, the commit and the machine of this measurement."""
    with open("/proc/cpuinfo") as lines:
        fields = (line.partition(":") for line in lines.read().split("\n\n")[0].splitlines())
    cpu = {name.strip(): value.strip() for name, _, value in fields}
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    features = [flag for flag in wanted if flag in cpu.get("flags", "").split()]
    changed = git("status", "--porcelain", "--untracked-files=no")
    return {
        "date": datetime.date.today().isoformat(),
        "commit": git("rev-parse", "--short", "HEAD") + (" with changes" if changed else ""),
        "cpu": f"{cpu.get('model name')} (family {cpu.get('cpu family')}, model {cpu.get('model')})",
        "cores": os.cpu_count(),
        "features": " ".join(features),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def earlier_figures(path: Path) -> dict[str, Answer]:
    """Reads earlier results, without those of benchmarks whose amount of work has changed."""
    results: dict[str, Answer] = json.loads(path.read_text()) if path.exists() else {}
    for name, each in list(results.items()):
        amounts = [result["rate"] * result["seconds"] for result in each["results"]]
        if name not in BENCHMARKS or not all(same(amount, BENCHMARKS[name].count) for amount in amounts):
            say(f"{name}: the earlier results are for another amount of work, and are dropped")
            del results[name]
    return results


def with_references(record: Answer, earlier: Answer) -> Answer:
    """Returns `record`, measured without references, plus the references of `earlier`, each with its own `run`."""
    run = {field: value for field, value in earlier.items() if field not in ("results", "failed", "rounds")}
    kept = [{"run": run, **result} for result in earlier["results"] if result["reference"]]
    return {**record, "results": record["results"] + kept}


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tessera", type=Path, default=ROOT / "target/release/tessera", help="Tessera's program")
    parser.add_argument("--only", help="benchmarks to run, separated by commas; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--no-references",
        action="store_true",
        help="do not run the references, which count for no ratio and take longest; their earlier results are kept",
    )
    parser.add_argument(
        "--precision", choices=BOTH, help="precision of the peers; both by default (bf16 takes hours without AVX-512)"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results.json", help="the results as JSON")
    parser.add_argument("--json", type=Path, help="earlier results to keep; those in --out by default")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/performance.md", help="the results as a page")
    options = parser.parse_args()

    names = options.only.split(",") if options.only else list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    precisions = (options.precision,) if options.precision else BOTH
    results = earlier_figures(options.json or options.out)

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])  # all child processes inherit this
    os.environ["OMP_NUM_THREADS"] = str(THREADS)
    for name in names:
        references = not options.no_references
        try:
            record = measure(BENCHMARKS[name], options.tessera, options.rounds, precisions, references)
        except Mismatch as reason:
            sys.exit(str(reason))
        results[name] = record if references or name not in results else with_references(record, results[name])
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        options.page.write_text(page.page(results) + page.written_by_hand(options.page))


if __name__ == "__main__":
    main()
