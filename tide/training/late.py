"""Values that a device has computed, read on the host later: nothing waits for the device until then."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Late(NamedTuple):
    """A copy of a few values in the host's memory. A GPU makes it in its turn, after the work before it."""

    values: Tensor
    copied: torch.cuda.Event | None

    @classmethod
    def of(cls, values: Tensor) -> Late:
        if values.device.type != "cuda":
            return cls(values, None)
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(values.device))
        return cls(host, copied)

    def read(self) -> Tensor:
        """The values, once the device has reached them."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.values
