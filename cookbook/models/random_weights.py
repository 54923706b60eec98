"""Untrained classifiers whose outputs are worth comparing (lesson 07)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cookbook.models.torchvision_models import TorchvisionConfig, build_torchvision

SETTLING_IMAGES = 16


def random_model(name: str, size: int, *, classes: int = 100, seed: int = 0) -> nn.Module:
    """Return a classifier with random weights, in eval mode, whose logits differ from image to image.

    Two things in a fresh model would make every comparison of outputs vacuous. Torchvision's vision
    transformers start with a head of zeros (https://github.com/pytorch/vision/issues/5804), so that all
    their logits are 0: such a layer gets normal weights here. And with the initial statistics of BatchNorm the signal of
    a deep network dies out on its way, down to logits that do not depend on the image: here the
    statistics are those of random images.

    Args:
        name: of a torchvision classifier.
        size: height and width of the images, in pixels.
        classes: length of the output.
        seed: of the weights and of those images; the global generator is left as it was.

    Raises:
        UsageError: torchvision cannot build it.
    """
    arguments = {"image_size": size} if name.startswith("vit_") else {}  # the only ones that fix the size when they are built
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = build_torchvision(TorchvisionConfig(name, classes=classes, arguments=arguments)).eval()
        for module in model.modules():
            if isinstance(module, nn.Linear) and not module.weight.any():
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if isinstance(module, _BatchNorm):
                module.train()
                module.momentum = None  # the statistics become those of the next batch
        model(torch.randn(SETTLING_IMAGES, 3, size, size))
    return model.eval()
