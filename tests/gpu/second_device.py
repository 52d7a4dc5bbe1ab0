"""A device that is none: tensors in the memory of the CPU that behave as if on another device.

Inside `SecondDevice()` a tensor moved or made on `cuda` is marked, what is computed from it is
marked too, and where PyTorch with a real GPU would refuse to mix devices, or to hand a tensor to
NumPy, an error is raised. Values are real, so code that looks at them runs as well.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

SECOND = torch.device("cuda", 0)
CPU = torch.device("cpu")
_INDEXING = (Tensor.__getitem__, Tensor.__setitem__)
_TO_NUMPY = (Tensor.numpy, Tensor.__array__)
_ACROSS = (Tensor.copy_, torch._has_compatible_shallow_copy_type)
"""What may be given tensors of both; a copy stays where it is copied to."""
_TO_PYTHON = (
    Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__,
    Tensor.__format__, Tensor.__repr__,
)  # fmt: skip


class OtherDeviceError(RuntimeError):
    """Tensors of two devices met, or one was given to NumPy."""


class SecondDevice(TorchFunctionMode):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self._marked: dict[int, weakref.ref[Tensor]] = {}

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is on the second device."""
        found = self._marked.get(id(tensor))
        return found is not None and found() is tensor

    def _mark(self, tensor: Tensor) -> None:
        self._marked[id(tensor)] = weakref.ref(tensor)

    def _unmark(self, tensor: Tensor) -> None:
        self._marked.pop(id(tensor), None)

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        here = [self.holds(x) for x in tensors]
        name = getattr(func, "__name__", "")
        owner = getattr(func, "__self__", None)
        if owner is Tensor.device:
            return SECOND if here[0] else CPU
        if owner in (Tensor.is_cuda, Tensor.is_cpu):
            return here[0] == (owner is Tensor.is_cuda)
        if owner is Tensor.data and name == "__set__":
            result = func(*args, **kwargs)
            (self._mark if here[1] else self._unmark)(args[0])
            return result
        if func in _ACROSS:
            return func(*args, **kwargs)
        if func in _TO_NUMPY and here[0]:
            raise OtherDeviceError("a tensor of the second device is given to NumPy")
        if func in (Tensor.cpu, Tensor.cuda, Tensor.to):
            return self._move(func, args, kwargs)
        wanted = kwargs.get("device")
        if wanted is not None:
            kwargs["device"] = CPU
            marked = torch.device(wanted).type == SECOND.type
        else:
            marked = any(here)
            self._refuse_a_mixture(func, tensors, here)
        result = func(*args, **kwargs)
        if func not in _TO_PYTHON:
            for one in tree_leaves(result):
                if isinstance(one, Tensor):
                    (self._mark if marked else self._unmark)(one)
        return result

    def _refuse_a_mixture(self, func: Callable, tensors: list[Tensor], here: list[bool]) -> None:
        # A number in a tensor may be on the CPU, and so may an index.
        if func in _INDEXING:
            mixed = not here[0] and any(here[1:])
        else:
            sized = [on for tensor, on in zip(tensors, here, strict=True) if tensor.dim()]
            mixed = any(here) and not all(sized)
        if mixed:
            raise OtherDeviceError(f"{getattr(func, '__name__', func)}: tensors on two devices")

    def _move(self, func: Callable, args: Any, kwargs: dict[str, Any]) -> Tensor:
        tensor = args[0]
        target = self.holds(tensor)
        if func is not Tensor.to:
            target = func is Tensor.cuda
        kept: list[Any] = []
        for one in [*args[1:], *([kwargs.pop("device")] if kwargs.get("device") else [])]:
            if isinstance(one, Tensor):
                target = self.holds(one)
                kept.append(one.dtype)
            elif isinstance(one, (str, torch.device)):
                target = torch.device(one).type == SECOND.type
            elif one is not None:
                kept.append(one)
        kwargs.pop("non_blocking", None)
        options = [x for x in kept if not isinstance(x, bool)]
        moved = Tensor.to(tensor, *options, **kwargs) if options or kwargs else tensor
        if target != self.holds(tensor):
            if moved is tensor:
                moved = tensor.clone()
            elif moved.data_ptr() == tensor.data_ptr():
                moved = moved.clone()
        (self._mark if target else self._unmark)(moved)
        return moved

    def every(self, value: Any) -> Iterator[bool]:
        """For each tensor of a nested value whether it is on the second device."""
        return (self.holds(x) for x in tree_leaves(value) if isinstance(x, Tensor))


def moved(value: Any, device: str) -> Any:
    """A nested value with its tensors on a device."""
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, value)
