"""The benchmarks that are timed: their names, their sizes, and who takes part.

A benchmark is one thing to do, named as in `tessera bench BENCHMARK`. Everything about it that two programs must agree on is
here; this file imports nothing, so that `compare.py` needs no tensor library.
"""

from dataclasses import dataclass

THREADS = 2

GEMM_SIDE = 1024  # C = A·B, all three 1024×1024
CONV_BATCH, CONV_CHANNELS, CONV_SIDE = 8, 128, 32  # 3×3, 128→128 channels, forward and both gradients

# The small GPT of `gpt-step`, `decode-*` and `grow-*`: pre-LayerNorm blocks, GELU, learned positions, untied head.
GPT_WIDTH, GPT_LAYERS, GPT_HEADS, GPT_VOCAB = 384, 6, 6, 4096
GPT_BATCH, GPT_LENGTH = 8, 320
GPT_PARAMETERS = 13_916_160

# The paper's stream: 256 text tokens, then a 32×32 grid.
PAPER_BATCH, PAPER_TEXT, PAPER_GRID = 1, 256, 32
PAPER_WIDTH, PAPER_LAYERS, PAPER_HEADS = 512, 8, 8
PAPER_TEXT_VOCAB, PAPER_IMAGE_VOCAB = 16_384, 8_192

# The released dVAE, narrower and on smaller pictures for training, as released for decoding.
DVAE_VOCAB, DVAE_INIT, DVAE_BLOCKS = 8_192, 128, 2
DVAE_BATCH, DVAE_SIDE, DVAE_WIDTH = 4, 128, 64
RELEASED_WIDTH, RELEASED_GRID = 256, 32

# Streams of `grow-LENGTH`: text tokens, and the side of the square of tokens that is drawn after them.
GROWTH = {320: (64, 16), 640: (64, 24), 1280: (256, 32), 2560: (60, 50)}
GROWTH_LANES = 16
DECODE_STREAM = GROWTH[GPT_LENGTH]  # of `decode-BATCH`
BOTH = ("f32", "bf16")
COMPILED = {"torch.compile": ("bf16",)}


@dataclass(frozen=True)
class Benchmark:
    """One benchmark. `contenders` do the same thing as we do; `references` have a shape of their own and give no ratio."""

    name: str
    what: str
    count: float  # how much one repetition does of what `unit` counts in a second
    unit: str  # as in `tessera bench BENCHMARK`
    contenders: dict[str, tuple[str, ...]]
    references: dict[str, tuple[str, ...]]

    def rate(self, seconds: float) -> float:
        return self.count / seconds


@dataclass(frozen=True)
class Shape:
    """What is drawn: `lanes` pictures of `side`×`side` tokens, each after `text` tokens."""

    lanes: int
    text: int
    side: int

    @property
    def drawn(self) -> int:
        """Tokens drawn by one lane."""
        return self.side**2

    @property
    def length(self) -> int:
        """Tokens of the whole stream."""
        return self.text + self.drawn


def decode_shape(name: str) -> Shape:
    """The shape of `decode-BATCH` and `grow-LENGTH`."""
    kind, number = name.split("-")
    if kind == "decode":
        return Shape(int(number), *DECODE_STREAM)
    shape = Shape(GROWTH_LANES, *GROWTH[int(number)])
    assert shape.length == int(number), shape
    return shape


def decode_work(name: str, contenders: dict[str, tuple[str, ...]], references: dict[str, tuple[str, ...]]) -> Benchmark:
    shape = decode_shape(name)
    lanes = "1 lane" if shape.lanes == 1 else f"{shape.lanes} lanes"
    what = (
        f"draw {shape.side}×{shape.side} tokens after {shape.text} of text, a stream of {shape.length}, in {lanes}, "
        "with a key/value cache"
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
            f"training step on the paper's stream, {PAPER_TEXT} text and {PAPER_GRID}×{PAPER_GRID} image tokens, "
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
        decode_work("decode-1", {"torch": BOTH, **COMPILED, "dalle-pytorch": BOTH}, {"min-dalle": BOTH}),
        decode_work("decode-16", {"torch": BOTH, **COMPILED, "dalle-pytorch": BOTH}, {"min-dalle": BOTH}),
        decode_work("decode-64", {"torch": BOTH, **COMPILED, "dalle-pytorch": BOTH}, {}),
        Benchmark(
            "released-decoder",
            f"{RELEASED_GRID}×{RELEASED_GRID} tokens to 256×256 pixels with the released decoder",
            1,
            "pictures/s",
            {"torch": BOTH, "dall-e": BOTH},
            {},
        ),
        decode_work("grow-320", {"torch": BOTH, "dalle-pytorch": BOTH}, {}),
        decode_work("grow-640", {"torch": BOTH, "dalle-pytorch": BOTH}, {}),
        # The longer the stream, the fewer take part: the slow ones would need an hour.
        decode_work("grow-1280", {"torch": ("bf16",), "dalle-pytorch": ("bf16",)}, {}),
        decode_work("grow-2560", {"torch": ("bf16",)}, {}),
        Benchmark(
            "draw-9",
            "nine drawings of a red apple, the whole process with its embedded model",
            9,
            "pictures/s",
            {},
            {},
        ),
    )
}
