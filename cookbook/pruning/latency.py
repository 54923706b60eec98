"""Latency as a budget of `prune`: a table predicts, the whole network in ONNX Runtime confirms (lesson 04)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from cookbook.errors import UsageError
from cookbook.measure import speedup
from cookbook.pruning.clock import Clock, OrtClock
from cookbook.pruning.layer_table import LayerTable
from cookbook.pruning.targets import Value, require_share

TIMINGS = 4  # of one pair of networks at most, on a machine that is busy with other things


@dataclass(frozen=True)
class Latency:
    """A share of the latency, measured in ONNX Runtime: `Latency(0.5)` asks for a network that is twice as fast.

    A table of layer latencies proposes widths, as in NetAdapt (Yang et al., arXiv 1804.03230); the whole exported network
    is then timed in turns with the unpruned one, and what the table got wrong corrects its next proposal.

    Attributes:
        share: that shall remain, between 0 and 1.
        tolerance: by which the result may miss the share, relative to it.
        threads: of the runtime.
        batch: images a call.
        rounds: samples of each network.
        clock: times whole networks; None: `OrtClock` with these threads, batch and rounds.
        table: predicts; None: a new `LayerTable` with these threads and this batch.

    Raises:
        UsageError: a value is out of range.
    """

    share: float
    tolerance: float = 0.05
    threads: int = 1
    batch: int = 1
    rounds: int = 60
    clock: Clock | None = field(default=None, repr=False)
    table: LayerTable | None = field(default=None, repr=False)
    needs_weights: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        require_share(self.share, self.tolerance)
        OrtClock(threads=self.threads, batch=self.batch, rounds=self.rounds)

    def predictor(self, model: nn.Module, example: Tensor) -> Value:
        """Return a function that sums a candidate's layers in the table, as a share of `model`'s sum.

        Raises:
            UsageError: the model has no layer that takes time.
        """
        table = self.table or LayerTable(threads=self.threads, batch=self.batch)
        whole = table.seconds(model, example)
        if not whole:
            raise UsageError(f"{type(model).__name__} has neither convolutions nor linear layers: there is no time to save.")
        return lambda candidate: table.seconds(candidate, example) / whole

    def confirmer(self, model: nn.Module, example: Tensor) -> Value:
        """Return a function that measures a candidate's latency as a share of `model`'s: the ratio of the medians.

        Both are timed in turns, again while the interval of the ratio is wider than the range that the tolerance
        allows. The function raises UsageError if it stays wider, because other work disturbs the machine.
        """
        clock = self.clock or OrtClock(threads=self.threads, batch=self.batch, rounds=self.rounds)

        def confirm(candidate: nn.Module) -> float:
            narrowest = float("inf")
            for _ in range(TIMINGS):
                timings = clock({"unpruned": model, "pruned": candidate}, example)
                ratio = speedup(timings["unpruned"], timings["pruned"])
                width = (ratio.high - ratio.low) / ratio.value
                if width <= 2 * self.tolerance:
                    return 1 / ratio.value
                narrowest = min(narrowest, width)
            raise UsageError(
                f"The latency cannot be told within {self.tolerance:.0%}, because its interval was {narrowest:.0%} wide or "
                f"wider in {TIMINGS} timings: close what else computes on this machine, or raise rounds."
            )

        return confirm


def width_of_equal_latency(
    reference: nn.Module,
    build: Callable[[int], nn.Module],
    widths: Sequence[int],
    example: Tensor,
    *,
    clock: Clock | None = None,
) -> tuple[int, float]:
    """Return the width whose network is closest in latency to `reference`, and its share of that latency.

    The control of pruning that asks whether a narrower network of the same family would have done as well.

    Args:
        reference: by custom the pruned network.
        build: makes the network for a width.
        widths: that are tried; all are timed in turns with the reference.
        example: images (B, C, H, W).
        clock: times; None: `OrtClock()`.

    Raises:
        UsageError: no width is given, one twice, or one below 1.
        DeploymentError: a network cannot be exported.
    """
    if not widths or len(set(widths)) < len(widths) or min(widths) < 1:
        raise UsageError(f"The widths are {tuple(widths)}: give one or more different numbers of at least 1.")
    models = {"reference": reference, **{str(width): build(width).eval() for width in widths}}
    timings = (clock or OrtClock())(models, example)
    shares = {width: 1 / speedup(timings["reference"], timings[str(width)]).value for width in widths}
    chosen = min(shares, key=lambda width: abs(shares[width] - 1))
    return chosen, shares[chosen]
