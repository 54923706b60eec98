# %% [markdown]
# # 01 GPU setup
#
# | | |
# |---|---|
# | **Question** | Which device does the work, what keeps it waiting, and which settings of a training pay? |
# | **You need** | lesson 00; a GPU is welcome and not needed |
# | **Time** | about two minutes on a two-core CPU in the quick profile, about 25 in the full one; on a GPU: not recorded yet |
# | **You will have measured** | what the doctor recognizes, where the time of a step goes, throughput against loader and batch size, hidden synchronizations, and what normalizing, a schedule and a fitting width are worth |
#
# A GPU is fast and waits often: for a driver that fits, for data, for a larger batch, for a program that asks it for a number at
# each step. This lesson makes each wait visible, and then puts three pieces of common advice on training to the test.

# %% [markdown]
# Imports and stamp. Expect `cpu` in the stamp when no accelerator works here: every cell below runs all the same.

# %%
import math
from dataclasses import replace
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cookbook import (
    Augmentation, Candidate, ClaimEvidence, Ledger, Recipe, ResidentLoader, ResNetConfig, Table, TorchvisionLoader, build,
    by_profile, compare_seeds, diagnose, evaluate, fit, load_fashion_mnist, measure_candidates, pick_device, scoreboard,
    seed_everything, speedup, stamp, verdicts,
)
from cookbook.doctor.cases import constructed_cases, healthy_machines
from cookbook.models import PerceptronConfig
from cookbook.plots import batch_sweep_figure, breakdown_figure, new_picture
from cookbook.throughput import count_synchronizations, find_training_batch_size, step_breakdown, tune_loader

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
# Can causes be told apart mechanically? We can't break this machine in every known way, but we can write down the facts
# that each break leaves behind, and ask the doctor about those. A case counts when its cause *and* its remedy are named
# and nothing else is blamed; machines that are well must stay unblamed. Expect all of them.

# %%
# NBVAL_CHECK_OUTPUT
ledger = Ledger.local()
cases, healthy = constructed_cases(), healthy_machines()
named = sum(case.diagnosed() for case in cases)
blamed = [name for name, probe in healthy.items() if any(finding.level == "problem" for finding in diagnose(probe))]
values = {"diagnosed_share": named / len(cases), "cases": len(cases), "healthy_machines_blamed": len(blamed)}
ledger.append(ClaimEvidence(claim="gpu-01", lesson="01", values=values))
print("every constructed cause is named:", named == len(cases), "| machines that are well and were blamed:", len(blamed))
print("nothing stands in the way here:", all(finding.level != "problem" for finding in findings))

# %% [markdown]
# ## One place decides
#
# Code that spells `"cuda"` in ten places runs on one machine. `pick_device` asks once: CUDA (ROCm builds answer
# to the same name), then Apple's MPS, then the CPU; `COOKBOOK_DEVICE` overrides it. Expect the device of the stamp.

# %%
device = pick_device()
print("this lesson computes on:", device)

# %% [markdown]
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
# ### What a mismatch looks like
#
# Model, data and the loss's targets must be on one device. torch does not move anything by itself, because a hidden copy
# at each step would be slow and nobody would notice. The error comes wherever the two meet: at the first layer, or at the
# loss. Expect a sentence that names both devices, and `raised` twice; the cure is to move the batch, not to catch the error.

# %%
elsewhere = device if device.type != "cpu" else torch.device("meta")
layer = torch.nn.Linear(4, 2).to(elsewhere)
logits, labels = torch.zeros(3, 2, device=elsewhere), torch.zeros(3, dtype=torch.int64)
meetings = {"model and batch": partial(layer, torch.ones(3, 4)), "logits and labels": partial(torch.nn.functional.cross_entropy, logits, labels)}
for name, compute in meetings.items():
    try:
        compute()
    except RuntimeError as error:
        print(f"{name}: raised {type(error).__name__} | {str(error).splitlines()[0]}")

