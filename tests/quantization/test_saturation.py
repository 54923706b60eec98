"""A processor whose byte products overflow is known by its instruction sets, and the report says what that risks."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from cookbook.quantization import Scheme, quantize_on, report, saturates


@pytest.mark.parametrize(
    ("machine", "sets", "expected"),
    [
        ("x86_64", ("avx2",), True),
        ("AMD64", ("avx2", "avx512f"), True),
        ("x86_64", (), True),
        ("x86_64", ("avx2", "avx_vnni"), False),
        ("x86_64", ("avx512f", "avx512_vnni"), False),
        ("x86_64", ("amx_int8",), False),
        ("aarch64", (), False),
        ("arm64", ("asimddp",), False),
    ],
)
def test_x86_without_vnni_sums_in_sixteen_bits(
    machine: str, sets: tuple[str, ...], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report.platform, "machine", lambda: machine)
    monkeypatch.setattr(report, "instruction_sets", lambda: sets)
    assert saturates() == expected


def test_the_report_warns_where_sums_overflow_and_only_there(
    small_resnet: nn.Module, small_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    schemes = (Scheme(), Scheme(reduce_range=True), Scheme(weight_bits=4))
    for overflows, expected in ((True, [True, False, False]), (False, [False] * 3)):
        monkeypatch.setattr(report, "saturates", lambda overflows=overflows: overflows)
        texts = [str(quantize_on(small_resnet, small_images[:2], scheme=scheme)) for scheme in schemes]
        assert ["no VNNI" in text and "reduce_range=True" in text for text in texts] == expected
