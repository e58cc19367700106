"""The same PyTorch through `torch.compile`, which needs a C++ compiler at run time and warms up for half a minute."""

from collections.abc import Callable

import torch_dvae
import torch_gpt
import benchmarks


def build(benchmark: str, precision: str) -> tuple[Callable[[], None], int]:
    """One repetition of `benchmark`, and how many times it does it."""
    match benchmark:
        case "gpt-step":
            return torch_gpt.gpt_step(precision, compiled=True), 1
        case "paper-step":
            return torch_gpt.paper_step(precision, compiled=True), 1
        case "dvae-step":
            return torch_dvae.dvae_step(precision, compiled=True), 1
        case _:
            return torch_gpt.decode(benchmarks.decode_shape(benchmark), precision, compiled=True), 1
