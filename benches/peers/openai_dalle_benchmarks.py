"""The decoder of OpenAI's `dall-e` package at the released size, with random weights."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

import stand_ins
import benchmarks

stand_ins.install()

from dall_e import Decoder, unmap_pixels  # noqa: E402


def build(benchmark: str, precision: str) -> tuple[Callable[[], None], int]:
    """Returns a function that does one repetition of `benchmark`, and how often that repeats the work."""
    assert benchmark == "released-decoder", benchmark
    decoder = Decoder(n_hid=benchmarks.RELEASED_WIDTH, vocab_size=benchmarks.DVAE_VOCAB).eval()
    tokens = torch.randint(benchmarks.DVAE_VOCAB, (1, benchmarks.RELEASED_GRID, benchmarks.RELEASED_GRID))

    @torch.inference_mode()
    def draw() -> None:
        codes = F.one_hot(tokens, benchmarks.DVAE_VOCAB).permute(0, 3, 1, 2).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            statistics = decoder(codes)
        unmap_pixels(statistics[:, :3].float().sigmoid())

    return draw, 1
