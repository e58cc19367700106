"""PyTorch as a peer: its matrix products and convolutions, and Tessera's architectures written plainly in it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

import torch_dvae
import torch_gpt
import benchmarks

GEMM_TIMES, CONV_TIMES = 50, 10  # a repetition runs these short benchmarks this many times


def build(benchmark: str, precision: str) -> tuple[Callable[[], None], int]:
    """Returns a function that does one repetition of `benchmark`, and how often that repeats the work."""
    match benchmark:
        case "gemm":
            return gemm(precision), GEMM_TIMES
        case "conv":
            return conv(precision), CONV_TIMES
        case "gpt-step":
            return torch_gpt.gpt_step(precision), 1
        case "paper-step":
            return torch_gpt.paper_step(precision), 1
        case "dvae-step":
            return torch_dvae.dvae_step(precision), 1
        case "released-decoder":
            return torch_dvae.released_decoder(precision), 1
        case _:
            return torch_gpt.decode(benchmarks.decode_shape(benchmark), precision), 1


def gemm(precision: str) -> Callable[[], None]:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(benchmarks.GEMM_SIDE, benchmarks.GEMM_SIDE).to(dtype) for _ in range(2))

    def products() -> None:
        for _ in range(GEMM_TIMES):
            a @ b

    return products


def conv(precision: str) -> Callable[[], None]:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    channels = benchmarks.CONV_CHANNELS
    shapes = (benchmarks.CONV_BATCH, channels, benchmarks.CONV_SIDE, benchmarks.CONV_SIDE), (channels, channels, 3, 3)
    x, weight = (torch.randn(shape).to(dtype=dtype, memory_format=torch.channels_last) for shape in shapes)
    x.requires_grad_(), weight.requires_grad_()
    toward = torch.randn(shapes[0]).to(dtype=dtype, memory_format=torch.channels_last)

    def passes() -> None:
        for _ in range(CONV_TIMES):
            torch.autograd.grad(F.conv2d(x, weight, padding=1), (x, weight), toward)

    return passes
