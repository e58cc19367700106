"""lucidrains' DALLE-pytorch, with the options that are closest to the benchmark.

Its feed-forward layers are gated, so its layers have a third more weights than plain ones of the same width. Its
convolutional pattern is 5×5, not 11×11, and its sparse patterns need rotary positions to run on a current PyTorch. They
have no cache, so drawing uses its full attention. The benchmarks pass codes in and out, so its VAE does not run.
"""

from collections.abc import Callable

import torch
from torch import Tensor

import stand_ins
import benchmarks
from torch_gpt import new_step

stand_ins.install()

from dalle_pytorch import DALLE, DiscreteVAE  # noqa: E402

TEXT_VOCAB = 960  # with one pad token per text position and the image tokens, the head has 4,096 outputs
FILTER = 0.9  # it always filters; this keeps the most likely tenth of the tokens


class Codes(DiscreteVAE):
    """A VAE that gives `DALLE` a grid of `side`×`side` codes and returns codes without decoding them."""

    def __init__(self, side: int, num_tokens: int):
        super().__init__(image_size=16, num_layers=1, hidden_dim=8, codebook_dim=8, num_tokens=num_tokens)
        self.image_size = 2 * side  # `DALLE` halves it once per layer of the VAE

    def decode(self, img_seq: Tensor) -> Tensor:
        return img_seq


class Cached(DALLE):
    """`DALLE` that uses its cache: version 1.6.6 ignores `use_cache=True` when `cond_scale` is 1."""

    def forward_with_cond_scale(self, *args: Tensor, cond_scale: float = 1, cache: dict | None = None) -> Tensor:
        assert cond_scale == 1
        return self(*args, cache=cache)


def build(benchmark: str, precision: str) -> tuple[Callable[[], None], int]:
    """Returns a function that does one repetition of `benchmark`, and how often that repeats the work."""
    match benchmark:
        case "paper-step":
            return paper_step(precision), 1
        case "dvae-step":
            return dvae_step(precision), 1
        case _:
            return decode(benchmarks.decode_shape(benchmark), precision), 1


def paper_step(precision: str) -> Callable[[], None]:
    row, column = "axial_row", "axial_col"
    model = Cached(
        dim=benchmarks.PAPER_WIDTH,
        vae=Codes(benchmarks.PAPER_GRID, benchmarks.PAPER_IMAGE_VOCAB),
        num_text_tokens=benchmarks.PAPER_TEXT_VOCAB,
        text_seq_len=benchmarks.PAPER_TEXT,
        depth=benchmarks.PAPER_LAYERS,
        heads=benchmarks.PAPER_HEADS,
        attn_types=(row, column, row, row, row, column, row, "conv_like"),
        shift_tokens=False,
    )
    text = torch.randint(1, benchmarks.PAPER_TEXT_VOCAB, (benchmarks.PAPER_BATCH, benchmarks.PAPER_TEXT))
    image = torch.randint(benchmarks.PAPER_IMAGE_VOCAB, (benchmarks.PAPER_BATCH, benchmarks.PAPER_GRID**2))
    return new_step(model, lambda: model(text, image, return_loss=True), precision)


def dvae_step(precision: str) -> Callable[[], None]:
    """Uses the package's architecture: three strided convolutions, two residual blocks each way, mean squared error."""
    model = DiscreteVAE(
        image_size=benchmarks.DVAE_SIDE,
        num_tokens=benchmarks.DVAE_VOCAB,
        num_layers=3,
        num_resnet_blocks=2,
        hidden_dim=benchmarks.DVAE_WIDTH,
    )
    pixels = torch.rand(benchmarks.DVAE_BATCH, 3, benchmarks.DVAE_SIDE, benchmarks.DVAE_SIDE)
    return new_step(model, lambda: model(pixels, return_loss=True), precision)


def decode(shape: benchmarks.Shape, precision: str) -> Callable[[], None]:
    model = Cached(
        dim=benchmarks.GPT_WIDTH,
        vae=Codes(shape.side, benchmarks.GPT_VOCAB - TEXT_VOCAB - shape.text),
        num_text_tokens=TEXT_VOCAB,
        text_seq_len=shape.text,
        depth=benchmarks.GPT_LAYERS,
        heads=benchmarks.GPT_HEADS,
        shift_tokens=False,
        rotary_emb=False,
    )
    model = model.to(torch.bfloat16 if precision == "bf16" else torch.float32).eval()
    text = torch.randint(1, TEXT_VOCAB, (shape.lanes, shape.text))

    @torch.inference_mode()
    def draw() -> None:
        codes = model.generate_images(text, use_cache=True, filter_thres=FILTER)
        assert codes.shape == (shape.lanes, shape.drawn), codes.shape

    return draw
