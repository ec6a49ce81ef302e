"""Data-parallel training with a global contrastive loss: each process encodes its part, all see the whole step's vectors.

Vectors are gathered with their gradients, so the loss and its gradient are those of one process with the same global batch.
Batch norms are the exception on CPUs, where each process normalises its own part; on GPUs they are synchronised.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tasks.encoder.train.towers import device


class ProcessGroup:
    """This process among the `world` processes of a torchrun; a group of one outside of torchrun."""

    def __init__(self) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if together else 0
        self.world = distributed.get_world_size() if together else 1
        self.device = torch.device("cuda", torch.cuda.current_device()) if together and torch.cuda.is_available() else device()
        self.wrapped: DistributedDataParallel | None = None

    @property
    def first(self) -> bool:
        """Whether this is the main process (rank 0), which writes and logs."""
        return self.rank == 0

    def local_slice(self, count: int) -> slice:
        """The slice of `count` items that this process works on."""
        return self._slice(count, self.rank)

    def _slice(self, count: int, rank: int) -> slice:
        return slice(count * rank // self.world, count * (rank + 1) // self.world)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module wrapped in DistributedDataParallel when there are several processes."""
        if self.world == 1:
            return module
        if self.device.type == "cuda":
            from timm.layers import convert_sync_batchnorm

            convert_sync_batchnorm(module)
        ids = [self.device.index] if self.device.type == "cuda" else None
        self.wrapped = DistributedDataParallel(module, device_ids=ids, find_unused_parameters=True)
        return self.wrapped

    def no_sync(self) -> AbstractContextManager:
        """Context without gradient synchronisation: for all but the last part of an accumulated step."""
        return self.wrapped.no_sync() if self.wrapped is not None else nullcontext()

    def all_gather(self, rows: Tensor, count: int, each: int = 1) -> Tensor:
        """Rows (count * each, d) of the whole step, gathered with gradients from each process's `local_slice` of `count` items."""
        if self.world == 1:
            return rows
        parts = [self._slice(count, rank) for rank in range(self.world)]
        sizes = [(p.stop - p.start) * each for p in parts]
        padded = torch.cat([rows, rows.new_zeros((max(sizes) - len(rows), *rows.shape[1:]))])
        return torch.cat([found[:size] for found, size in zip(_AllGather.apply(padded), sizes, strict=True)])

    def wait(self) -> None:
        """Barrier."""
        if self.world > 1:
            distributed.barrier()

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Runs the block on the main process first, so the others find its results."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()


class _AllGather(torch.autograd.Function):
    """All-gather with gradients: a tensor's gradient is the sum over all processes."""

    @staticmethod
    def forward(context: Any, own: Tensor) -> tuple[Tensor, ...]:
        parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, own.contiguous())
        return tuple(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        together = torch.stack(gradients)
        distributed.all_reduce(together)
        return together[distributed.get_rank()]
