"""The same PyTorch through `torch.compile`, which needs a C++ compiler at run time and warms up for half a minute."""

from collections.abc import Callable

import torch_dvae
import torch_gpt
import works


def build(work: str, precision: str) -> tuple[Callable[[], None], int]:
    """One repetition of `work`, and how many times it does it."""
    match work:
        case "gpt-step":
            return torch_gpt.gpt_step(precision, compiled=True), 1
        case "paper-step":
            return torch_gpt.paper_step(precision, compiled=True), 1
        case "dvae-step":
            return torch_dvae.dvae_step(precision, compiled=True), 1
        case _:
            return torch_gpt.decode(works.decode_shape(work), precision, compiled=True), 1
