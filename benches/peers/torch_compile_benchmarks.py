"""The same PyTorch code with `torch.compile`, which needs a C++ compiler at run time and half a minute to warm up."""

from collections.abc import Callable

import torch_dvae
import torch_gpt
import benchmarks


def build(benchmark: str, precision: str) -> tuple[Callable[[], None], int]:
    """Returns a function that does one repetition of `benchmark`, and how often that repeats the work."""
    match benchmark:
        case "gpt-step":
            return torch_gpt.gpt_step(precision, compiled=True), 1
        case "paper-step":
            return torch_gpt.paper_step(precision, compiled=True), 1
        case "dvae-step":
            return torch_dvae.dvae_step(precision, compiled=True), 1
        case _:
            return torch_gpt.decode(benchmarks.decode_shape(benchmark), precision, compiled=True), 1
