"""The ready files for Slurm and Kubernetes are valid, and start torchrun as it wants to be started."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from cookbook.distributed.hosts import cluster_template
from cookbook.errors import UsageError

# https://slurm.schedmd.com/sbatch.html: the directives that the script may use, with the form of their values
DIRECTIVES = {
    "job-name": r"\w+", "nodes": r"\d+", "gpus-per-node": r"\d+", "ntasks-per-node": r"1", "cpus-per-task": r"\d+",
    "time": r"\d\d:\d\d:\d\d", "signal": r"TERM@\d+", "requeue": None, "open-mode": r"append|truncate",
    "output": r"[\w%.-]+",
}  # fmt: skip

# The part that is used of the schema of trainer.kubeflow.org/v1alpha1, release 2.2:
# https://github.com/kubeflow/trainer/blob/master/pkg/apis/trainer/v1alpha1/trainjob_types.go
TEXT, NUMBER, TEXTS = str, int, [str]
SCHEMA: dict[str, Any] = {
    "apiVersion!": TEXT, "kind!": TEXT, "metadata!": {"name!": TEXT, "namespace": TEXT},
    "spec!": {
        "runtimeRef!": {"name!": TEXT, "apiGroup": TEXT, "kind": TEXT},
        "trainer": {
            "image": TEXT, "command": TEXTS, "args": TEXTS, "numNodes": NUMBER, "numProcPerNode": NUMBER,
            "env": [{"name!": TEXT, "value": TEXT}],
            "resourcesPerNode": {"limits": {"nvidia.com/gpu": NUMBER}, "requests": {"nvidia.com/gpu": NUMBER}},
        },
        "activeDeadlineSeconds": NUMBER, "suspend": bool, "managedBy": TEXT,
        "runtimePatches": [{"manager!": TEXT, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [{
            "name!": TEXT, "template": {"spec": {"template": {"spec": {
                "volumes": [{"name!": TEXT, "persistentVolumeClaim": {"claimName!": TEXT}}],
                "containers": [{"name!": TEXT, "volumeMounts": [{"name!": TEXT, "mountPath!": TEXT}]}],
            }}}},
        }]}}}}],
    },
}  # fmt: skip


def faults(value: Any, schema: Any, place: str = "") -> list[str]:
    """Return where a value differs from the schema; a key that ends with ! is required."""
    if isinstance(schema, type):
        return [] if type(value) is schema else [f"{place} is no {schema.__name__}"]
    if isinstance(schema, list):
        if not isinstance(value, list) or not value:
            return [f"{place} is no list of values"]
        return [fault for item in value for fault in faults(item, schema[0], f"{place}[]")]
    if not isinstance(value, dict):
        return [f"{place} is no mapping"]
    allowed = {key.removesuffix("!"): part for key, part in schema.items()}
    required = [key.removesuffix("!") for key in schema if key.endswith("!")]
    found = [f"{place}.{key} is missing" for key in required if key not in value]
    found += [f"{place}.{key} is unknown" for key in value if key not in allowed]
    return found + [fault for key in value if key in allowed for fault in faults(value[key], allowed[key], f"{place}.{key}")]


def train_job() -> dict[str, Any]:
    job: dict[str, Any] = yaml.safe_load(cluster_template("kubernetes"))
    return job


def test_the_train_job_follows_the_schema() -> None:
    job = train_job()
    assert faults(job, SCHEMA) == []
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", job["metadata"]["name"])
    trainer, (patch,) = job["spec"]["trainer"], job["spec"]["runtimePatches"]
    assert trainer["numProcPerNode"] == trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert replicated["name"] == pod["containers"][0]["name"] == "node"  # their names in the runtime torch-distributed
    (mount,) = pod["containers"][0]["volumeMounts"]
    assert mount["name"] == pod["volumes"][0]["name"]
    assert any(word.startswith(f"--out={mount['mountPath']}/") for word in trainer["command"])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda job: job["spec"].pop("runtimeRef"), ".spec.runtimeRef is missing"),
        (lambda job: job["spec"].update(podTemplateOverrides=[]), ".spec.podTemplateOverrides is unknown"),
        (lambda job: job["spec"]["trainer"].update(numNodes="2"), ".spec.trainer.numNodes is no int"),
        (lambda job: job["spec"]["trainer"]["env"][0].update(value=4), ".spec.trainer.env[].value is no str"),
        (lambda job: job["spec"]["trainer"].update(command="torchrun"), ".spec.trainer.command is no list of values"),
    ],
)
def test_the_schema_check_finds_faults(change: Any, fault: str) -> None:
    job = train_job()
    change(job)
    assert faults(job, SCHEMA) == [fault]


def test_torchrun_understands_the_train_job_and_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = train_job()["spec"]["trainer"]
    variables = {"NNODES": trainer["numNodes"], "NPROC_PER_NODE": trainer["numProcPerNode"], "NODE_RANK": 1,
                 "MASTER_ADDR": "cookbook-train-node-0-0", "MASTER_PORT": 29400}  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(f"PET_{name}", str(value))
    program, *arguments = trainer["command"]
    parsed = get_args_parser().parse_args(arguments)
    assert program == "torchrun" and parsed.no_python
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.node_rank) == ("2", "8", 1)
    assert (parsed.training_script, parsed.training_script_args[0]) == ("cookbook", "train")


def test_the_directives_of_the_slurm_script_are_well_formed() -> None:
    lines = cluster_template("slurm").splitlines()
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [line for line in lines if line.startswith("#SBATCH")]
    assert all(lines.index(line) < first_command for line in directives)  # Slurm reads none after a command
    found = {}
    for line in directives:
        match = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?(?:\s+#.*)?", line)
        assert match is not None, line
        found[match[1]] = match[2]
    assert found.keys() == DIRECTIVES.keys()
    for name, value in found.items():
        form = DIRECTIVES[name]
        assert value is None if form is None else re.fullmatch(form, value or ""), name


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_slurm_script_starts_one_launcher_that_torchrun_understands(tmp_path: Path) -> None:
    script = tmp_path / "job.sbatch"
    script.write_text(cluster_template("slurm"), encoding="utf-8")
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    tools = {
        "scontrol": 'test "$*" = "show hostnames n[3-4]" && printf "n3\\nn4\\n"',
        "srun": 'printf "%s\\n" "OMP=$OMP_NUM_THREADS" "NEW=$TORCH_DISABLE_SHARE_RDZV_TCP_STORE" "$@"',
    }
    for tool, body in tools.items():
        (tmp_path / tool).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (tmp_path / tool).chmod(0o755)
    slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "n[3-4]", "SLURM_JOB_ID": "1234567", "SLURM_NNODES": "2",
             "SLURM_CPUS_PER_TASK": "32", "SLURM_GPUS_ON_NODE": "8"}  # fmt: skip
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", **slurm}
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    threads, new, kill, program, *arguments = done.stdout.splitlines()
    assert (threads, new, kill, program) == ("OMP=4", "NEW=1", "--kill-on-bad-exit=1", "torchrun")
    parsed = get_args_parser().parse_args(arguments)
    assert parsed.max_restarts > 0
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.rdzv_endpoint) == ("2", "8", "n3:24567")
    assert (parsed.training_script, *parsed.training_script_args) == (
        "cookbook", "train", "--out", f"{tmp_path}/results/model.safetensors",
    )  # fmt: skip
    assert (tmp_path / "results").is_dir()


def test_another_scheduler_has_no_template() -> None:
    with pytest.raises(UsageError, match="no template for 'pbs': use one of slurm, kubernetes"):
        cluster_template("pbs")  # type: ignore[arg-type]
