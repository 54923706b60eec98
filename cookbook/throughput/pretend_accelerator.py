"""A CPU that is treated as an accelerator: which tensors would live on it, and who reads them (lesson 01)."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from cookbook.throughput.frames import place_of_call

READS: dict[Any, str] = {
    Tensor.item: "item()",
    Tensor.cpu: "cpu()",
    Tensor.numpy: "numpy()",
    Tensor.__array__: "numpy()",
    Tensor.tolist: "tolist()",
    Tensor.__bool__: "boolean test",
    Tensor.is_nonzero: "boolean test",
    torch.is_nonzero: "boolean test",
    Tensor.__contains__: "boolean test",
    Tensor.__float__: "float()",
    Tensor.__int__: "int()",
    Tensor.__index__: "int()",
    Tensor.__complex__: "complex()",
    Tensor.__repr__: "print",
    Tensor.__format__: "print",
}
OPERATIONS = {
    "aten::_local_scalar_dense": "item()",
    "aten::nonzero": "nonzero",
    "aten::masked_select": "masked indexing",
    "aten::_unique2": "unique",
    "aten::unique_dim": "unique",
    "aten::unique_consecutive": "unique",
    "aten::equal": "boolean test",
    "aten::allclose": "boolean test",
    "aten::bincount": "bincount",
}
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
ACROSS_DEVICES = (*INDEXING, "aten::copy_", "aten::_foreach_copy_")  # host tensors may stand beside device tensors
WRITTEN_OUT = re.compile(r"""\.to\([^)]*["']cpu["']""")


class PretendAccelerator:
    """A context that follows tensors and reports the reads that would wait for the device.

    A tensor is known by its storage, which views and in-place changes share.

    Args:
        device: the kind of device; on any but ``cpu`` a tensor's own device says whether it is on it.
        on_device: tensors, and modules with their parameters and buffers, to begin with.
        note: called with the kind of read, from within the call that caused it.
    """

    def __init__(self, device: str, on_device: Iterable[Tensor | nn.Module], note: Callable[[str], None]) -> None:
        self.device, self.note = device, note
        self.reading = self.silent = False
        self._storages: dict[int, StorageWeakRef] = {}
        self._prune_at = 1024
        for root in on_device:
            self.put(*([root] if isinstance(root, Tensor) else [*root.parameters(), *root.buffers()]))
        self._modes = contextlib.ExitStack()

    def __enter__(self) -> PretendAccelerator:
        self._modes.enter_context(_Operations(self))
        self._modes.enter_context(_Calls(self))
        return self

    def __exit__(self, *failure: object) -> None:
        self._modes.close()

    def put(self, *tensors: Tensor) -> None:
        """Let the tensors be on the device from now on."""
        for tensor in filter(_has_storage, tensors):
            reference = StorageWeakRef(tensor.untyped_storage())  # keeps the address from being used again
            self._storages[reference.cdata] = reference
        if len(self._storages) > self._prune_at:
            self._storages = {key: reference for key, reference in self._storages.items() if not reference.expired()}
            self._prune_at = 2 * len(self._storages) + 1024

    def holds(self, tensor: object) -> bool:
        """Say whether `tensor` is one on the device."""
        if not isinstance(tensor, Tensor) or self.device != "cpu":
            return isinstance(tensor, Tensor) and tensor.device.type == self.device
        if isinstance(tensor, nn.Parameter) or (tensor.requires_grad and tensor.is_leaf):
            return True
        return _has_storage(tensor) and StorageWeakRef(tensor.untyped_storage()).cdata in self._storages

    def follow(self, function: Any, args: Any, kwargs: Any, result: object) -> None:
        """Take note of one operation: does it read a value, and what is on the device after it?"""
        inputs = list(_tensors((args, kwargs)))
        schema = getattr(function, "_schema", None)
        if self.reading or schema is None or not any(map(self.holds, inputs)):
            return
        operation = OPERATIONS.get(schema.name)
        if schema.name in INDEXING and any(index.dtype in (torch.bool, torch.uint8) for index in _tensors(args[1])):
            operation = "masked indexing"
        if schema.name == "aten::repeat_interleave" and (kwargs or {}).get("output_size") is None:
            operation = "repeat_interleave"
        if operation is not None and not self.silent:
            self.note(operation)
        if schema.name not in ACROSS_DEVICES:
            self.put(*(tensor for tensor in inputs if tensor.ndim))
        self.put(*_tensors(result))


class _Calls(TorchFunctionMode):
    """Sees what the program asks of tensors, also where a CPU has nothing to do, as in ``.cpu()``."""

    def __init__(self, device: PretendAccelerator) -> None:
        super().__init__()
        self.accelerator = device

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        accelerator, kwargs = self.accelerator, kwargs or {}
        operation = READS.get(function)
        if function is Tensor.to:
            return self._move(args, kwargs)
        if operation is not None and accelerator.holds(args[0]):
            return self._read(operation, function, args, kwargs)
        if function is F.one_hot and (len(args) > 1 or "num_classes" in kwargs):
            with _while(accelerator, "silent"):  # only a CPU looks at the values then
                return function(*args, **kwargs)
        return function(*args, **kwargs)

    def _read(self, operation: str, function: Any, args: Any, kwargs: Any) -> Any:
        """Note the read, and let what happens inside of it neither count again nor be on the device."""
        accelerator = self.accelerator
        if not accelerator.silent:
            accelerator.note(operation)
        with _while(accelerator, "reading"):
            if accelerator.device == "cpu" and function in (Tensor.cpu, Tensor.to):
                copy = args[0].clone()
                return function(copy, *args[1:], **kwargs)
            return function(*args, **kwargs)

    def _move(self, args: Any, kwargs: Any) -> Any:
        """Tell a copy to the device from one to the host, which a CPU alone does not."""
        accelerator = self.accelerator
        target = next((value for value in (*args[1:2], kwargs.get("device")) if isinstance(value, str | torch.device)), None)
        kind = None if target is None else torch.device(target).type
        if accelerator.holds(args[0]):
            place = place_of_call()
            if kind == "cpu" and (accelerator.device != "cpu" or (not place.inside and WRITTEN_OUT.search(place.code))):
                return self._read("to('cpu')", Tensor.to, args, kwargs)
            return Tensor.to(*args, **kwargs)
        moved = Tensor.to(*args, **kwargs)
        if accelerator.device == "cpu" and isinstance(target, torch.device) and kind == "cpu":
            moved = moved.clone() if moved is args[0] else moved  # what stays on the host is another tensor
            accelerator.put(moved)
        return moved


class _Operations(TorchDispatchMode):
    """Sees every operation below autograd, in the backward pass and in optimizers too."""

    def __init__(self, device: PretendAccelerator) -> None:
        super().__init__()
        self.accelerator = device

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.accelerator.follow(function, args, kwargs, result)
        return result


@contextlib.contextmanager
def _while(accelerator: PretendAccelerator, flag: str) -> Iterator[None]:
    before = getattr(accelerator, flag)
    setattr(accelerator, flag, True)
    try:
        yield
    finally:
        setattr(accelerator, flag, before)


def _has_storage(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided


def _tensors(values: object) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and dictionaries."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
