"""Several processes that train one model: each has a part of the batch, then gradients are added
up.

One thread per process is deliberate. Threads inside an operation wait for each other hundreds of
times per step, so on a machine that has other work they mostly wait; processes wait once per step.
(Measured on two cores shared with other load: 1.0k tokens/s with two threads, 2.4k with two
processes.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, distributed


class Team:
    """The processes of one run; a team of one needs no communication and makes none."""

    def __init__(self, rank: int = 0, size: int = 1, meeting_file: Path | None = None) -> None:
        self.rank = rank
        self.size = size
        if size > 1:
            if meeting_file is None:
                raise ValueError(f"a team of {size} processes needs a file to meet at")
            distributed.init_process_group(
                "gloo", init_method=f"file://{meeting_file}", rank=rank, world_size=size
            )

    def owns(self, index: int) -> bool:
        """Return whether this process takes item `index` of a list that is dealt out in turn."""
        return index % self.size == self.rank

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each float32 tensor by its sum over all processes, in place and in one
        message.
        """
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        with torch.no_grad():
            for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Give every process the tensors of their owners (see `owns`), in place.

        A sum in which all but one term are zero is exact, so one kind of message is enough.
        """
        if self.size == 1:
            return
        with torch.no_grad():
            for index, tensor in enumerate(tensors):
                if not self.owns(index):
                    tensor.zero_()
            self.add_up(tensors)

    def leave(self) -> None:
        """End the communication."""
        if self.size > 1:
            distributed.destroy_process_group()
