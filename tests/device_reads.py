"""How often a program waits for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# What does not go through the dispatcher on a CPU.
COPIES = ("tolist", "numpy", "cpu")


class CountReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often numbers of a tensor are asked for, which waits for the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))

    def __enter__(self) -> CountReads:
        self._originals = {name: getattr(Tensor, name) for name in COPIES}
        for name, original in self._originals.items():
            setattr(Tensor, name, self._counting(original))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for name, original in self._originals.items():
            setattr(Tensor, name, original)

    def _counting(self, original: Any) -> Any:
        def read(tensor: Tensor, *words: Any) -> Any:
            self.count += 1
            return original(tensor, *words)

        return read
