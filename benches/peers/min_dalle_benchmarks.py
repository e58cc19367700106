"""min-dalle's BART decoder at the size of its "mini" model, with random weights.

This model is much larger than Tessera's, so it is a reference for speed and not a contender: 12 layers of width 1024,
each with cross-attention to the text, 16,384 image tokens, and two sequences per picture, because it guides every
drawing with an empty caption. Its attention always covers all 256 positions, so every token takes the same time, and a
repetition draws only the first 32.
"""

from collections.abc import Callable

import torch

import stand_ins
import benchmarks

stand_ins.install()

from min_dalle.models.dalle_bart_decoder import IMAGE_TOKEN_COUNT, DalleBartDecoder  # noqa: E402

WIDTH, N_LAYERS, N_HEADS, GLU_WIDTH, VOCAB = 1024, 12, 16, 2730, 2**14
N_TEXT = 64
N_DRAWN = 32
TEMPERATURE, TOP_K, GUIDANCE = 1, 256, 16  # min-dalle's defaults


def build(benchmark: str, precision: str) -> tuple[Callable[[], None], float]:
    """Returns a function that does one repetition of `benchmark`, and how often that repeats the work."""
    shape = benchmarks.decode_shape(benchmark)
    batch = shape.lanes
    assert (shape.text, shape.drawn) == (N_TEXT, IMAGE_TOKEN_COUNT), shape
    decoder = DalleBartDecoder(VOCAB, WIDTH, N_HEADS, GLU_WIDTH, N_LAYERS, device="cpu").eval()
    settings = torch.tensor([TEMPERATURE, TOP_K, GUIDANCE], dtype=torch.float32)
    text = torch.randn(2 * batch, N_TEXT, WIDTH)
    text_mask = torch.ones(2 * batch, 1, 1, N_TEXT, dtype=torch.bool)

    @torch.inference_mode()
    def draw() -> None:
        cache = torch.zeros(N_LAYERS, 4 * batch, IMAGE_TOKEN_COUNT, WIDTH)
        tokens = torch.full((batch, 1), VOCAB - 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            for position in range(N_DRAWN):
                drawn, cache = decoder.sample_tokens(
                    settings,
                    attention_mask=text_mask,
                    encoder_state=text,
                    attention_state=cache,
                    prev_tokens=tokens,
                    token_index=torch.tensor([position]),
                )
                tokens = drawn[:, None]

    return draw, N_DRAWN / IMAGE_TOKEN_COUNT
