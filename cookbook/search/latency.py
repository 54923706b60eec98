"""How long a candidate takes, as a share of the space's largest network, measured once for each network (lesson 09)."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from cookbook.data import Loader
from cookbook.deploy import Runtime, export
from cookbook.environment import instruction_sets, processor_name
from cookbook.errors import DeploymentError, UsageError
from cookbook.files import atomic_path
from cookbook.measure import Ratio, Timing, interleave, speedup
from cookbook.measure.size import read_onnx
from cookbook.models import build
from cookbook.search.space import FLOAT_BITS, Candidate, SearchSpace

TIMINGS = 3  # of one network at most, on a machine that is busy with other things
WIDEST = 0.2  # width of a ratio's interval, relative to it, above which the network is timed again
STORED_BITS = 8  # narrower weights are stored in eight bits and run in the same kernels


Timer = Callable[..., Mapping[str, Timing]]
"""Times calls in turns, as `cookbook.measure.interleave` does."""


class RelativeLatency:
    """The latency of candidates in ONNX Runtime on the CPU, relative to the space's largest network in floats.

    Both are timed in turns, so that a machine that slows down slows both, and up to three times while the interval of the
    ratio is wider than a fifth of it. Every network is measured once and remembered,
    also for other searches with this object. To export each network through torch would take seconds; for a network in
    floats one file a depth is exported instead, and its constants are cut to the widths.

    Args:
        space: its largest network is the reference.
        example: images (B, C, H, W); shape and dtype count.
        threads: of each session.
        batch: images a call.
        rounds: samples of both sides of each pair; 3 or more.
        calibration: training images for the ranges of quantized networks; needed where the space has weights of 8 bits or
            fewer.
        timer: times; for tests.

    Attributes:
        known: what was measured so far: how many times faster than the reference, with the interval.

    Raises:
        UsageError: fewer than one thread or image, fewer than three rounds, or the calibration is missing.
        DeploymentError: the largest network cannot be exported for this example.
    """

    def __init__(
        self,
        space: SearchSpace,
        example: Tensor,
        *,
        threads: int = 1,
        batch: int = 1,
        rounds: int = 15,
        calibration: Loader | None = None,
        timer: Timer = interleave,
    ) -> None:
        for name, value, least in (("threads", threads, 1), ("batch", batch, 1), ("rounds", rounds, 3)):
            if value < least:
                raise UsageError(f"{name} is {value}: use {least} or more.")
        if min(space.weight_bits) < FLOAT_BITS and calibration is None:
            raise UsageError("The space has quantized networks: pass training images as calibration, for their ranges.")
        self.space, self.example, self.threads, self.batch, self.rounds = space, example[:1].detach(), threads, batch, rounds
        self.calibration, self.timer = calibration, timer
        self.known: dict[Candidate, Ratio] = {}
        self._images = torch.repeat_interleave(self.example, batch, 0).contiguous()
        self._templates: dict[tuple[int, int], onnx.ModelProto] = {}
        with tempfile.TemporaryDirectory() as folder:
            path = self.write(replace(space.largest, weight_bits=FLOAT_BITS), Path(folder) / "reference.onnx")
            self._reference = functools.partial(Runtime(path, threads=threads), self._images)

    def __call__(self, candidate: Candidate) -> float:
        """Return the candidate's latency as a share of the reference's: the ratio of the medians.

        Raises:
            UsageError: the candidate is deeper or wider than the space's largest network.
            DeploymentError: it cannot be exported.
        """
        key = replace(candidate, weight_bits=max(candidate.weight_bits, STORED_BITS))
        if key not in self.known:
            with tempfile.TemporaryDirectory() as folder:
                runtime = Runtime(self.write(key, Path(folder) / "candidate.onnx"), threads=self.threads)
            self.known[key] = self._ratio(functools.partial(runtime, self._images))
        return 1 / self.known[key].value

    def _ratio(self, call: Callable[[], object]) -> Ratio:
        """Return how many times faster the call is than the reference; of several timings the one with the least spread."""
        found: list[Ratio] = []
        while len(found) < TIMINGS and (not found or _width(found[-1]) > WIDEST):
            timings = self.timer(
                {"reference": self._reference, "candidate": call},
                batch=self.batch, rounds=self.rounds, threads=self.threads, device="cpu",
            )  # fmt: skip
            found.append(speedup(timings["reference"], timings["candidate"]))
        return min(found, key=_width)

    def write(self, candidate: Candidate, path: Path) -> Path:
        """Write an ONNX file of the candidate's architecture, whose weights mean nothing, and return its path.

        Raises:
            UsageError: as in a call.
            DeploymentError: as in a call.
        """
        if candidate.weight_bits < FLOAT_BITS:
            from cookbook.quantization import Scheme, quantize  # takes seconds to import

            assert self.calibration is not None  # the space would have been refused
            scheme = Scheme(weight_bits=candidate.weight_bits)
            return quantize(candidate.build().eval(), self.calibration, scheme=scheme).export(path)
        config = candidate.config
        template = self._template(config.depth, config.stem_stride)
        with torch.device("meta"):
            parameters = {name: tuple(value.shape) for name, value in build(config).named_parameters()}
        cut = onnx.ModelProto()
        cut.CopyFrom(template)
        cut_constants(cut, parameters)
        with atomic_path(path) as temporary:
            onnx.save(cut, temporary)
        return path

    def describe(self) -> dict[str, object]:
        """Return plain JSON types that say what a latency means here: machines of another kind do not share a study."""
        return {
            "reference": self.space.largest.to_json(), "image": list(self.example.shape[1:]), "threads": self.threads,
            "batch": self.batch, "processor": processor_name(), "instruction sets": list(instruction_sets()),
        }  # fmt: skip

    def _template(self, depth: int, stem_stride: int) -> onnx.ModelProto:
        """Return the graph of the widest network of a depth, exported when it is asked for for the first time."""
        if (depth, stem_stride) not in self._templates:
            widest = self.space.largest
            network = build(widest.at_depth(depth, stem_stride).config)
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.normal_(module.bias)  # the exporter would leave out a bias of zeros
            with tempfile.TemporaryDirectory() as folder:
                self._templates[depth, stem_stride] = read_onnx(export(network, self.example, Path(folder) / "widest.onnx"))
        return self._templates[depth, stem_stride]


def _width(ratio: Ratio) -> float:
    return (ratio.high - ratio.low) / ratio.value


def cut_constants(model: onnx.ModelProto, parameters: Mapping[str, tuple[int, ...]]) -> None:
    """Cut the weights and biases of a graph's convolutions and linear layers, in place, to their leading parts.

    The length to which a Reshape flattens before a linear layer is written into the graph, and follows.

    Args:
        model: as `cookbook.deploy.export` writes it, with BatchNorm folded into the convolutions.
        parameters: shapes by the parameters' names in torch, such as ``stem.0.weight``.

    Raises:
        DeploymentError: a weight has another name.
        UsageError: a constant is smaller than the shape asked for.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        weight, *bias = node.input[1:]
        shape = parameters.get(weight)
        if shape is None:
            raise DeploymentError(
                f"The exported graph names a weight {weight!r}, which is no parameter: report this torch version."
            )
        for name, wanted in ((weight, shape), *((name, shape[:1]) for name in bias)):
            array = numpy_helper.to_array(constants[name])
            cut = array[tuple(slice(length) for length in wanted)]
            if cut.shape != wanted:
                raise UsageError(f"{name} has the shape {array.shape}, of which {wanted} is no part: take a smaller network.")
            constants[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(cut), name))
        flattened = makers.get(node.input[0])
        if flattened is not None and flattened.op_type == "Reshape":
            name = flattened.input[1]
            sizes = numpy_helper.to_array(constants[name]).copy()
            sizes[-1] = shape[1]
            constants[name].CopyFrom(numpy_helper.from_array(sizes, name))
