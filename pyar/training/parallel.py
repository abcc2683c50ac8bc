"""Data-parallel training under torchrun: who takes which examples, and the sums over all processes."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """The processes of a run; `rank` 0 writes the files and draws the progress."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of `count` rows: contiguous, in order of rank, sizes that differ by one at most."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast_(self, tensor: Tensor) -> Tensor:
        """Rank 0's values in every process, in place."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def broadcast_text(self, text: str) -> str:
        """Rank 0's text in every process."""
        if self.size == 1:
            return text
        box = [text]
        dist.broadcast_object_list(box, src=0)
        return box[0]


class LaunchError(ValueError):
    """The environment describes no group of processes; the message says which variable is wrong."""


@contextlib.contextmanager
def process_group(device_type: str) -> Iterator[Group]:
    """The group that torchrun's environment variables describe (gloo on the CPU, NCCL on GPUs), or a group of one."""
    rank, size = environment_rank()
    if size == 1:
        yield Group()
        return
    if device_type == "cuda":
        torch.cuda.set_device(_number("LOCAL_RANK") or 0)
    # Default arguments in there hold the group that exists when it is first imported, which an optimiser does. A group
    # that is still held at exit has threads that may reach for the interpreter while it goes, and abort the process.
    importlib.import_module("torch.distributed.nn.functional")
    try:
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo", rank=rank, world_size=size)
    except (ValueError, RuntimeError) as error:  # MASTER_ADDR or MASTER_PORT is missing, or nobody answers there
        raise LaunchError(f"process {rank} of {size} found no group: {error}; start with torchrun") from error
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
        dist.barrier()  # a process that leaves while others still talk to it can bring them down
    finally:
        dist.destroy_process_group()


def environment_rank() -> tuple[int, int]:
    """(rank, number of processes) of torchrun's environment, (0, 1) without it; needs no communication.

    torchrun sets RANK and WORLD_SIZE. One without the other, or an empty one, is no group: clusters and containers set
    WORLD_SIZE for other purposes, and one process must not take itself for a part of several.

    Raises:
        LaunchError: they are not numbers, or do not fit each other.
    """
    rank, size = _number("RANK"), _number("WORLD_SIZE")
    if rank is None or size is None:
        return 0, 1
    if not 0 <= rank < size:
        raise LaunchError(f"RANK should be 0 … WORLD_SIZE − 1, but RANK is {rank} and WORLD_SIZE {size}")
    return rank, size


def _number(name: str) -> int | None:
    """The integer in an environment variable; None if it is not set, or empty."""
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise LaunchError(f"the environment variable {name} should be a number, but is {text!r}") from None
