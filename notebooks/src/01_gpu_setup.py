# %% [markdown]
# # 01 GPU setup
#
# | | |
# |---|---|
# | **Question** | Which device does the work, and how do model and data get there? |
# | **You need** | lesson 00; a GPU is welcome and not needed |
# | **Time** | about one minute on a two-core CPU in the quick profile; on a GPU: not recorded yet |
# | **You will have measured** | the running model's speed on each device here, and its throughput against the batch size |
#
# This lesson sets the stage: the doctor, devices, moving things, and what a mismatch looks like. Its
# claims on batch sizes, hidden synchronization, pinned memory and training come with the work on
# training acceleration; the last table says which are still without a verdict.

# %% [markdown]
# Imports and stamp. Expect `cpu` in the stamp when no accelerator works here: every cell below runs all the same.

# %%
from functools import partial

import torch

from cookbook import (
    Candidate, Ledger, ResidentLoader, TorchvisionLoader, by_profile, data_directory, diagnose, interleave, load,
    load_fashion_mnist, measure_candidates, pick_device, scoreboard, speedup, stamp, verdicts,
)
from cookbook.plots import new_picture

stamp()

# %% [markdown]
# ## Ask the doctor first
#
# Most reports of "no GPU" come down to versions that do not fit: a driver that is older than the CUDA that the wheel was built
# for, a wheel without CUDA, a setting that hides the device. The doctor collects facts and names causes. `cookbook
# doctor` prints the whole page at a terminal; here are its main lines. Expect no line marked `problem` on a machine that can run this course.

# %%
findings = diagnose()
for finding in findings:
    if finding.level == "problem" or finding.subject in ("Python", "device", "threads", "data"):
        print(f"{finding.level:8} {finding.subject}: {finding.message}")

# %% [markdown]
# What must be true anywhere is that nothing stands in the way. Expect `True`.

# %%
# NBVAL_CHECK_OUTPUT
print("nothing stands in the way:", all(finding.level != "problem" for finding in findings))

# %% [markdown]
# ## One place decides
#
# Code that spells `"cuda"` in ten places runs on one machine. `pick_device` asks once: CUDA (ROCm builds answer
# to the same name), then Apple's MPS, then the CPU; `COOKBOOK_DEVICE` overrides it. Expect the device of the stamp.

# %%
device = pick_device()
devices = [torch.device("cpu")] + ([device] if device.type != "cpu" else [])
print("this lesson computes on:", ", ".join(str(place) for place in devices))

# %% [markdown]
# ## Moving a model, moving a tensor
#
# `.to()` does two different things under one name. A **module** is changed in place: its parameters move, and the
# result is the module itself. A **tensor** is left alone: the result is a copy elsewhere, and whoever forgets to
# assign it goes on with the old one. To see both without a GPU we use torch's `meta` device, which keeps shapes and no numbers.
# Expect the module to be the same object and the tensor to have stayed.

# %%
# NBVAL_CHECK_OUTPUT
layer, batch = torch.nn.Linear(4, 2), torch.ones(3, 4)
moved_layer, moved_batch = layer.to("meta"), batch.to("meta")
print("module: same object", moved_layer is layer, "| now on", layer.weight.device)
print("tensor: same object", moved_batch is batch, "| still on", batch.device)

# %% [markdown]
# ## What a mismatch looks like
#
# Model, data and the loss's targets must be on one device. torch does not move anything by itself, because a hidden copy
# at each step would be slow and nobody would notice. The first cell that you write on a GPU machine will sooner or later
# raise this error. Expect a sentence that names both devices; the cure is to move the batch, not to catch the error.

# %%
elsewhere = device if device.type != "cpu" else torch.device("meta")
layer = torch.nn.Linear(4, 2).to(elsewhere)
try:
    layer(torch.ones(3, 4))
except RuntimeError as error:
    print(type(error).__name__, "|", str(error).splitlines()[0])

# %% [markdown]
# The same happens at the other end of the step, when the logits are on one device and the labels on another. Both
# cases must raise on every machine. Expect two times `raised`.

# %%
# NBVAL_CHECK_OUTPUT
def outcome(compute):
    try:
        compute()
    except RuntimeError:
        return "raised"
    return "went through"


logits, labels = torch.zeros(3, 2, device=elsewhere), torch.zeros(3, dtype=torch.int64)
print("model and batch apart:", outcome(lambda: layer(torch.ones(3, 4))))
print("logits and labels apart:", outcome(lambda: torch.nn.functional.cross_entropy(logits, labels)))

