"""The released discrete VAE in plain PyTorch: a training step at a small size, and the decoder as released.

The architecture and the loss are the paper's (§2.1, §A.1, §A.3): soft Gumbel-softmax codes as the decoder's input,
logit-Laplace likelihood, KL divergence from the uniform prior. Convolutions run channels-last, which is the fast layout
on CPUs. The two convolutions next to the codes stay in f32, as in the release.

Dimensions: B batch, V codebook, G side of the grid.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import benchmarks
from torch_gpt import new_step

N_LAYERS = 4 * benchmarks.DVAE_BLOCKS
EPSILON = 0.1  # ε of the pixel map φ (§A.3)
BETA = 6.6  # weight of the KL term (§A.2)
TEMPERATURE = 1.0


class Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, kernels: tuple[int, ...]):
        super().__init__()
        hidden = n_out // 4
        widths = (n_in, hidden, hidden, hidden, n_out)
        self.skip = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, kernel, padding="same")
            for before, after, kernel in zip(widths, widths[1:], kernels)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv in self.convs:
            y = conv(y.relu())
        return self.skip(x) + y / N_LAYERS**2


def groups(n_in: int, widths: list[int], kernels: tuple[int, ...], between: nn.Module) -> nn.Sequential:
    """Returns the groups of blocks, one for each of `widths`, with `between` after each group except the last."""
    layers: list[nn.Module] = []
    for index, width in enumerate(widths):
        for _ in range(benchmarks.DVAE_BLOCKS):
            layers.append(Block(n_in, width, kernels))
            n_in = width
        if index + 1 < len(widths):
            layers.append(between)
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.input = nn.Conv2d(3, width, 7, padding="same")
        self.groups = groups(width, widths, (3, 3, 3, 1), nn.MaxPool2d(2))
        self.output = nn.Conv2d(8 * width, benchmarks.DVAE_VOCAB, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps pixels (B, 3, 8G, 8G) to logits (B, V, G, G)."""
        x = self.groups(self.input(pixels)).relu()
        with torch.autocast("cpu", enabled=False):
            return self.output(x.float())


class Decoder(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        widths = [8 * width, 4 * width, 2 * width, width]
        self.input = nn.Conv2d(benchmarks.DVAE_VOCAB, benchmarks.DVAE_INIT, 1)
        self.groups = groups(benchmarks.DVAE_INIT, widths, (1, 3, 3, 3), nn.Upsample(scale_factor=2))
        self.output = nn.Conv2d(width, 6, 1)

    def forward(self, codes: Tensor) -> Tensor:
        """Maps relaxed codes (B, V, G, G) to the mean and the log of the scale, (B, 6, 8G, 8G)."""
        with torch.autocast("cpu", enabled=False):
            x = self.input(codes)
        return self.from_embedded(x)

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """Like `forward` for tokens (B, G, G): a 1×1 convolution of one-hot codes is an embedding lookup."""
        columns = self.input.weight.flatten(1).t()
        return self.from_embedded(F.embedding(tokens, columns).permute(0, 3, 1, 2) + self.input.bias[:, None, None])

    def from_embedded(self, x: Tensor) -> Tensor:
        return self.output(self.groups(x).relu())


class Dvae(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.encoder, self.decoder = Encoder(width), Decoder(width)

    def loss(self, pixels: Tensor) -> Tensor:
        """Returns the loss of `pixels` (B, 3, 8G, 8G) in 0..1, in nats per value, including the KL term."""
        mapped = (1 - 2 * EPSILON) * pixels + EPSILON
        logits = self.encoder(mapped)
        codes = F.gumbel_softmax(logits, TEMPERATURE, dim=1)
        mean, log_scale = self.decoder(codes).float().chunk(2, 1)
        error = (mapped.logit() - mean).abs() * (-log_scale).exp()
        nll = log_scale + error + (2 * mapped * (1 - mapped)).log()
        log_q = logits.log_softmax(1)
        kl = (log_q.exp() * log_q).sum(1) + math.log(benchmarks.DVAE_VOCAB)
        return nll.mean() + BETA * kl.sum() / nll.numel()


def dvae_step(precision: str, *, compiled: bool = False) -> Callable[[], None]:
    model = Dvae(benchmarks.DVAE_WIDTH).to(memory_format=torch.channels_last)
    pixels = torch.rand(benchmarks.DVAE_BATCH, 3, benchmarks.DVAE_SIDE, benchmarks.DVAE_SIDE)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    return new_step(model, lambda: model.loss(pixels), precision, compiled=compiled)


def released_decoder(precision: str) -> Callable[[], None]:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    decoder = Decoder(benchmarks.RELEASED_WIDTH).to(dtype=dtype, memory_format=torch.channels_last).eval()
    n_parameters = sum(parameter.numel() for parameter in decoder.parameters())
    assert n_parameters == 43_829_766, n_parameters
    tokens = torch.randint(benchmarks.DVAE_VOCAB, (1, benchmarks.RELEASED_GRID, benchmarks.RELEASED_GRID))

    @torch.inference_mode()
    def draw() -> None:
        decoder.from_tokens(tokens)[:, :3].sigmoid()

    return draw
