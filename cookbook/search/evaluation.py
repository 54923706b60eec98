"""Scoring a candidate without training it: shared weights for the accuracy, a clock for the latency (lesson 09)."""

from __future__ import annotations

from collections.abc import Callable

from cookbook.data import Loader, require_role
from cookbook.distillation.teacher_cache import fingerprint
from cookbook.errors import UsageError
from cookbook.search.scores import Score
from cookbook.search.space import FLOAT_BITS, Candidate
from cookbook.search.supernet import SuperNet
from cookbook.training import evaluate

CALIBRATION_IMAGES = 256  # for the ranges of a quantized candidate


class SharedWeights:
    """Scores candidates by their share of a trained supernet's weights; every candidate is evaluated once and remembered.

    The accuracy is that of the candidate on validation, after its BatchNorm statistics were estimated anew and, where
    it has few bits, after quantization. It ranks candidates; it is not what they reach once they are trained alone.

    Args:
        supernet: trained by `train_supernet`; left as it is.
        latency: returns a candidate's latency, such as a `RelativeLatency`.
        train: training images for the statistics, as they will be seen: by custom without augmentation.
        validation: images to choose on.
        batches: of `train` that are used; None: all.

    Attributes:
        known: the accuracies so far, by candidate.

    Raises:
        UsageError: a split has the wrong role.
    """

    def __init__(
        self,
        supernet: SuperNet,
        latency: Callable[[Candidate], float],
        train: Loader,
        validation: Loader,
        *,
        batches: int | None = None,
    ) -> None:
        require_role(train.role, ("train",), "estimate statistics")
        require_role(validation.role, ("train", "validation"), "choose between networks")
        if batches is not None and batches < 1:
            raise UsageError(f"batches is {batches}: use 1 or more, or None for all.")
        self.supernet, self.latency, self.train, self.validation, self.batches = supernet, latency, train, validation, batches
        self.known: dict[Candidate, float] = {}

    def __call__(self, candidate: Candidate) -> Score:
        """Return the candidate's accuracy with shared weights, and its latency.

        Raises:
            UsageError: the candidate does not fit into the supernet.
            DeploymentError: it cannot be exported.
        """
        if candidate not in self.known:
            network = self.supernet.subnet(candidate, self.train, batches=self.batches)
            if candidate.weight_bits < FLOAT_BITS:
                from cookbook.quantization import Scheme, quantize  # takes seconds to import

                scheme = Scheme(weight_bits=candidate.weight_bits)
                quantized = quantize(network, self.train, scheme=scheme, images=CALIBRATION_IMAGES)
                self.known[candidate] = evaluate(quantized.module, self.validation).accuracy
            else:
                self.known[candidate] = evaluate(network, self.validation).accuracy
        return Score(self.known[candidate], self.latency(candidate))

    def describe(self) -> dict[str, object]:
        """Return plain JSON types that identify weights, images and clock."""
        clock = getattr(self.latency, "describe", None)
        return {
            "supernet": fingerprint(self.supernet.network), "train": self.train.describe(), "batches": self.batches,
            "validation": self.validation.describe(), "latency": None if clock is None else clock(),
        }  # fmt: skip
