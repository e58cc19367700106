"""The transformers in plain PyTorch: a training step, drawing with a KV cache, a training step on the paper's sequence.

The code is written as a careful user of PyTorch would write it: `scaled_dot_product_attention`, fused AdamW, autocast
to bf16 over f32 weights in training, weights stored in bf16 for drawing, a cache that is allocated once.

Dimensions: B batch, T sequence, D model width, H heads, K head width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import benchmarks

STRIDE = 64


class Block(nn.Module):
    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.heads(x)
        return self.rest(x, F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None))

    def read(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Computes the text, `x` (B, new, D), and writes it to the start of the cache.

        The cache is keys (B·H, K, T) and values (B·H, T, K).
        """
        q, k, v = self.heads(x)
        keys[:, :, : x.shape[1]], values[:, : x.shape[1]] = k.flatten(0, 1).transpose(1, 2), v.flatten(0, 1)
        return self.rest(x, F.scaled_dot_product_attention(q, k, v, is_causal=True))

    def step(self, x: Tensor, keys: Tensor, values: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        """Computes one token per sequence, `x` (B, 1, D), at `position` (1); `mask` (T) is added to its scores.

        For one query, two plain matrix products on a cache with this layout are several times as fast in bf16 as
        `scaled_dot_product_attention`, and not slower in f32.
        """
        q, k, v = self.heads(x)
        keys.index_copy_(2, position, k.flatten(0, 1).transpose(1, 2))
        values.index_copy_(1, position, v.flatten(0, 1))
        scores = torch.bmm(q.flatten(0, 1) * q.shape[-1] ** -0.5, keys) + mask
        return self.rest(x, torch.bmm(scores.softmax(-1), values).view(q.shape))

    def heads(self, x: Tensor) -> Tensor:
        """Maps (B, T, D) to queries, keys and values, (3, B, H, T, K)."""
        batch, length, _ = x.shape
        return self.qkv(self.norm_1(x)).view(batch, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)

    def rest(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_2(x))


class Gpt(nn.Module):
    def __init__(self, length: int):
        super().__init__()
        width = benchmarks.GPT_WIDTH
        self.token = nn.Embedding(benchmarks.GPT_VOCAB, width)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, benchmarks.GPT_HEADS) for _ in range(benchmarks.GPT_LAYERS))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, benchmarks.GPT_VOCAB, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def read(self, text: Tensor, caches: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Writes `text` (B, new) to the caches, and returns the token drawn after it, (B, 1)."""
        x = self.token(text) + self.position[: text.shape[1]]
        for block, (keys, values) in zip(self.blocks, caches):
            x = block.read(x, keys, values)
        return choose(self.head(self.norm(x[:, -1])))

    def step(self, token: Tensor, caches: list[tuple[Tensor, Tensor]], position: Tensor) -> Tensor:
        """Returns the token drawn after `token` (B, 1), which is at `position`."""
        x = self.token(token) + self.position[position]
        places = torch.arange(caches[0][0].shape[2])
        mask = torch.where(places <= position, 0.0, -torch.inf).to(x.dtype)
        for block, (keys, values) in zip(self.blocks, caches):
            x = block.step(x, keys, values, position, mask)
        return choose(self.head(self.norm(x[:, -1])))


def choose(logits: Tensor) -> Tensor:
    """Samples one token per sequence, (B, 1), from softmax(logits).

    This is much faster than `multinomial`, which draws one random number per vocabulary entry.
    """
    cumulative = logits.float().softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulative, torch.rand(len(logits), 1)).clamp_(max=logits.shape[-1] - 1)


def new_step(
    model: nn.Module, loss: Callable[[], Tensor], precision: str, *, compiled: bool = False
) -> Callable[[], None]:
    """Returns a training step: `loss` in `precision`, its gradient, fused AdamW on the f32 weights."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    loss = torch.compile(loss) if compiled else loss

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(torch.get_default_device().type, torch.bfloat16, enabled=precision == "bf16"):
            value = loss()
        value.backward()
        optimiser.step()

    return step


def gpt_step(precision: str, *, compiled: bool = False) -> Callable[[], None]:
    model = Gpt(benchmarks.GPT_LENGTH)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert n_parameters == benchmarks.GPT_PARAMETERS, n_parameters
    stream = torch.randint(benchmarks.GPT_VOCAB, (benchmarks.GPT_BATCH, benchmarks.GPT_LENGTH + 1))
    inputs, targets = stream[:, :-1].contiguous(), stream[:, 1:].flatten()
    return new_step(model, lambda: F.cross_entropy(model(inputs).flatten(0, 1), targets), precision, compiled=compiled)


def decode(shape: benchmarks.Shape, precision: str, *, compiled: bool = False) -> Callable[[], None]:
    """Returns a function that draws all tokens after a text, which is computed for every sequence of the batch.

    oneDNN and the compiler both build a kernel for each new shape. Attention therefore runs over the cache up to the
    next multiple of `STRIDE` or, if compiled, over all of it.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    length = shape.length
    model = Gpt(length).to(dtype).eval()
    step = torch.compile(model.step, options={"freezing": True}) if compiled else model.step
    stride = length if compiled else STRIDE
    text = torch.randint(benchmarks.GPT_VOCAB, (shape.lanes, shape.text))
    heads, head_width = shape.lanes * benchmarks.GPT_HEADS, benchmarks.GPT_WIDTH // benchmarks.GPT_HEADS

    def new_cache() -> tuple[Tensor, Tensor]:
        return torch.zeros(heads, head_width, length, dtype=dtype), torch.zeros(heads, length, head_width, dtype=dtype)

    @torch.inference_mode()
    def draw() -> None:
        caches = [new_cache() for _ in range(benchmarks.GPT_LAYERS)]
        drawn = [model.read(text, caches)]
        for position in range(shape.text, length - 1):
            wide = (position // stride + 1) * stride
            seen = [(keys[:, :, :wide], values[:, :wide]) for keys, values in caches]
            drawn.append(step(drawn[-1], seen, torch.tensor([position])))
        assert len(drawn) == shape.drawn, len(drawn)

    return draw


class Paper(nn.Module):
    """The paper's transformer (§2.2, §B.1), with its row, column and convolutional patterns as dense masks."""

    def __init__(self) -> None:
        super().__init__()
        width, grid = benchmarks.PAPER_WIDTH, benchmarks.PAPER_GRID
        n_text = benchmarks.PAPER_TEXT_VOCAB + benchmarks.PAPER_TEXT  # one pad token per text position
        self.text, self.image = nn.Embedding(n_text, width), nn.Embedding(benchmarks.PAPER_IMAGE_VOCAB, width)
        self.text_start, self.image_start = (nn.Parameter(torch.randn(1, 1, width) * 0.02) for _ in range(2))
        self.text_position = nn.Parameter(torch.randn(benchmarks.PAPER_TEXT, width) * 0.02)
        self.row, self.column = (nn.Parameter(torch.randn(grid, width) * 0.02) for _ in range(2))
        self.blocks = nn.ModuleList(Block(width, benchmarks.PAPER_HEADS) for _ in range(benchmarks.PAPER_LAYERS))
        self.norm = nn.LayerNorm(width)
        self.text_head, self.image_head = nn.Linear(width, n_text), nn.Linear(width, benchmarks.PAPER_IMAGE_VOCAB)
        self.masks = [paper_mask(layer) for layer in range(1, benchmarks.PAPER_LAYERS + 1)]

    def loss(self, text: Tensor, image: Tensor) -> Tensor:
        """Returns 1/8 of the cross-entropy of `text` (B, 256) plus 7/8 of that of `image` (B, 1024)."""
        batch, n_text = text.shape
        text_in = torch.cat((self.text_start.expand(batch, 1, -1), self.text(text[:, :-1])), 1) + self.text_position
        place = (self.row[:, None] + self.column).flatten(0, 1)
        image_in = torch.cat((self.image_start.expand(batch, 1, -1), self.image(image[:, :-1])), 1) + place
        x = torch.cat((text_in, image_in), 1)
        for block, mask in zip(self.blocks, self.masks):
            x = block(x, mask)
        x = self.norm(x)
        text_logits, image_logits = self.text_head(x[:, :n_text]), self.image_head(x[:, n_text:])
        text_loss = F.cross_entropy(text_logits.flatten(0, 1), text.flatten())
        return text_loss / 8 + F.cross_entropy(image_logits.flatten(0, 1), image.flatten()) * 7 / 8


def paper_mask(layer: int) -> Tensor:
    """Returns the attention mask of `layer`, counted from 1: true where a query (row) attends to a key (column)."""
    grid, n_text = benchmarks.PAPER_GRID, benchmarks.PAPER_TEXT
    index = torch.arange(grid * grid)
    back = index[:, None] - index  # how far behind the query the key lies, in raster order
    if layer == benchmarks.PAPER_LAYERS:
        rows = (back + 5).div(grid, rounding_mode="floor")  # the convolution is 11×11
        sees = (back >= 0) & (rows <= 5) & ((back - rows * grid).abs() <= 5)
    elif (layer - 2) % 4 == 0:
        sees = (back >= 0) & (back % grid == 0)
    else:
        sees = (back >= 0) & (back <= grid)
    mask = torch.ones(n_text + grid * grid, n_text + grid * grid, dtype=torch.bool).tril()
    mask[n_text:, n_text:] = sees
    return mask


def paper_step(precision: str, *, compiled: bool = False) -> Callable[[], None]:
    model = Paper()
    text = torch.randint(benchmarks.PAPER_TEXT_VOCAB, (benchmarks.PAPER_BATCH, benchmarks.PAPER_TEXT))
    image = torch.randint(benchmarks.PAPER_IMAGE_VOCAB, (benchmarks.PAPER_BATCH, benchmarks.PAPER_GRID**2))
    return new_step(model, lambda: model.loss(text, image), precision, compiled=compiled)
