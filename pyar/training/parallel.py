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


@contextlib.contextmanager
def process_group(device_type: str) -> Iterator[Group]:
    """The group that torchrun's environment variables describe (gloo on the CPU, NCCL on GPUs), or a group of one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group()
        return
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # Default arguments in there hold the group that exists when it is first imported, which an optimiser does. A group
    # that is still held at exit has threads that may reach for the interpreter while it goes, and abort the process.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
        dist.barrier()  # a process that leaves while others still talk to it can bring them down
    finally:
        dist.destroy_process_group()


def environment_rank() -> tuple[int, int]:
    """(rank, number of processes) of torchrun's environment, (0, 1) without it; needs no communication."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
