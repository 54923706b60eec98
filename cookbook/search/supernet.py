"""One network that holds all others of a space: its leading channels and blocks are theirs (lesson 09)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cookbook.data import Loader
from cookbook.errors import UsageError
from cookbook.models import ResNet, build
from cookbook.pruning.recovery import reestimate_batchnorm
from cookbook.search.space import Candidate, SearchSpace, staged_config

SKELETONS = 512  # networks without weights that are kept


class SuperNet(nn.Module):
    """The largest network of a space, in which every other one is a part.

    A narrower network takes the first channels of every layer (universally slimmable networks: Yu and Huang, arXiv
    1903.05134), a shallower one the first blocks of every stage (once for all: Cai et al., arXiv 1908.09791). After one
    training of them all together, `train_supernet`, a candidate costs an evaluation rather than a training.

    Called like any module, it is the largest network.

    Args:
        space: whose networks it holds.
        network: the largest network with its weights, such as a loaded one; None: fresh weights.

    Attributes:
        space: as given.
        network: the largest network, a plain `ResNet` that `cookbook.models.save` can store.

    Raises:
        UsageError: the network is not the largest of the space.
    """

    def __init__(self, space: SearchSpace, network: nn.Module | None = None) -> None:
        super().__init__()
        self.space = space
        network = space.largest.build() if network is None else network
        if not isinstance(network, ResNet) or network.config != space.largest.config:
            raise UsageError(f"The network is not the largest of the space, {space.largest}: build that one.")
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (B, C, H, W) to the largest network's logits (B, classes)."""
        return self.network(images)

    def narrow(self, candidate: Candidate, images: Tensor) -> Tensor:
        """Return a smaller network's logits (B, classes), as in its training: normalized by the statistics of this batch.

        The gradients reach the shared weights. What the largest network's BatchNorm remembers is neither used nor changed.

        Args:
            candidate: part of the space's largest network; its bits play no role.
            images: float (B, C, H, W).

        Raises:
            UsageError: the candidate does not fit into the network.
        """
        self._require_part(candidate)
        skeleton = _skeleton(candidate)
        shared = dict(self.network.named_parameters())
        weights = {name: _leading(shared[self._home(name, candidate)], value) for name, value in skeleton.named_parameters()}
        return functional_call(skeleton, weights, (images,), strict=True)

    @torch.no_grad()
    def subnet(self, candidate: Candidate, calibration: Loader | None = None, *, batches: int | None = None) -> ResNet:
        """Return a smaller network by itself, in eval mode, with a copy of its share of the weights.

        Args:
            candidate: as in `narrow`.
            calibration: training images for its BatchNorm statistics, which do not fit when they are another network's;
                see `cookbook.pruning.reestimate_batchnorm`. None: it gets its share of the largest network's, which
                only suit a network that is as large.
            batches: how many are used; None: all.

        Raises:
            UsageError: the candidate does not fit, or as in `reestimate_batchnorm`.
        """
        self._require_part(candidate)
        device = next(self.network.parameters()).device
        alone = candidate.build().to(device)
        shared = self.network.state_dict()
        alone.load_state_dict(
            {name: _leading(shared[self._home(name, candidate)], value) for name, value in alone.state_dict().items()}
        )
        if calibration is not None:
            reestimate_batchnorm(alone, calibration, batches=batches)
        assert isinstance(alone, ResNet)
        return alone.eval()

    @torch.no_grad()
    def sort_inner_channels(self) -> None:
        """Put the channels inside each block in the order of their importance, the largest first, in place.

        The importance is the L1 norm of the weights that listen to a channel (Cai et al., arXiv 1908.09791).
        What the network computes stays the same; what its narrower parts compute does not. Between training the
        largest network and training them all is where it belongs.
        """
        blocks: list[Any] = list(self.network.blocks)
        for block in blocks:
            importance = block.conv2.weight.abs().sum((0, 2, 3))
            order = importance.argsort(descending=True)
            block.conv2.weight.copy_(block.conv2.weight[:, order])
            block.conv1.weight.copy_(block.conv1.weight[order])
            for value in (*block.bn1.parameters(), *block.bn1.buffers()):
                if value.ndim:
                    value.copy_(value[order])

    def _home(self, name: str, candidate: Candidate) -> str:
        """Return what a parameter of the candidate is called in the largest network, where stages are longer."""
        root, _, rest = name.partition(".")
        if root != "blocks":
            return name
        number, _, rest = rest.partition(".")
        stage, place = divmod(int(number), candidate.blocks_per_stage)
        return f"blocks.{stage * self.space.largest.blocks_per_stage + place}.{rest}"

    def _require_part(self, candidate: Candidate) -> None:
        ours, its = self.space.largest, candidate
        config = its.config
        regular = staged_config(
            config.depth, its.widths, its.inner_widths, ours.config.in_channels, ours.config.classes, config.stem_stride
        )
        pairs = [
            (its.blocks_per_stage, ours.blocks_per_stage), *zip(its.widths, ours.widths, strict=True),
            *zip(its.inner_widths, ours.inner_widths, strict=True),
        ]  # fmt: skip
        if config != regular or any(small > large for small, large in pairs):
            raise UsageError(f"{candidate} is no part of {ours}: take a candidate of the supernet's space.")


@functools.lru_cache(SKELETONS)
def _skeleton(candidate: Candidate) -> nn.Module:
    """Return the candidate without memory for weights, whose BatchNorm knows no statistics but the batch's."""
    with torch.device("meta"):
        network = build(candidate.config)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return network


def _leading(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor[tuple(slice(length) for length in like.shape)]
