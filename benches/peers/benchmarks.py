"""The benchmarks: their names, their sizes, and which peers take part.

A benchmark is one computation, with the name that `tessera bench BENCHMARK` uses. This file defines everything that two
programs must agree on. It imports no tensor library, so that `compare.py` does not need one.
"""

from dataclasses import dataclass

THREADS = 2

GEMM_SIDE = 1024  # C = A·B, all three 1024×1024
CONV_BATCH, CONV_CHANNELS, CONV_SIDE = 8, 128, 32  # 3×3, 128→128 channels, forward and both gradients

# The small GPT of `gpt-step`, `decode-*` and `grow-*`: pre-LayerNorm blocks, GELU, learned positions, untied head.
GPT_WIDTH, GPT_LAYERS, GPT_HEADS, GPT_VOCAB = 384, 6, 6, 4096
GPT_BATCH, GPT_LENGTH = 8, 320
GPT_PARAMETERS = 13_916_160

# The paper's sequence: 256 text tokens, then a 32×32 grid of image tokens.
PAPER_BATCH, PAPER_TEXT, PAPER_GRID = 1, 256, 32
PAPER_WIDTH, PAPER_LAYERS, PAPER_HEADS = 512, 8, 8
PAPER_TEXT_VOCAB, PAPER_IMAGE_VOCAB = 16_384, 8_192

# The released dVAE: narrower and on smaller pictures in training, at its released size in decoding.
DVAE_VOCAB, DVAE_INIT, DVAE_BLOCKS = 8_192, 128, 2
DVAE_BATCH, DVAE_SIDE, DVAE_WIDTH = 4, 128, 64
RELEASED_WIDTH, RELEASED_GRID = 256, 32

# Sequences of `grow-LENGTH`: the number of text tokens, and the side of the square grid drawn after them.
GROWTH = {320: (64, 16), 640: (64, 24), 1280: (256, 32), 2560: (60, 50)}
GROWTH_LANES = 16
DECODE_STREAM = GROWTH[GPT_LENGTH]  # the sequence of `decode-BATCH`
BOTH = ("f32", "bf16")
COMPILED = {"torch.compile": ("bf16",)}


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    `contenders` do the same computation as Tessera. `references` have another architecture and do not count for the
    ratio. Both map a peer to its precisions.
    """

    name: str
    what: str
    count: float  # amount of work in one repetition, in the units that `unit` counts per second
    unit: str  # as in `tessera bench BENCHMARK`
    contenders: dict[str, tuple[str, ...]]
    references: dict[str, tuple[str, ...]]

    def rate(self, seconds: float) -> float:
        return self.count / seconds


@dataclass(frozen=True)
class Shape:
    """What is drawn: a batch of `lanes` pictures of `side`×`side` tokens, each after `text` text tokens."""

    lanes: int
    text: int
    side: int

    @property
    def drawn(self) -> int:
        """Image tokens per sequence."""
        return self.side**2

    @property
    def length(self) -> int:
        """Length of the sequence in tokens."""
        return self.text + self.drawn


def decode_shape(name: str) -> Shape:
    """Returns the shape of `decode-BATCH` or `grow-LENGTH`."""
    kind, number = name.split("-")
    if kind == "decode":
        return Shape(int(number), *DECODE_STREAM)
    shape = Shape(GROWTH_LANES, *GROWTH[int(number)])
    assert shape.length == int(number), shape
    return shape


def decode_benchmark(
    name: str, contenders: dict[str, tuple[str, ...]], references: dict[str, tuple[str, ...]]
) -> Benchmark:
    shape = decode_shape(name)
    what = (
        f"draw {shape.side}×{shape.side} tokens after {shape.text} text tokens, sequence length {shape.length}, "
        f"batch of {shape.lanes}, with a KV cache"
    )
    return Benchmark(name, what, shape.lanes * shape.drawn, "tokens/s", contenders, references)


PAPER_LENGTH = PAPER_TEXT + PAPER_GRID**2

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "gemm",
            f"matrix product, {GEMM_SIDE}×{GEMM_SIDE}×{GEMM_SIDE}",
            2 * GEMM_SIDE**3 / 1e9,
            "GFLOP/s",
            {"torch": BOTH},
            {},
        ),
        Benchmark(
            "conv",
            f"convolution 3×3, {CONV_CHANNELS}→{CONV_CHANNELS} channels, batch {CONV_BATCH}, "
            f"{CONV_SIDE}×{CONV_SIDE} pixels, forward and both gradients",
            3 * 2 * 9 * CONV_CHANNELS**2 * CONV_BATCH * CONV_SIDE**2 / 1e9,
            "GFLOP/s",
            {"torch": BOTH},
            {},
        ),
        Benchmark(
            "gpt-step",
            f"training step of a GPT with {GPT_PARAMETERS:,} parameters, batch {GPT_BATCH}×{GPT_LENGTH}, AdamW",
            GPT_BATCH * GPT_LENGTH,
            "tokens/s",
            {"torch": BOTH, **COMPILED},
            {},
        ),
        Benchmark(
            "paper-step",
            f"training step on the paper's sequence, {PAPER_TEXT} text and {PAPER_GRID}×{PAPER_GRID} image tokens, "
            f"{PAPER_LAYERS} layers of width {PAPER_WIDTH}, batch {PAPER_BATCH}, AdamW",
            PAPER_BATCH * PAPER_LENGTH,
            "tokens/s",
            {"torch": BOTH, **COMPILED, "dalle-pytorch": BOTH},
            {},
        ),
        Benchmark(
            "dvae-step",
            f"training step of the released dVAE at width {DVAE_WIDTH}, batch {DVAE_BATCH}, "
            f"{DVAE_SIDE}×{DVAE_SIDE} pixels, AdamW",
            DVAE_BATCH,
            "pictures/s",
            {"torch": BOTH, **COMPILED},
            {"dalle-pytorch": BOTH},
        ),
        decode_benchmark("decode-1", {"torch": BOTH, **COMPILED, "dalle-pytorch": BOTH}, {"min-dalle": BOTH}),
        decode_benchmark("decode-16", {"torch": BOTH, **COMPILED, "dalle-pytorch": BOTH}, {"min-dalle": BOTH}),
        decode_benchmark("decode-64", {"torch": BOTH, **COMPILED, "dalle-pytorch": BOTH}, {}),
        Benchmark(
            "released-decoder",
            f"{RELEASED_GRID}×{RELEASED_GRID} tokens to 256×256 pixels with the released decoder",
            1,
            "pictures/s",
            {"torch": BOTH, "dall-e": BOTH},
            {},
        ),
        decode_benchmark("grow-320", {"torch": BOTH, "dalle-pytorch": BOTH}, {}),
        decode_benchmark("grow-640", {"torch": BOTH, "dalle-pytorch": BOTH}, {}),
        # Fewer peers take part in long sequences: the slow ones would take an hour.
        decode_benchmark("grow-1280", {"torch": ("bf16",), "dalle-pytorch": ("bf16",)}, {}),
        decode_benchmark("grow-2560", {"torch": ("bf16",)}, {}),
        Benchmark(
            "draw-9",
            "nine drawings of a red apple, the complete process with its embedded model",
            9,
            "pictures/s",
            {},
            {},
        ),
    )
}
