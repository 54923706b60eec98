"""Narrow integers in as many bits as they need, or entropy-coded, in one file (lesson 05)."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import zstandard
from torch import Tensor

from cookbook.errors import CheckpointError, UsageError
from cookbook.files import atomic_path

Coding = Literal["bits", "entropy"]

MAGIC = b"COOKBOOK-PACKED1"
DIGEST = hashlib.sha256().digest_size
LENGTH = 8  # bytes in which the length of the header is written
LEVEL = 19  # of zstandard, whose decoder is as fast at every level
FLOATS = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
INTEGERS = {"int8": torch.int8, "uint8": torch.uint8, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64}
DTYPES = {**FLOATS, **INTEGERS, "bool": torch.bool}
NARROW = (torch.int8, torch.uint8)  # dtypes of quantized weights; others are stored as they are


def pack(values: Tensor, bits: int) -> bytes:
    """Return integers in `bits` bits each, the first in the highest bits of the first byte.

    Args:
        values: any integer dtype and shape, in the range of `bits`-bit two's complement.
        bits: 1 to 8.

    Raises:
        UsageError: the bits are none of these, or a value does not fit.
    """
    _require_bits(bits)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if values.is_floating_point() or values.dtype is torch.bool:
        raise UsageError(f"The values are {values.dtype}: quantize them to integers before packing.")
    flat = values.detach().cpu().reshape(-1).to(torch.int64).numpy()
    if flat.size and not low <= flat.min() <= flat.max() <= high:
        raise UsageError(
            f"The values run from {flat.min()} to {flat.max()}, but {bits} bits hold {low} to {high}: use more bits."
        )
    rows = np.unpackbits((flat & 0xFF).astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
    return np.packbits(rows.reshape(-1)).tobytes()


def unpack(data: bytes, bits: int, count: int) -> Tensor:
    """Return the `count` integers that `pack` wrote, int8 (count,).

    Raises:
        UsageError: the bits are not 1 to 8, or the data has not the length of that many values.
    """
    _require_bits(bits)
    expected = packed_length(count, bits)
    if len(data) != expected:
        raise UsageError(f"{count} values of {bits} bits take {expected} bytes, not {len(data)}: pass what pack returned.")
    rows = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits).reshape(count, bits)
    weights = 1 << np.arange(bits - 1, -1, -1)
    weights[0] = -weights[0]  # two's complement
    return torch.from_numpy((rows @ weights).astype(np.int8))


def packed_length(count: int, bits: int) -> int:
    """Return the bytes that `count` values of `bits` bits take."""
    return math.ceil(count * bits / 8)


def narrowest(values: Tensor) -> int:
    """Return the bits in which two's complement holds every value: 1 to 8 for int8, more where the values need it."""
    if not values.numel():
        return 1
    low, high = int(values.min()), int(values.max())
    return next(bits for bits in range(1, 65) if -(2 ** (bits - 1)) <= low and high <= 2 ** (bits - 1) - 1)


