"""Packed integers: lossless at every width, as small as arithmetic says, refused when damaged."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cookbook.errors import CheckpointError, UsageError
from cookbook.quantization import packing
from cookbook.quantization.packing import load_packed, narrowest, pack, save_packed, unpack


def by_hand(values: list[int], bits: int) -> bytes:
    """The same bytes through a string of zeros and ones."""
    digits = "".join(format(value % 2**bits, f"0{bits}b") for value in values)
    digits += "0" * (-len(digits) % 8)
    return bytes(int(digits[start : start + 8], 2) for start in range(0, len(digits), 8))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 31, 257])
def test_round_trip_equals_packing_by_hand(bits: int, count: int) -> None:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    values = torch.randint(low, high + 1, (count,), dtype=torch.int8, generator=torch.Generator().manual_seed(count))
    data = pack(values, bits)
    assert data == by_hand(values.tolist(), bits)
    assert len(data) == math.ceil(count * bits / 8)
    assert torch.equal(unpack(data, bits, count), values)


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_value_of_a_width_survives(bits: int) -> None:
    every = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=torch.int16)
    assert torch.equal(unpack(pack(every, bits), bits, len(every)), every.to(torch.int8))
    assert narrowest(every) == bits
    with pytest.raises(UsageError, match="use more bits"):
        pack(every + 1, bits)


def weights(bits: int, shape: tuple[int, ...] = (16, 9, 3, 3), spread: float = 0.4) -> Tensor:
    top = 2 ** (bits - 1) - 1
    values = torch.randn(shape, generator=torch.Generator().manual_seed(bits)) * top * spread
    integers = values.round().clamp(-top, top).to(torch.int8)
    integers.view(-1)[0] = top
    return integers


def state(bits: int) -> dict[str, Tensor]:
    return {
        "weight": weights(bits), "scale": torch.rand(16), "zero_point": torch.zeros(16, dtype=torch.int64),
        "unsigned": torch.arange(256, dtype=torch.uint8), "flag": torch.tensor([True, False]), "empty": torch.zeros(0, 3),
        "nothing": torch.zeros(0, dtype=torch.int8), "scalar": torch.tensor(2.5), "half": torch.rand(3).bfloat16(),
        "columns": torch.rand(4, 6).T,
    }  # fmt: skip


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("coding", ["bits", "entropy"])
def test_a_file_gives_back_what_was_written(tmp_path: Path, bits: int, coding) -> None:
    written = state(bits)
    path = save_packed(written, tmp_path / "model.packed", coding=coding, metadata={"scheme": f"{bits}-bit"})
    read, metadata = load_packed(path)
    assert metadata == {"scheme": f"{bits}-bit"}
    assert list(read) == list(written)
    for name, tensor in written.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read[name], tensor)
    assert [file.name for file in tmp_path.iterdir()] == ["model.packed"]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_file_is_as_small_as_the_bits_say_and_smaller_than_the_entropy_allows_for_bits(tmp_path: Path, bits: int) -> None:
    tensor = weights(bits, (64, 64, 3, 3), spread=0.3)
    packed = save_packed({"weight": tensor}, tmp_path / "bits").stat().st_size
    coded = save_packed({"weight": tensor}, tmp_path / "entropy", coding="entropy").stat().st_size
    exact = math.ceil(tensor.numel() * bits / 8)
    assert exact < packed < exact + 300  # magic, digest and header
    shares = torch.bincount(tensor.flatten().long() + 8).double() / tensor.numel()
    entropy = -float((shares[shares > 0] * shares[shares > 0].log2()).sum()) * tensor.numel() / 8
    assert entropy < coded < packed
    assert coded < 1.15 * entropy + 300


def test_what_entropy_coding_cannot_make_smaller_is_not_made_larger(tmp_path: Path) -> None:
    noise = torch.randint(-128, 128, (20_000,), dtype=torch.int8)
    plain = save_packed({"noise": noise}, tmp_path / "bits").stat().st_size
    assert save_packed({"noise": noise}, tmp_path / "entropy", coding="entropy").stat().st_size == plain


@pytest.mark.parametrize("keep", [0, 5, 30, 57, 0.3, 0.9, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: float) -> None:
    path = save_packed(state(4), tmp_path / "model.packed", coding="entropy")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"truncated or damaged|not a file of packed tensors") as error:
        load_packed(path)
    assert "\n" not in str(error.value)


def test_any_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = save_packed({"weight": weights(3, (4, 5))}, tmp_path / "model.packed")
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match=r"restore it|that save_packed wrote"):
            load_packed(path)


@pytest.mark.parametrize("change", [
    {"shape": [3, 3]}, {"shape": [-1]}, {"dtype": "object"}, {"offset": -4}, {"length": 1 << 40}, {"bits": 3}, {"bits": "x"},
    {"zstd": 10}, {"shape": None}, {"shape": [1 << 60, 0]},
])  # fmt: skip
def test_a_header_that_lies_is_refused_even_with_a_right_digest(tmp_path: Path, change: dict[str, object]) -> None:
    path = save_packed({"weight": weights(4, (5, 5))}, tmp_path / "model.packed")
    data = path.read_bytes()
    first = len(packing.MAGIC) + packing.DIGEST
    length, start = int.from_bytes(data[first : first + 8], "little"), first + 8
    header = json.loads(data[start : start + length])
    header["tensors"]["weight"].update(change)
    forged = json.dumps(header).encode()
    body = len(forged).to_bytes(8, "little") + forged + data[start + length :]
    path.write_bytes(packing.MAGIC + hashlib.sha256(body).digest() + body)
    with pytest.raises(CheckpointError, match="does not fit its data"):
        load_packed(path)


def test_what_a_user_can_get_wrong(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no file"):
        load_packed(tmp_path / "missing")
    with pytest.raises(UsageError, match="bits is 9"):
        pack(torch.zeros(3, dtype=torch.int8), 9)
    with pytest.raises(UsageError, match="quantize them to integers"):
        pack(torch.zeros(3), 4)
    with pytest.raises(UsageError, match="take 2 bytes, not 3"):
        unpack(b"abc", 4, 3)
    with pytest.raises(UsageError, match="use bits or entropy"):
        save_packed({}, tmp_path / "model", coding="zip")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"weight is of torch\.complex64"):
        save_packed({"weight": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_packed({}, tmp_path / "folder")
    (tmp_path / "other").write_bytes(b"PK\x03\x04" * 30)
    with pytest.raises(CheckpointError, match="not a file of packed tensors"):
        load_packed(tmp_path / "other")
