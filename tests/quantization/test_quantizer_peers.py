from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from cookbook.deploy import Runtime, kernels, parity
from cookbook.quantization.peers import FLOAT, OURS, files_by_quantizer


def test_all_quantizers_write_a_file_that_computes_the_model(
    small_resnet: nn.Module, small_images: Tensor, tmp_path: Path
) -> None:
    files = files_by_quantizer(small_resnet, small_images, tmp_path)
    assert list(files)[:2] == [FLOAT, OURS] and sorted(files.values()) == sorted(tmp_path.iterdir())
    shares = {}
    for name, path in files.items():
        with torch.no_grad():
            assert parity(small_resnet, Runtime(path, optimize=False), small_images).mean < 0.1, name
        shares[name] = kernels(path).coverage["conv"].share
    assert shares[FLOAT] == 0 and shares[OURS] == 1
    assert 0 < shares["torchao for Inductor"] < 1  # it leaves most outputs unquantized
