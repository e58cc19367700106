"""OpenAI's `dall-e` package: its decoder at the released size, with random weights."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

import stand_ins
import works

stand_ins.install()

from dall_e import Decoder, unmap_pixels  # noqa: E402


def build(work: str, precision: str) -> tuple[Callable[[], None], int]:
    """One repetition of `work`, and how many times it does it."""
    assert work == "released-decoder", work
    decoder = Decoder(n_hid=works.RELEASED_WIDTH, vocab_size=works.DVAE_VOCAB).eval()
    tokens = torch.randint(works.DVAE_VOCAB, (1, works.RELEASED_GRID, works.RELEASED_GRID))

    @torch.inference_mode()
    def draw() -> None:
        codes = F.one_hot(tokens, works.DVAE_VOCAB).permute(0, 3, 1, 2).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            statistics = decoder(codes)
        unmap_pixels(statistics[:, :3].float().sigmoid())

    return draw, 1