# %% [markdown]
# ## Let the loader do the moving
#
# A loader that yields batches where the model is leaves no place for the mistake. `ResidentLoader` goes further: small
# pictures fit into the device's memory as bytes, so it puts them there once and cuts, normalizes and augments whole batches
# in place. `TorchvisionLoader` is the conventional way, one picture at a time. Both have one interface. Expect the
# same numbers from both, and the resident one to be many times faster.

# %%
splits = load_fashion_mnist()
part = splits.validation.subset(by_profile(quick=1000, full=5000))
loaders = {"DataLoader": TorchvisionLoader(part, 100, device=device), "resident": ResidentLoader(part, 100, device=device)}


def consume(loader):
    return sum(len(labels) for _, labels in loader.batches(0))


pairs = zip(loaders["DataLoader"].batches(0), loaders["resident"].batches(0), strict=True)
same = all(torch.allclose(one, other, atol=1e-6) for (one, _), (other, _) in pairs)
drains = {name: partial(consume, loader) for name, loader in loaders.items()}
timings = interleave(drains, batch=len(part), rounds=by_profile(quick=5, full=20), warmup=1)
print("same batches:", same)
print("resident against DataLoader, samples per second:", speedup(timings["DataLoader"], timings["resident"]))

# %% [markdown]
# ## The running model on each device
#
# Now the instrument of lesson 00, with one row for each device here, timed in turns and waited for: a GPU works behind the
# program's back, and a clock that is read before it has finished measures the time to *ask*. Expect one row on a machine
# without an accelerator. A number for a device that is not here would be a guess, so there is none.

# %%
checkpoint = data_directory() / "checkpoints" / "baseline.safetensors"
validation = ResidentLoader(splits.validation.subset(by_profile(quick=500, full=5000)), 250)
ledger, candidates = Ledger.local(), []
for place in devices:
    model = load(checkpoint).to(place)
    example = splits.validation.normalized()[:1].to(place)
    candidates.append(Candidate.from_torch(f"baseline fp32 on {place.type}", model, example, artefacts=[checkpoint]))
measurements = measure_candidates(candidates, validation, lesson="01", rounds=by_profile(quick=6, full=30))
for measurement in measurements:
    ledger.append(measurement)
scoreboard(measurements)

# %% [markdown]
# ## Throughput against the batch
#
# A larger batch gives each operation more work, so that less of the time goes into starting it. How much that
# brings depends on the device: a GPU with thousands of lanes starves on single pictures, a CPU core does not.
# All sizes are timed in turns, on one thread. Where the curve flattens, a larger batch buys nothing but waiting.

# %%
model = load(checkpoint).to(device)
images = splits.validation.normalized()[:64].to(device)
sizes = [1, 2, 4, 8, 16, 32, 64]
runs = {str(size): partial(model, images[:size]) for size in sizes}
with torch.inference_mode():
    timings = interleave(runs, rounds=by_profile(quick=7, full=30), warmup=2, threads=1, device=device)
throughputs = [size / timings[str(size)].median for size in sizes]
gain = max(throughputs) / throughputs[0]
best = sizes[throughputs.index(max(throughputs))]

# %% [markdown]
# Expect the sentence above the figure to state the gain over single pictures that was measured just now, on the device named.

# %%
picture, axes = new_picture(f"On {device.type}, batches of {best} give {gain:.1f} times the throughput of single images")
axes.plot(sizes, throughputs, marker="o")
axes.set_xscale("log", base=2)
axes.set_xticks(sizes, sizes)
axes.set_ylim(bottom=0)
axes.set_xlabel("batch size")
axes.set_ylabel("images per second")
picture

# %% [markdown]
# ## What held and what did not
#
# The claims of this lesson, with what the ledger knows about them. Most need an accelerator or the work on training
# acceleration; a claim without evidence is shown as that.

# %%
verdicts("01", ledger)

# %% [markdown]
# ## Your turn
#
# 1. Set `COOKBOOK_DEVICE` to a device that you don't have, restart the kernel and read the error of `pick_device`.
# 2. Build an optimizer, *then* move the model, and train a step. In which case does the optimizer hold the old parameters?
# 3. Repeat the throughput curve with as many threads as your machine has cores. Which batch size gains most?
#
# For the second one, this invariant must hold before and after the move. Expect `True`.

# %%
# NBVAL_CHECK_OUTPUT
network = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
network.to(device)
held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
print("the optimizer holds the model's own parameters:", held == {id(parameter) for parameter in network.parameters()})

# %% [markdown]
# ## Next
#
# 02 Mixed precision: fewer bits for each number, and what must stay in 32. Until it is written, the
# [README](../README.md) lists what there is.
