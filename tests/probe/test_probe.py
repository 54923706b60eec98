"""The facts of this machine, and those of an installation that is out of order."""

from __future__ import annotations

import getpass
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from cookbook import probe
from cookbook.probe import Probe


def test_the_facts_of_this_machine_are_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "full")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    facts = Probe.collect()
    assert facts.python == sys.version_info[:3]
    assert facts.libraries["torch"] == torch.__version__.split("+")[0] or facts.libraries["torch"] == torch.__version__
    assert (facts.threads, facts.cuda_build, facts.rocm_build) == (
        torch.get_num_threads(), torch.version.cuda, torch.version.hip,
    )  # fmt: skip
    assert facts.torch_version == torch.__version__ and facts.torch_folder == str(Path(torch.__file__).parents[1].resolve())
    assert facts.torch_folder in [found.folder for found in facts.torch_installations]
    assert facts.architectures == tuple(torch.cuda.get_arch_list()) and facts.cores == psutil.cpu_count(False)
    assert facts.accelerators == () or facts.system == "Darwin"
    assert (facts.profile, facts.settings["CUDA_VISIBLE_DEVICES"], facts.broken) == ("full", "", {})
    assert facts.data_error == "" and Path(facts.cache_folder).is_dir() and facts.cache_error == ""
    assert json.loads(json.dumps(facts.to_dict()))["threads"] == facts.threads


@pytest.fixture
def torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at one library, which is imported already."""
    monkeypatch.setattr(probe, "LIBRARIES", {"torch": "torch"})


def test_what_is_wrong_becomes_a_fact(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COOKBOOK_PROFILE", "fast")
    monkeypatch.setenv("COOKBOOK_DATA", str(tmp_path))
    absent = {"torch": "torch", "torchvision": "torchvision", "not-a-distribution": "not_a_module"}
    monkeypatch.setattr(probe, "LIBRARIES", absent)
    facts = Probe.collect()
    assert facts.libraries["not-a-distribution"] is None and "not-a-distribution" not in facts.broken
    assert "'fast'" in facts.profile_error and "is missing" in facts.data_error


def test_a_cache_that_cannot_be_made_is_a_fact(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("COOKBOOK_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(probe, "LIBRARIES", {"torch": "torch", "torchvision": "torchvision"})
    facts = Probe.collect()
    assert facts.cache_error and str(tmp_path) in facts.cache_folder
    assert "into the cache" in facts.data_error


@pytest.mark.usefixtures("torch_alone")
def test_what_torch_warns_of_and_a_gpu_that_refuses_are_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: int) -> tuple[int, int]:
        raise RuntimeError("CUDA-capable device(s) is/are busy\n or unavailable")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", refuse)
    facts = Probe.collect()
    assert facts.accelerators == () and facts.accelerator_error == "CUDA-capable device(s) is/are busy or unavailable"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, device))
    monkeypatch.setattr(torch.cuda, "get_device_name", "H{}00".format)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    facts = Probe.collect()
    assert (facts.accelerators, facts.capabilities) == (("H000", "H100"), ((9, 0), (9, 1)))


@pytest.mark.usefixtures("torch_alone")
def test_tf32_is_read_whichever_way_it_was_set() -> None:
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = "tf32", "ieee"
        facts = Probe.collect()
    finally:
        torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = before
    assert (facts.tf32_products, facts.tf32_convolutions) == (True, False)


OLD_TORCH = """
class Anything:
    fp32_precision = "none"
    def __getattr__(self, name): return Anything()
    def __call__(self, *ignored): return ()
__version__ = "2.9.1+cpu"
backends = cuda = mps = Anything()
class version: cuda = hip = None
def get_num_threads(): return 3
"""


def test_a_torch_that_is_too_old_for_the_cookbook_is_a_fact(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(OLD_TORCH)
    code = (
        "from cookbook import probe; probe.LIBRARIES = {'torch': 'torch'}; import json\n"
        "print(json.dumps(probe.Probe.collect().to_dict()))"
    )
    environment = {"PYTHONPATH": f"{tmp_path}:{Path(probe.__file__).parents[2]}", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["torch_version"] == "2.9.1+cpu" and facts["threads"] == 3
    assert "too old" in facts["profile_error"] and facts["torch_folder"] == "~"


@pytest.mark.usefixtures("torch_alone")
def test_half_a_torch_is_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "__version__")
    facts = Probe.collect()
    assert facts.broken == {"torch": "module 'torch' has no attribute '__version__'"} and facts.torch_version == ""


def test_no_home_folder_and_no_user_name_leaves_with_the_facts() -> None:
    home, user = Path.home(), getpass.getuser()
    told = replace(
        Probe(), cache_folder=str(home / ".cache"), data_error=f"{home}/data/x.gz is damaged",
        broken={"torch": f"no such file: '/scratch/{user}/lib/libcudnn.so'"},
    )  # fmt: skip
    facts = told.to_dict()
    assert facts["cache_folder"] == str(Path("~", ".cache")) and facts["data_error"] == "~/data/x.gz is damaged"
    assert facts["broken"]["torch"] == "no such file: '/scratch/USER/lib/libcudnn.so'"
