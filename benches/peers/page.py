"""Writes the results of `compare.py` as a page of tables, `docs/performance.md`."""

from pathlib import Path
from typing import Any

from benchmarks import GROWTH, GROWTH_LANES, THREADS, BENCHMARKS, Benchmark, decode_shape

Result = dict[str, Any]

HEAD = """\
# Performance

`make peers` measured the figures up to *The benchmarks* ([how](../benches/peers/README.md)). Each is the median of at
least {rounds} rounds, in which all contenders take turns on {threads} threads. The ratio is Tessera's speed divided by
that of the fastest peer at any precision: above 1, Tessera is faster.
"""

GROWTH_HEAD = f"Tokens per second for a batch of {GROWTH_LANES}, by sequence length.\n"
DECODE = decode_shape("decode-64")


def growth_shapes() -> str:
    """Returns, for each `grow-*` benchmark, text tokens plus image tokens as a sum."""
    return ", ".join(f"{text} + {side}² = {length:,}" for length, (text, side) in GROWTH.items())


NOTES = f"""\
## What is compared

- Of each peer, the fastest precision counts, even if Tessera computes more exactly. `bf16` means autocast over f32
  weights in training, and weights stored in bf16 for drawing. `f32` means f32 throughout. Tessera's row names its own
  precision.
- When Tessera draws (`decode-*`, `grow-*`, `draw-9`), the weights of the layers and of the head are stored in 8 bits.
  If the processor multiplies 8-bit integers (AVX-512 VNNI as well as bf16), activations are rounded to 8 bits for these
  products too, with one scale per row. Otherwise the weights are converted to a wider type. The peers multiply bf16 or
  f32.
- `decode-*` and `grow-*` draw many pictures of one text. Tessera computes the text once, and all sequences of the batch
  share its KV cache. Plain PyTorch and dalle-pytorch compute it for every sequence. In `decode-64` that is {DECODE.text} rows
  of text against {DECODE.lanes * DECODE.text:,}. This is a feature of Tessera, and the ratios include it.
- Tessera and PyTorch sample every token from the complete distribution. dalle-pytorch always filters, here to the most
  likely tenth of the tokens, and min-dalle samples from the 256 most likely.
- In each round, a peer runs a benchmark once; it repeats a short one many times and reports the mean. Tessera runs it
  five times in a new process and reports the median, or runs it once if that takes more than three seconds.
- **torch** is Tessera's architecture written plainly in PyTorch, with PyTorch's fused attention and optimizer.
  `torch.compile` is the same code through PyTorch's compiler, which needs a C++ compiler and half a minute before the
  first step; that time is not counted. On `decode-*` and `grow-*` it uses a cache that is allocated once.
- **dalle-pytorch** is lucidrains' package. In `paper-step` it uses its own row, column and 5×5 patterns, whereas
  Tessera and PyTorch use the paper's. Its feed-forward layers are gated, so a layer has a third more weights, and its
  loss computes one softmax over both vocabularies. When it draws, every layer has full attention, because its sparse
  patterns have no cache, and its VAE is left out. Without guidance, version 1.6.6 drops its cache and recomputes the
  sequence for every token; this benchmark passes the cache on, so these figures are better than a user's. It draws only
  square grids. Therefore all contenders draw squares, and the length of the text is such that text and picture give the
  sequence length in the benchmark's name: {growth_shapes()}.
  From `grow-1280` on, the peers' f32 is left out, and in the longest benchmark dalle-pytorch too, because they would
  take an hour.
- **dall-e** is OpenAI's package, which has no training code.
- A *reference* has another architecture and does not count for a ratio: min-dalle's decoder, of the size of its mini
  model (12 layers of width 1024 with cross-attention, two sequences per picture), and dalle-pytorch's VAE (strided
  convolutions, residual blocks on the 16×16 grid only, mean squared error), which is a much smaller network than the
  paper's.
- All weights are random. These benchmarks do not measure quality.
- Peak memory is that of the complete process. For the peers it includes Python and PyTorch (about 500 MiB).
"""


BY_HAND = "## Measuring pictures"


def written_by_hand(path: Path) -> str:
    """Returns the end of the existing page, whose figures come from other commands; it is kept."""
    old = path.read_text() if path.exists() else ""
    return old[old.index(BY_HAND) :] if BY_HAND in old else ""


