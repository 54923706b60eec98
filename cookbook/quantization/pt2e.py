"""The one place where torchao's export-mode quantization is imported: it is renamed and moved often (lesson 05)."""

from __future__ import annotations

import logging


def _concerns_users(record: logging.LogRecord) -> bool:
    """Say whether a record is not torch's advice to torchao on how torchao registers an enumeration of its own."""
    return "KernelPreference" not in record.getMessage()


logging.getLogger("torch.utils._pytree").addFilter(_concerns_users)  # before torchao is imported, which sets it off

from torchao.quantization.pt2e import (  # noqa: E402
    FakeQuantize,
    FakeQuantizeBase,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    ObserverBase,
    PerChannelMinMaxObserver,
    UniformQuantizationObserverBase,
)
from torchao.quantization.pt2e.prepare import prepare as insert_observers  # noqa: E402
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e  # noqa: E402
from torchao.quantization.pt2e.quantizer import (  # noqa: E402
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (  # noqa: E402
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

ANNOTATION = "quantization_annotation"  # where torchao looks for a node's annotation in its `meta`


def x86_quantizer() -> Quantizer:
    """Return torchao's quantizer for Inductor on x86, with its defaults for quantization after training."""
    return X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())


__all__ = [
    "ANNOTATION",
    "FakeQuantize",
    "FakeQuantizeBase",
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "ObserverBase",
    "PerChannelMinMaxObserver",
    "QuantizationAnnotation",
    "QuantizationSpec",
    "Quantizer",
    "SharedQuantizationSpec",
    "UniformQuantizationObserverBase",
    "convert_pt2e",
    "insert_observers",
    "prepare_pt2e",
    "x86_quantizer",
]
