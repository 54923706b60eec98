"""What a model is quantized to: widths, granularity and what is left out (lesson 05)."""

from __future__ import annotations

from dataclasses import dataclass

from cookbook.errors import UsageError

WEIGHT_BITS = (2, 3, 4, 6, 8)
ACTIVATION_BITS = (4, 6, 8)
FLOAT_BITS = 32  # activations that stay as they are


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How weights and activations become integers.

    Weights are symmetric: integers from −(2^(b−1) − 1) to 2^(b−1) − 1 in int8, zero at zero. Activations are affine:
    integers from 0 to 2^b − 1 in uint8, with one scale and one zero point a tensor. That is what ONNX Runtime's fast
    kernels take (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).

    Attributes:
        weight_bits: 2, 3, 4, 6 or 8. Below 8 the integers are stored in eight bits all the same, and run in the same kernels.
        activation_bits: 8; 4 and 6 for experiments in torch, which no file can hold; None, or 32: activations stay floats.
        per_channel: one scale for each output channel of a weight; else one for the whole of it.
        exclude: names of layers, as in ``model.named_modules()``, that stay in floats, with everything inside of them.
        reduce_range: eight-bit weights from −63 to 63, so that no sum of two products overflows 16 bits on a processor
            without VNNI (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).

    Raises:
        UsageError: a width that is not listed, names that are not a tuple of strings, or a range reduced for fewer bits.
    """

    weight_bits: int = 8
    activation_bits: int | None = 8
    per_channel: bool = True
    exclude: tuple[str, ...] = ()
    reduce_range: bool = False

    def __post_init__(self) -> None:
        if self.weight_bits not in WEIGHT_BITS:
            raise UsageError(f"weight_bits is {self.weight_bits}: use one of {', '.join(map(str, WEIGHT_BITS))}.")
        if self.activation_bits == FLOAT_BITS:
            object.__setattr__(self, "activation_bits", None)
        if self.activation_bits is not None and self.activation_bits not in ACTIVATION_BITS:
            listed = ", ".join(map(str, ACTIVATION_BITS))
            raise UsageError(f"activation_bits is {self.activation_bits}: use one of {listed}, or None for floats.")
        if isinstance(self.exclude, str) or not all(isinstance(name, str) and name for name in self.exclude):
            raise UsageError(f"exclude is {self.exclude!r}: pass a tuple of layers' names, such as ('head',).")
        object.__setattr__(self, "exclude", tuple(self.exclude))
        if self.reduce_range and self.weight_bits != 8:
            raise UsageError(
                f"reduce_range is for 8-bit weights, not for {self.weight_bits} bits, whose sums are small already."
            )

    @property
    def weight_range(self) -> tuple[int, int]:
        """The smallest and the largest integer of a weight."""
        largest = 2 ** (self.weight_bits - 1 - self.reduce_range) - 1
        return -largest, largest

    @property
    def activation_range(self) -> tuple[int, int]:
        """The smallest and the largest integer of an activation.

        Raises:
            UsageError: activations stay floats.
        """
        if self.activation_bits is None:
            raise UsageError("This scheme leaves activations in floats, which have no range of integers.")
        return 0, 2**self.activation_bits - 1

    def excludes(self, layer: str) -> bool:
        """Say whether a layer, or one that it is part of, is left out."""
        return any(layer == name or layer.startswith(f"{name}.") for name in self.exclude)

    def __str__(self) -> str:
        activations = "float" if self.activation_bits is None else f"{self.activation_bits}-bit"
        scales = "a scale per channel" if self.per_channel else "one scale per tensor"
        reduced = ", reduced to 7 bits" if self.reduce_range else ""
        left_out = f", without {', '.join(self.exclude)}" if self.exclude else ""
        return f"{self.weight_bits}-bit weights{reduced} ({scales}), {activations} activations{left_out}"
