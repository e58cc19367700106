"""Trains the GPT of `gpt-step` in several processes with PyTorch's DistributedDataParallel over gloo.

    torchrun --nproc-per-node 2 ddp.py --powersgd 4
    ../../runs/network.sh 2 100mbit none -- python ddp.py --powersgd 4

Each process computes on one thread. `--powersgd` compresses gradients with PyTorch's hook. Process 0 prints one JSON
object: tokens/s of all processes together, from the median step; the bytes that a process sends per step, by the
counter of its network interface (GLOO_SOCKET_IFNAME, or lo); and the loss on a new batch after the last step.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as powersgd
from torch.nn.parallel import DistributedDataParallel

import benchmarks
import torch_gpt

WARM_UP = 5  # steps before the measurement; in the first two, DDP arranges its buckets and compresses nothing
UNCOMPRESSED = 2  # the fewest steps that the hook permits
ONE_BUCKET = 1024  # MiB
ALPHABET = 256  # how many tokens of the vocabulary occur
NOISE = 10  # one token in this many is random; the others follow from the token before them


def main() -> None:
    options = parse()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    result = train(options)
    if dist.get_rank() == 0:
        print(json.dumps(result))
    dist.destroy_process_group()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the GPT of gpt-step with DistributedDataParallel over gloo")
    parser.add_argument("--steps", type=int, default=30, help=f"updates, the first {WARM_UP} of which are not measured")
    parser.add_argument("--powersgd", type=int, default=0, help="the rank of compressed gradients; 0: exact gradients")
    parser.add_argument("--batch", type=int, default=benchmarks.GPT_BATCH, help="sequences of each process")
    parser.add_argument("--precision", choices=benchmarks.BOTH, default="f32")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.steps <= WARM_UP or options.batch < 1 or options.powersgd < 0:
        parser.error(f"wanted more than {WARM_UP} steps, a batch of 1 or more, and a rank of 0 or more")
    return options


def train(options: argparse.Namespace) -> dict[str, object]:
    """Returns what process 0 prints.

    PowerSGD has all gradients in one bucket. With several, the hook sends from callbacks whose order differs between
    processes; gloo then pairs messages of different buckets, and the processes end with an error.
    """
    torch.manual_seed(options.seed)
    gpt = torch_gpt.Gpt(benchmarks.GPT_LENGTH)
    model = DistributedDataParallel(gpt, bucket_cap_mb=ONE_BUCKET if options.powersgd else None)
    if options.powersgd:
        state = powersgd.PowerSGDState(None, options.powersgd, start_powerSGD_iter=UNCOMPRESSED)
        model.register_comm_hook(state, powersgd.powerSGD_hook)
    batches = iter([batch(options.seed, step, options.batch) for step in range(options.steps + 1)])
    step = torch_gpt.new_step(model, lambda: loss(model, next(batches)), options.precision)
    for _ in range(WARM_UP):
        step()
    seconds, sent = measure(step, options.steps - WARM_UP)
    with torch.no_grad():
        final = loss(model.module, next(batches)).item()
    tokens = dist.get_world_size() * options.batch * benchmarks.GPT_LENGTH
    return {
        **vars(options),
        "processes": dist.get_world_size(),
        "tokens_per_second": tokens / seconds,
        "bytes_per_step": mean(sent),
        "loss": mean(final),
    }


def measure(step: Callable[[], None], times: int) -> tuple[float, float]:
    """Returns the median seconds of a step, and the bytes that this process sends in one."""
    dist.barrier()
    before, seconds = sent_bytes(), []
    for _ in range(times):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    dist.barrier()
    return statistics.median(seconds), (sent_bytes() - before) / times


def sent_bytes() -> float:
    """Returns the counter of the interface. What all processes send counts on lo, so each has its part of that."""
    interface = os.environ["GLOO_SOCKET_IFNAME"]
    count = int(Path(f"/sys/class/net/{interface}/statistics/tx_bytes").read_text())
    return count / dist.get_world_size() if interface == "lo" else count


def mean(value: float) -> float:
    """Returns the mean over all processes."""
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


def loss(model: nn.Module, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def batch(seed: int, step: int, size: int) -> Tensor:
    """Returns this process's part of the batch of all, (size, GPT_LENGTH + 1).

    A token depends on (seed, step, slot, position) alone. A sequence has one slot in the batch of all processes.
    """
    slots = np.arange(size, dtype=np.uint64) + np.uint64(dist.get_rank() * size)
    sequence = (np.uint64((seed << 40) + (step << 16)) + slots) << np.uint64(10)
    noise = mix(sequence[:, None] + np.arange(benchmarks.GPT_LENGTH + 1, dtype=np.uint64))
    tokens = ((noise >> np.uint64(32)) % np.uint64(ALPHABET)).astype(np.int64)
    for position in range(1, benchmarks.GPT_LENGTH + 1):
        follows = noise[:, position] % np.uint64(NOISE) != 0
        tokens[follows, position] = (5 * tokens[follows, position - 1] + 1) % ALPHABET
    return torch.from_numpy(tokens)


def mix(x: np.ndarray) -> np.ndarray:
    """Returns the output of SplitMix64 for the states `x`: 64 bits that look random."""
    x = x * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


if __name__ == "__main__":
    main()
