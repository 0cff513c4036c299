"""Several processes under torchrun: who am I, which samples are mine, and sums over all."""

from __future__ import annotations

import atexit
import dataclasses
import gc
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .._errors import InputError


@dataclasses.dataclass(frozen=True)
class World:
    """This process among `size` ones; alone it is rank 0 of 1."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> World:
        """Join the group torchrun has set up in the environment; alone where there is none.

        Raises:
            InputError: the environment names a world larger than one and not where to meet.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if "MASTER_ADDR" not in os.environ or "RANK" not in os.environ:
            raise InputError(
                f"WORLD_SIZE is {size}, and RANK or MASTER_ADDR is not set. Start with "
                "`torchrun --nproc-per-node=N -m pyode train ...`, or unset WORLD_SIZE."
            )
        if not dist.is_initialized():
            dist.init_process_group("gloo")
            # else its threads are still there when the interpreter ends: now and then an abort
            atexit.register(_leave)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, index: Tensor) -> tuple[Tensor, float]:
        """This process's samples of a batch, and what their mean loss is to be multiplied by.

        The average over the processes of (factor × mean over a share) is the mean over the batch.
        A share may not be empty: it then is one sample of factor zero.
        """
        mine = index[self.rank :: self.size]
        if len(mine) == 0:
            return index[:1], 0.0
        return mine, self.size * len(mine) / len(index)

    def mean(self, *values: float) -> list[float]:
        """Means of numbers over the processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return (total / self.size).tolist()

    def tell(self, value: Any) -> Any:
        """What the first process passes, to all."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over the processes."""
        if self.size == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)

    def leave(self) -> None:
        """Leave the group; to be called once all is done."""
        if self.size > 1:
            _leave()


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()  # a wrapped module, which is part of a cycle, holds the group and its threads