# %% [markdown]
# ## Where a step's time goes
#
# A step waits for its batch, computes the loss (*forward*), the gradients (*backward*) and the new weights (*optimizer*).
# `step_breakdown` trains a copy of the model with `fit` and gives every moment to one of the four, so that they add up to the step.
# We feed the same small network in two ways: by the conventional `DataLoader`, which transforms one picture at a time, and by
# `ResidentLoader`, which keeps the pictures as bytes on the device and transforms whole batches there. Expect the first to
# spend much of its time on waiting.

# %%
splits = load_fashion_mnist()
pictures = splits.train.subset(by_profile(quick=1000, full=22_000))
augmentation = Augmentation(crop=2, flip=True)
config = ResNetConfig(depth=8, width=by_profile(quick=8, full=16))
recipe = Recipe(epochs=by_profile(quick=3, full=4), learning_rate=0.05, schedule="constant")
loaders = {"DataLoader": TorchvisionLoader, "resident": ResidentLoader}
breakdowns = {
    name: step_breakdown(
        build(config).to(device), kind(pictures, 64, augmentation=augmentation, device=device), recipe,
        steps=by_profile(quick=10, full=100),
    )
    for name, kind in loaders.items()
}
breakdown_figure(breakdowns)

# %% [markdown]
# Parts that do not add up would mean that some time was lost or counted twice. Expect `True` for both.

# %%
# NBVAL_CHECK_OUTPUT
for name, breakdown in breakdowns.items():
    parts = sum(breakdown.mean(phase) for phase in breakdown.phases)
    print(name, "| the four parts are the whole:", math.isclose(parts, breakdown.seconds, rel_tol=1e-6))

# %% [markdown]
# ### Which loader
#
# A `DataLoader` has knobs: worker processes, batches prepared ahead, page-locked (*pinned*) memory from which a copy to the GPU can
# overlap with its work. `tune_loader` times them all in turns. Its workers descend from a fresh process (`forkserver`), because
# a plain fork of a program that has computed with several threads can hang. Without CUDA there is nothing to copy to, so
# pinning is left out. Expect the recommendation below the table, and the resident pictures far ahead at this size of picture.

# %%
tuning = tune_loader(
    pictures, 64, augmentation=augmentation, device=device, workers=(0, 1, 2),
    batches=by_profile(quick=5, full=100), rounds=by_profile(quick=3, full=30),
)
tuning

# %% [markdown]
# ## The batch
#
# A larger batch gives each operation more work, so that less of the time goes into starting it; a GPU with thousands of lanes
# starves on small ones, a CPU core does not. The usual advice is to grow it until memory runs out. `find_training_batch_size`
# doubles, then bisects, on a copy of the model; where there is no GPU a limit in bytes stands in. Expect the largest batch
# that fits, and the one that is *fastest*, which need not be the same.

# %%
images, targets = next(iter(ResidentLoader(pictures, 256, device=device)))
found = find_training_batch_size(
    build(config).to(device), images, targets, recipe, start=8, limit=by_profile(quick=128, full=1024),
    memory_limit=None if device.type == "cuda" else by_profile(quick=40, full=600) * 10**6, rounds=by_profile(quick=3, full=10),
)
speeds = found.throughputs
values = {"throughput_gain": speeds[max(speeds)] / speeds[min(speeds)], "best_batch": found.best, "largest_batch": found.largest}
ledger.append(ClaimEvidence(claim="gpu-03", lesson="01", values=values, note="training steps of the lesson's network"))
found

# %% [markdown]
# The sentence above the figure states the gain that was measured just now, on the device named. Where the curve flattens, a larger
# batch buys no speed, and it costs accuracy unless the learning rate follows (lesson 02).

# %%
batch_sweep_figure({f"On {device.type}": speeds})

# %% [markdown]
# ## Hidden synchronization
#
# A GPU works behind the program's back: a call returns at once, and the next one is prepared meanwhile. `.item()`, `print` or an `if`
# on a tensor needs its value, so that the program stops until the GPU has caught up, and the GPU then stops until it gets work
# again. Every read ends in one operation of torch, which a *dispatch mode* can see. Expect three, for `item`, `float` and `if`.