def save_packed(
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    coding: Coding = "bits",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write tensors atomically into one file in which narrow integers take no more room than they need.

    int8 and uint8 tensors are stored in the fewest bits that hold their values: three for weights between −3 and 3.
    With ``entropy`` each of them is compressed by zstandard as well, packed or a byte a value, whichever is smaller; it pays
    where some values are frequent, as zero is. Everything else is stored as it is. What `load_packed` returns is equal to
    what was written, bit for bit. The size of the file, and nothing else, is what such a model weighs on disk; a
    runtime needs the integers unpacked.

    The file holds a magic word, a SHA-256 digest of all that follows, the length of the header, a JSON header with
    name, dtype, shape, coding and place of each tensor, and their bytes. Nothing in it is executed.

    Args:
        tensors: by name, such as the ``state_dict()`` of a converted graph. Any dtype of floats, integers and bool.
        path: of the file.
        coding: ``bits`` or ``entropy``.
        metadata: strings to keep with them.

    Returns:
        The path.

    Raises:
        UsageError: there is no such coding, or a tensor has a dtype that cannot be stored.
        CheckpointError: the file cannot be written.
    """
    if coding not in get_args(Coding):
        raise UsageError(f"coding is {coding!r}: use {' or '.join(get_args(Coding))}.")
    entries: dict[str, dict[str, Any]] = {}
    parts: list[bytes] = []
    offset = 0
    for name, tensor in tensors.items():
        entry, data = _encode(name, tensor.detach().cpu().contiguous(), coding)
        entries[name] = {**entry, "offset": offset, "length": len(data)}
        parts.append(data)
        offset += len(data)
    header = json.dumps({"tensors": entries, "metadata": dict(metadata or {})}, separators=(",", ":")).encode()
    body = len(header).to_bytes(LENGTH, "little") + header + b"".join(parts)
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(MAGIC + hashlib.sha256(body).digest() + body)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error}): check the folder, its rights and the free space."
        ) from error
    return Path(path)


def load_packed(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a file that `save_packed` wrote, on the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, damaged or of another kind.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"There is no file {file}: write it with save_packed first, or check the path.")
    data = file.read_bytes()
    if data[: len(MAGIC)] != MAGIC:
        raise CheckpointError(f"{file} is not a file of packed tensors: pass one that save_packed wrote.")
    body = data[len(MAGIC) + DIGEST :]
    if hashlib.sha256(body).digest() != data[len(MAGIC) : len(MAGIC) + DIGEST]:
        raise CheckpointError(f"{file} is truncated or damaged: restore it or write it again.")
    start = LENGTH + int.from_bytes(body[:LENGTH], "little")
    try:
        header = json.loads(body[LENGTH:start])
        payload = body[start:]
        tensors = {name: _decode(entry, payload) for name, entry in header["tensors"].items()}
        return tensors, {str(key): str(value) for key, value in header["metadata"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, zstandard.ZstdError) as error:
        raise CheckpointError(
            f"{file} has a header that does not fit its data ({type(error).__name__}): write it again."
        ) from error


def _encode(name: str, tensor: Tensor, coding: Coding) -> tuple[dict[str, Any], bytes]:
    """Return what the header says about a tensor, and its bytes."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UsageError(f"{name} is of {tensor.dtype}, which cannot be packed: convert it to one of {', '.join(DTYPES)}.")
    entry: dict[str, Any] = {"dtype": dtype, "shape": list(tensor.shape)}
    plain = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    if tensor.dtype not in NARROW:
        return entry, plain
    bits = narrowest(tensor)
    candidates = [({"bits": bits}, pack(tensor, bits))] if bits <= 8 else [({}, plain)]
    if coding == "entropy":
        compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
        for extra, data in (*candidates, ({}, plain)):
            candidates.append(({**extra, "zstd": len(data)}, compressor.compress(data)))
    extra, data = min(candidates, key=lambda candidate: len(candidate[1]))
    return entry | extra, data


def _decode(entry: dict[str, Any], payload: bytes) -> Tensor:
    """Return a tensor from its entry in the header; a wrong entry raises one of the kinds that `load_packed` names."""
    dtype, shape = DTYPES[entry["dtype"]], [int(size) for size in entry["shape"]]
    start, length = int(entry["offset"]), int(entry["length"])
    data = payload[start : start + length]
    if start < 0 or len(data) != length or min(shape, default=0) < 0:
        raise ValueError("a tensor lies outside of the file")
    count = math.prod(shape)
    bits = entry.get("bits")
    size = packed_length(count, bits) if bits else count * dtype.itemsize
    if "zstd" in entry:
        data = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    if len(data) != size:
        raise ValueError("a tensor has another length than its shape")
    if bits:
        return unpack(data, bits, count).to(dtype).reshape(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def _require_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise UsageError(f"bits is {bits}: use 1 to 8.")
