"""Loading a runtime leaves no trace in the reader's home, and needs no setting for that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SERVE = """
from pathlib import Path
import sys, torch
from cookbook import Runtime, export
images = torch.randn(2, 1, 4, 4)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
runtime = Runtime(export(model, images, Path(sys.argv[1]) / "model.onnx"))
print(tuple(runtime(images).shape))
"""


def test_onnx_runtime_writes_nothing_into_the_home_folder(tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    hidden = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    variables |= {"HOME": str(home), "USERPROFILE": str(home), "COOKBOOK_CACHE": str(work)}
    done = subprocess.run(
        [sys.executable, "-B", "-c", SERVE, str(work)], env=variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(2, 3)\n"
    assert [str(path.relative_to(home)) for path in home.rglob("*")] == []