# %%
# NBVAL_CHECK_OUTPUT
class Reads(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


weight = torch.nn.Parameter(torch.ones(3))
with Reads() as reads:
    total = weight.sum().detach()
    total.item(), float(total), "large" if total > 2 else "small"
print("values read:", reads.count)

# %% [markdown]
# On a CPU that misses half of the story: `.cpu()` and `.numpy()` cost nothing there and call no operation, and the optimizer
# reads counters that lie on the host by design. `count_synchronizations` treats the CPU as if it were the GPU, follows what is
# computed from parameters, and names the line; on CUDA it uses the driver's own warnings. Here is a loop with five
# mistakes. Expect each with its line, once for each of two steps, and nothing about Adam.

# %%
network = build(ResNetConfig(depth=8, width=8)).to(device)
optimizer = torch.optim.Adam(network.parameters(), foreach=False)


def careless_loop(log, steps=2):
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(network(images[:16]), targets[:16])
        loss.backward()
        optimizer.step()
        log.append(loss.item())
        log.append(loss.detach().cpu().numpy())
        log.append(f"{loss:.1f}")
        if loss > 100:
            break
        log.append(network(images[:16])[targets[:16] > 4])


careless = count_synchronizations(lambda: careless_loop([]), device=device)
careless

# %% [markdown]
# And `fit`? It collects its losses on the device and reads them together: every 50 steps on an accelerator, each step on a CPU, where
# reading is free. Expect no other read than this one, which is meant.

# %%
# NBVAL_CHECK_OUTPUT
resident = ResidentLoader(pictures.subset(200), 20, device=device)
report = count_synchronizations(lambda: fit(network, resident, replace(recipe, epochs=1)), device=device)
print("every read of fit is one of its losses:", all(place.inside.startswith("training/") for place in report.places))

# %% [markdown]
# ## What a GPU said
#
# Mismatched devices, reads in the loop, pinned memory and the batch's limit are questions to a GPU. `cookbook record --gpu`
# answers them on one and writes the answers to the ledger that comes with the project. Expect a row for each, with device and date,
# or the sentence that nothing was recorded; on a machine without a GPU no number is guessed.

# %%
shown = {
    "gpu-02": ("cases_raised_share", "cases"),
    "gpu-03": ("throughput_gain", "gain_of_last_doubling", "best_batch", "largest_batch"),
    "gpu-04": ("slowdown_every_step", "slowdown_every_100", "synchronizations_every_step"),
    "gpu-05": ("step_time_ratio", "step_time_over_resident"),
}
recorded = [row for claim in shown for row in Ledger.recorded().claim_evidence(claim) if not row.provenance.device.startswith("cpu")]
rows = [
    (row.claim, ", ".join(f"{name.replace('_', ' ')} {row.values[name]:.3g}" for name in shown[row.claim] if name in row.values),
     row.note, f"{row.provenance.device}, {row.recorded[:10]}")
    for row in recorded
]
Table(("claim", "values", "what ran", "where and when"), rows, "" if rows else "Needs an accelerator (not recorded yet).", "Recorded on a GPU")

# %% [markdown]
# ## Does normalizing the input help?
#
# Pixels come as 0 to 255. *Normalizing* shifts and scales them to mean 0 and deviation 1, by the training pictures' statistics; the
# control only scales to 0…1. Both see the same pictures in the same order from the same initial weights, and each takes the better of two
# learning rates. We count epochs until the validation accuracy reaches a mark, interpolating within the epoch. A
# perceptron, for which the advice was made (LeCun et al., *Efficient BackProp*, 1998), decides; a network with BatchNorm
# stands beside it. Expect the second to care less, because its own layers normalize.

# %%
mark, most = by_profile(quick=0.65, full=0.85), by_profile(quick=5, full=12)
small = splits.train.subset(by_profile(quick=600, full=11_000))
judges = splits.validation.subset(by_profile(quick=1000, full=5000))


def epochs_to_mark(network_config, normalize, rate, seed):
    train, validation = (part if normalize else replace(part, mean=(0.0,), std=(1.0,)) for part in (small, judges))
    seed_everything(seed)
    setting = replace(recipe, epochs=most, learning_rate=rate, seed=seed)
    loaders = ResidentLoader(train, 50, device=device, seed=seed), ResidentLoader(validation, 500, device=device)
    history = fit(build(network_config).to(device), loaders[0], setting, validation=loaders[1])
    scores = [0.1] + [record.validation_accuracy for record in history]
    crossing = next((epoch for epoch, score in enumerate(scores) if score >= mark), None)
    if crossing is None:
        return float(most)  # not reached: a lower bound
    return crossing - (scores[crossing] - mark) / (scores[crossing] - scores[crossing - 1])

# %% [markdown]
# The ratio of epochs comes with a paired interval over the seeds, on the logarithm, because a ratio of 2 and one of 1/2 are equally far
# from 1. Expect the ratio in words: above 1, normalizing needs fewer epochs.

# %%
seeds, rates = (0, 1, 2), (0.01, 0.05)
networks = {"perceptron": PerceptronConfig(hidden=(256, 128)), "with BatchNorm": config}
ratios = {}
for name, network_config in networks.items():
    needed = {}
    for normalize in (True, False):
        tried = [[epochs_to_mark(network_config, normalize, rate, seed) for seed in seeds] for rate in rates]
        needed[normalize] = min(tried, key=sum)
    logs = [[math.log(value) for value in needed[normalize]] for normalize in (True, False)]
    paired = compare_seeds(*logs)
    ratios[name] = [math.exp(value) for value in (paired.difference, paired.low, paired.high)]
    print(f"{name}: {sum(needed[True]) / 3:.1f} epochs to {mark:.0%} normalized, {sum(needed[False]) / 3:.1f} without: "
          f"{ratios[name][0]:.2f} times [{ratios[name][1]:.2f}, {ratios[name][2]:.2f}]")

# %% [markdown]
# The numbers go to the ledger as they are. Expect no output but a count of what was trained.

# %%
names = ("epochs_ratio", "epochs_ratio_low", "epochs_ratio_high")
values = dict(zip(names, ratios["perceptron"], strict=True)) | {"epochs_ratio_batchnorm": ratios["with BatchNorm"][0], "mark": mark}
ledger.append(ClaimEvidence(claim="data-01", lesson="01", values=values, seeds=seeds))
print("trainings:", 2 * 2 * len(rates) * len(seeds))

# %% [markdown]
# ## Does a decaying rate help?
#
# A large step gets near the goal and a small one into it. The claim is that a schedule that decays beats a constant rate at equal
# epochs. A constant rate prefers another value than a decaying one, so both choose between two rates, on validation and with a
# seed of their own; step and one-cycle take that of cosine. Then all four train from the same seeds, and the test pictures are
# asked once for each. Expect a table with the difference to the constant rate, paired by seed.

# %%
test = splits.test.subset(by_profile(quick=1000, full=10_000))


def train_once(schedule, rate, seed, width=config.width):
    seed_everything(seed)
    model = build(replace(config, width=width)).to(device)
    loader = ResidentLoader(pictures, 64, augmentation=augmentation, device=device, seed=seed)
    fit(model, loader, replace(recipe, schedule=schedule, learning_rate=rate, seed=seed))
    return model


def score(model, split):
    return 100 * evaluate(model, ResidentLoader(split, 500, device=device)).accuracy


choices = {
    schedule: max((0.05, 0.2), key=lambda rate: score(train_once(schedule, rate, seed=100), judges))
    for schedule in ("constant", "cosine")
}
print("chosen on validation:", choices)

# %% [markdown]
# Now the comparison. Expect the word `no difference` unless the gain stands out from the spread of three seeds.

# %%
schedules = ("constant", "step", "cosine", "one-cycle")
models = {name: [train_once(name, choices.get(name, choices["cosine"]), seed) for seed in seeds] for name in schedules}
accuracies = {name: [score(model, test) for model in trained] for name, trained in models.items()}
compared = {name: compare_seeds(accuracies["constant"], accuracies[name]) for name in schedules[1:]}
step, cosine, one_cycle = (compared[name] for name in schedules[1:])
values = {"step_minus_constant_points": step.difference, "one_cycle_minus_constant_points": one_cycle.difference}
values |= {"cosine_minus_constant_points": cosine.difference}
values |= {"cosine_minus_constant_points_low": cosine.low, "cosine_minus_constant_points_high": cosine.high}
ledger.append(ClaimEvidence(claim="train-01", lesson="01", values=values, seeds=seeds))
rows = [
    (name, f"{choices.get(name, choices['cosine'])}", f"{sum(scores) / 3:.2f} %", str(compared.get(name, "control")))
    for name, scores in accuracies.items()
]
Table(("schedule", "rate", "test accuracy", "points against constant, paired by seed"), rows, title=f"{recipe.epochs} epochs")

# %% [markdown]
# ## Is a larger network better?
#
# Half the width is about a quarter of the operations. We train three widths with the cosine schedule, each with the same seeds, and call
# *fitting* the fastest one whose validation accuracy lies within half a point of the largest one's, which is about what 10,000 pictures can
# tell apart. The instrument measures all three on the test pictures. Expect the smallest to be several times faster.

# %%
widths = by_profile(quick=(4, 8, 16), full=(8, 16, 32))
families = {width: models["cosine"] if width == config.width else [train_once("cosine", choices["cosine"], seed, width) for seed in seeds] for width in widths}
validated = {width: sum(score(model, judges) for model in family) / 3 for width, family in families.items()}
fitting = min(width for width in widths if validated[width] >= validated[widths[-1]] - 0.5)
example = splits.validation.normalized()[:1].to(device)
candidates = [Candidate.from_torch(f"ResNet-8×{width}", families[width][0], example, seed=0) for width in reversed(widths)]
measurements = measure_candidates(candidates, ResidentLoader(test, 250, device=device), lesson="01", rounds=by_profile(quick=8, full=30))
for measurement in measurements:
    ledger.append(measurement)
scoreboard(measurements)

# %% [markdown]
# The figure shows the mean of the three seeds. Expect its title to say how much faster the fitting width is, or that none of the narrower
# ones fits.

# %%
latency = {width: row.latency[1] for width, row in zip(reversed(widths), measurements, strict=True)}
tested = {width: sum(score(model, test) for model in family) / 3 for width, family in families.items()}
gain, lost = speedup(latency[widths[-1]], latency[fitting]), tested[widths[-1]] - tested[fitting]
values = {"speedup_of_the_fitting_width": gain.value, "points_lost": lost, "fitting_width": fitting, "largest_width": widths[-1]}
ledger.append(ClaimEvidence(claim="train-02", lesson="01", values=values, seeds=seeds))
narrow = f"Width {fitting} answers {gain.value:.1f} times as fast as width {widths[-1]}; its accuracy differs by {-lost:+.2f} points"
picture, axes = new_picture(narrow if fitting < widths[-1] else f"No narrower width comes within half a point of width {fitting}")
axes.plot([1e3 * latency[width].median for width in widths], [tested[width] for width in widths])
for width in widths:
    axes.annotate(f"width {width}", (1e3 * latency[width].median, tested[width]), xytext=(8, -4), textcoords="offset points")
axes.margins(x=0.15, y=0.15)
axes.set_xlabel("latency of one picture, median, ms")
axes.set_ylabel("test accuracy, mean of three seeds, %")
picture

# %% [markdown]
# ## What held and what did not
#
# The claims of this lesson, with what the ledger knows about them. Where only a GPU can decide and none was recorded, the
# verdict says so; CPU numbers stand above and decide nothing there.

# %%
verdicts("01")

# %% [markdown]
# ## Your turn
#
# 1. Set `COOKBOOK_DEVICE` to a device that you don't have, restart the kernel and read the error of `pick_device`.
# 2. Mend the five mistakes of `careless_loop` and watch it again. Which of them can wait until the end of the epoch?
# 3. Let pixels run to 255: `replace(part, mean=(0.0,), std=(1 / 255,))`. Does either network still learn at these rates?
# 4. Build an optimizer, *then* move the model, and train a step. In which case does the optimizer hold the old parameters?
#
# For the last one, this invariant must hold before and after the move. Expect `True`.

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
# [02 Mixed precision](02_mixed_precision.ipynb): fewer bits for each number, what must stay in 32, and the whole speed stack
# one change at a time.