def page(results: dict[str, Result]) -> str:
    known = {name: results[name] for name in BENCHMARKS if name in results}
    parts = [HEAD.format(rounds=min(each["rounds"] for each in known.values()), threads=THREADS), origin(known)]
    parts += ["## Speed\n", speed_table(known), "## Peak memory\n", "In MiB.\n", memory_table(known)]
    if any(name.startswith("grow-") for name in known):
        parts += ["## Growth\n", GROWTH_HEAD, growth_table(known)]
    parts += [NOTES, "## The benchmarks\n", *(f"- `{name}`: {BENCHMARKS[name].what}" for name in known)]
    missing = [f"- `{name}`, {who}: {why}" for name, each in known.items() for who, why in each["failed"].items()]
    if missing:
        parts += ["\n## Not measured\n", *missing]
    return "\n".join(parts) + "\n"


def origin(known: dict[str, Result]) -> str:
    """Returns machine, versions and dates.

    If benchmarks or references were measured on another machine or at another commit, each such group is named.
    """
    alike: dict[str, list[str]] = {}
    for name, each in known.items():
        alike.setdefault(run(each), []).append(f"`{name}`")
        for other in {run(result["run"]) for result in each["results"] if "run" in result} - {run(each)}:
            alike.setdefault(other, []).append(f"references of `{name}`")
    if len(alike) == 1:
        return f"Measured {next(iter(alike))}.\n"
    return "".join(f"- {', '.join(names)}: {where}.\n" for where, names in alike.items())


def run(each: Result) -> str:
    """Returns the date, the commit and the machine of a measurement."""
    versions = ", ".join(f"{package} {version}" for package, version in each["versions"].items())
    return (
        f"{each['date']}, commit {each['commit']}; {each['cores']} cores of {each['cpu']}, {each['features']}, "
        f"{each['memory_gib']} GiB; {versions}"
    )


def speed_table(known: dict[str, Result]) -> str:
    rows = []
    for name, each in known.items():
        benchmark = BENCHMARKS[name]
        ours, peers, references = split(each)
        best = min(peers, key=lambda result: result["seconds"], default=None)
        ratio = f"**{best['seconds'] / ours['seconds']:.2f}**" if ours and best else "–"
        rows.append(
            (
                f"`{name}`",
                ratio,
                f"{ours['precision']} {rate(benchmark, ours)}".strip() if ours else "not measured",
                f"{label(best)} {rate(benchmark, best)}" if best else "–",
                " / ".join(spread(result) for result in (ours, best) if result) or "–",
                "; ".join(f"{label(result)} {rate(benchmark, result)}" for result in peers) or "–",
                "; ".join(f"{label(result)} {rate(benchmark, result)}" for result in references) or "–",
            )
        )
    return table(("benchmark", "ratio", "ours", "best peer", "spread", "all peers", "references"), rows)


def memory_table(known: dict[str, Result]) -> str:
    rows = []
    for name, each in known.items():
        ours, peers, references = split(each)
        others = "; ".join(f"{label(result)} {result['peak_rss_mib']:,.0f}" for result in peers + references)
        rows.append((f"`{name}`", f"{ours['peak_rss_mib']:,.0f}" if ours else "not measured", others or "–"))
    return table(("benchmark", "ours", "peers"), rows)


def growth_table(known: dict[str, Result]) -> str:
    """Returns a table with one column per contender, in which the speed falls with the length from top to bottom."""
    lengths = [length for length in GROWTH if f"grow-{length}" in known]
    rates = {
        (length, label(result)): f"{result['rate']:,.0f}"
        for length in lengths
        for result in known[f"grow-{length}"]["results"]
    }
    columns = list(dict.fromkeys(column for _, column in rates))
    rows = [(str(length), *(rates.get((length, column), "–") for column in columns)) for length in lengths]
    return table(("length", *columns), rows)


def split(each: Result) -> tuple[Result | None, list[Result], list[Result]]:
    """Returns Tessera's result (`None` if it was not measured), the contenders' and the references'."""
    ours = next((result for result in each["results"] if result["peer"] == "tessera"), None)
    others = [result for result in each["results"] if result["peer"] != "tessera"]
    contenders = [result for result in others if not result["reference"]]
    return ours, contenders, [result for result in others if result["reference"]]


def label(result: Result) -> str:
    return f"{result['peer']} {result['precision']}".strip()


def rate(benchmark: Benchmark, result: Result) -> str:
    digits = 0 if result["rate"] >= 100 else 1 if result["rate"] >= 10 else 2
    return f"{result['rate']:,.{digits}f} {benchmark.unit} ({duration(result['seconds'])})"


def spread(result: Result) -> str:
    """Returns the fastest and the slowest round relative to the median, in percent."""
    low, high = (100 * (result[end] / result["seconds"] - 1) for end in ("min", "max"))
    return f"{low:+.0f} … {high:+.0f} %"


def duration(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
