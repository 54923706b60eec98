"""OpenVINO: its file format, and its runtime for CPUs beside ONNX Runtime (lesson 07)."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cookbook.deploy.images import checked_images
from cookbook.errors import DeploymentError, UsageError
from cookbook.files import atomic_path
from cookbook.measure import Candidate

TELEMETRY = "openvino_telemetry"


def export_openvino(onnx_path: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write an ONNX file as OpenVINO's intermediate representation: ``.xml`` with the graph, ``.bin`` with the weights.

    The weights stay in float32. An older pair of this name is taken away before the new one comes: what is
    interrupted in between leaves no ``.xml``, never one with another model's weights.
    (https://docs.openvino.ai/2026/documentation/openvino-ir-format.html)

    Args:
        onnx_path: from `export`.
        out: the file, ``*.xml``; the weights go beside it.

    Raises:
        DeploymentError: OpenVINO is not installed, or cannot read the file.
        UsageError: `out` does not end in ``.xml``.
    """
    out = Path(out)
    if out.suffix != ".xml":
        raise UsageError(f"{out} is no name for an OpenVINO model: let it end in '.xml'.")
    openvino = _openvino()
    model = _read(openvino.Core(), Path(onnx_path))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model.xml"
        openvino.save_model(model, made, compress_to_fp16=False)
        with atomic_path(out.with_suffix(".bin")) as weights:
            shutil.copyfile(made.with_suffix(".bin"), weights)
            out.unlink(missing_ok=True)
        with atomic_path(out) as graph:
            shutil.copyfile(made, graph)
    return out


class OpenVinoRuntime:
    """A model, loaded by OpenVINO for inference on the CPU.

    It computes in float32 (left alone, OpenVINO calls bfloat16 float32 on CPUs that have it) with
    one stream, as a server of single batches would, and leaves it to the operating system on which cores
    its threads run, as torch and ONNX Runtime do. Calls from several threads wait for each other.
    (https://docs.openvino.ai/2026/openvino-workflow/running-inference/inference-devices-and-modes/cpu-device.html)

    Args:
        path: the ``.xml`` of a pair that `export_openvino` wrote, or an ``.onnx`` file.
        threads: that compute.

    Attributes:
        path: the file.
        threads: as many of them as OpenVINO uses, which is never more than there are cores.

    Raises:
        DeploymentError: OpenVINO is not installed, a file is missing, or is not a model that it can load with
            one input and one output.
        UsageError: fewer than one thread.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 1) -> None:
        self.path = Path(path)
        if threads < 1:
            raise UsageError(f"threads is {threads}: use 1 or more.")
        core = _openvino().Core()
        model = _read(core, self.path)
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise DeploymentError(
                f"{self.path} takes {len(model.inputs)} inputs and returns {len(model.outputs)} outputs, but one tensor of "
                "images in and one of logits out were expected: export a model whose forward maps one tensor to one."
            )
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
        }
        with _in_one_sentence(f"OpenVINO cannot load {self.path}", "export the model again"):
            self._compiled = core.compile_model(model, "CPU", settings)
            self._request = self._compiled.create_infer_request()
        self.threads = int(self._compiled.get_property("INFERENCE_NUM_THREADS"))
        given = model.inputs[0]
        self._dtype = given.get_element_type().to_dtype()
        self._shape = tuple(size.get_length() if size.is_static else None for size in given.get_partial_shape())
        self._lock = threading.Lock()  # a request holds the tensors of one call

    @property
    def artefacts(self) -> tuple[Path, ...]:
        """The files to ship: an ``.xml`` brings its weights."""
        return (self.path, self.path.with_suffix(".bin")) if self.path.suffix == ".xml" else (self.path,)

    def __call__(self, images: Tensor | np.ndarray) -> Tensor:
        """Return the float32 logits (B, classes) of float32 images (B, C, H, W).

        Raises:
            UsageError: the dtype or the shape is not what the file takes, or there are no images.
            DeploymentError: the model fails on these images.
        """
        array = checked_images(images, self.path.name, self._dtype, self._shape)
        failed = f"{self.path.name} fails on images of shape {array.shape}"
        with self._lock, _in_one_sentence(failed, "export the model again with an example of this shape"):
            answers = self._request.infer([array], share_inputs=True, share_outputs=False)
        return torch.from_numpy(answers[0])

    def candidate(
        self, name: str, *, parameters: int | None = None, macs: int | None = None, seed: int | None = None
    ) -> Candidate:
        """Return this model as a row for `cookbook.measure.measure_candidates`, with all its files as what must be shipped."""
        return Candidate(
            name=name, runtime="OpenVINO", predict=self, parameters=parameters, macs=macs,
            artefacts=self.artefacts, device=torch.device("cpu"), seed=seed,
        )  # fmt: skip


def _openvino() -> Any:
    """Import OpenVINO without its telemetry: the only place that does.

    Imported plainly, it loads its model converter, which the cookbook has no use for, and the converter reports the
    import to a web service and keeps an identifier under ``~/intel``. A file in the home folder is its only
    documented way out. The converter does without the separate package for that when it cannot be
    imported, so it cannot while OpenVINO is; the import system's own sign for this is None in `sys.modules`
    (https://docs.python.org/3/reference/import.html#the-module-cache).

    Raises:
        DeploymentError: OpenVINO is not installed, or does not start.
    """
    before = sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise DeploymentError(f"OpenVINO cannot be imported ({error}): run 'pip install openvino'.") from error
    finally:
        if before is None:
            del sys.modules[TELEMETRY]
        else:
            sys.modules[TELEMETRY] = before
    return openvino


def _read(core: Any, path: Path) -> Any:
    """Read a model in OpenVINO's format or in ONNX; unlike ``convert_model``, reading reports nothing to anyone."""
    if not path.is_file():
        raise DeploymentError(f"{path} does not exist: export the model first.")
    weights = path.with_suffix(".bin")
    if path.suffix == ".xml" and not weights.is_file():
        raise DeploymentError(f"{path} keeps its weights in {weights}, which is missing: ship both together.")
    with _in_one_sentence(f"OpenVINO cannot load {path}", "export the model again"):
        return core.read_model(path)


@contextlib.contextmanager
def _in_one_sentence(what: str, advice: str) -> Iterator[None]:
    """Turn OpenVINO's errors, which begin with lines of its own source, into one sentence."""
    try:
        yield
    except Exception as error:  # it raises plain RuntimeErrors, and others through its Python layer
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise DeploymentError(f"{what} ({lines[-1].rstrip('.!')}): {advice}.") from error
