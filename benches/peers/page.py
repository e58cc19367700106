"""The figures as a page of tables, `docs/performance.md`."""

from pathlib import Path
from typing import Any

from benchmarks import GROWTH, GROWTH_LANES, THREADS, BENCHMARKS, Benchmark, decode_shape

Result = dict[str, Any]

HEAD = """\
# Performance

Every figure on this page is made by `make peers` ([how](../benches/peers/README.md)): the median of {rounds} or more
rounds, all contenders taking turns on {threads} threads. A ratio above 1 says how many times as fast we are as the
fastest peer at any precision.
"""

GROWTH_HEAD = f"Tokens a second, {GROWTH_LANES} lanes, by the length of the stream.\n"
DECODE = decode_shape("decode-64")


def growth_shapes() -> str:
    """Text and picture of each stream."""
    return ", ".join(f"{text} + {side}² = {length:,}" for length, (text, side) in GROWTH.items())


NOTES = f"""\
## What is compared

- A peer's fastest precision counts, also where ours is more exact. `bf16` is autocast over f32 weights in training and
  weights held in bf16 for drawing; `f32` is f32 throughout, and ours names its own.
- When **ours** draws (`decode-*`, `grow-*`, `draw-9`), the weights of its layers and its head are kept in 8 bits. Where
  the processor multiplies whole numbers (AVX-512 VNNI beside bf16), activations are rounded to 8 bits for these
  products too, with a scale for each row; elsewhere the weights are widened. What the peers multiply is bf16 or f32.
- `decode-*` and `grow-*` are many pictures of one text. Our engine runs the text once, and all lanes share its states;
  PyTorch written plainly and dalle-pytorch run it in every lane. In `decode-64` that is {DECODE.text} rows of text against
  {DECODE.lanes * DECODE.text:,}: a feature of our engine, which the ratios contain.
- Ours and PyTorch draw every token from the whole distribution. dalle-pytorch always filters, here to the likeliest
  tenth, and min-dalle to the likeliest 256.
- In a round a peer does a benchmark once (a short one many times, and their mean counts). Ours does it five times in a new
  process, and their median counts (once, if that takes more than three seconds).
- **torch** is our architecture written plainly in PyTorch, with its fused attention and optimiser. `torch.compile` is
  the same through its compiler, which needs a C++ compiler and half a minute before the first step; that time is not
  counted. On `decode-*` and `grow-*` it holds a cache allocated once.
- **dalle-pytorch** is lucidrains' package. In `paper-step` it computes its own row, column and 5×5 patterns where
  ours and PyTorch's are the paper's; its feed-forward is gated and a layer holds a third more weights; its loss
  computes one softmax over both vocabularies. When it draws, every layer has full attention, since its sparse patterns
  have no cache, and its VAE is left out. Version 1.6.6 loses its cache on the way when there is no guidance, and then
  starts anew for every token; here it is handed on, so these figures are better than a user's. It draws only square
  grids. So all contenders draw squares, and the text before them makes a stream as long as its name says:
  {growth_shapes()}. From `grow-1280` on the peers' f32 sits out, and
  from the longest dalle-pytorch too: they would take an hour.
- **dall-e** is OpenAI's package, which has no training code.
- A *reference* has a shape of its own and enters no ratio: min-dalle's decoder, of the size of its mini model (12
  layers of width 1024 with cross-attention, two rows a picture), and dalle-pytorch's VAE (strided convolutions,
  residual blocks on the 16×16 grid only, mean squared error), which is a much smaller network than the paper's.
- All weights are random. Nothing about quality is measured here.
- Peak memory is that of the whole process, with Python and PyTorch (about 500 MiB) for the peers.
"""


BY_HAND = "## Measuring pictures"


def written_by_hand(path: Path) -> str:
    """The end of the page, which other commands gave the figures of."""
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
    """Machine, versions, dates; benchmarks and references that were measured elsewhere or at another commit are named."""
    alike: dict[str, list[str]] = {}
    for name, each in known.items():
        alike.setdefault(run(each), []).append(f"`{name}`")
        for other in {run(result["run"]) for result in each["results"] if "run" in result} - {run(each)}:
            alike.setdefault(other, []).append(f"references of `{name}`")
    if len(alike) == 1:
        return f"Measured {next(iter(alike))}.\n"
    return "".join(f"- {', '.join(names)}: {where}.\n" for where, names in alike.items())


def run(each: Result) -> str:
    """When, at which commit and on what figures were taken."""
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
    """One column a contender, so that a fall with the length can be read down it."""
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
    """Ours if it was measured, the contenders, the references."""
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
    """From the fastest to the slowest repetition, in percent of the median."""
    low, high = (100 * (result[end] / result["seconds"] - 1) for end in ("min", "max"))
    return f"{low:+.0f} … {high:+.0f} %"


def duration(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
