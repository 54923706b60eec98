# %% [markdown]
# # 00 Start here
#
# | | |
# |---|---|
# | **Question** | What is a model worth, in every dimension that this course will change? |
# | **You need** | Python and a little PyTorch; no GPU, no network |
# | **Time** | about two minutes on a two-core CPU in the quick profile; on a GPU: not recorded yet |
# | **You will have measured** | accuracy with its interval, size, operations, latency, memory and energy of one trained network, in two runtimes, and how far two runs of the same code lie apart |
#
# Courses on fast and small networks often time without a control and quote gains that are smaller
# than the noise. Here one network, the *running model*, goes through every lesson; one instrument
# measures it before and after each technique; and every claim ends in a verdict that is computed from
# recorded numbers. A technique that brings nothing is reported as plainly as one that does.

# %% [markdown]
# The first cell of each lesson imports what it needs and prints a stamp. Expect the versions, the device
# and the profile: `quick` shows how things work in minutes, and only `full` counts as evidence
# (set `COOKBOOK_PROFILE=full` before you start JupyterLab).

# %%
import json
from dataclasses import replace

import torch

from cookbook import (
    Augmentation, Candidate, ClaimEvidence, Ledger, Recipe, ResidentLoader, ResNetConfig, Runtime, build, by_profile,
    cache_directory, compare_paired, count_macs, count_parameters, data_directory, evaluate, export, fit, load,
    load_fashion_mnist, measure_candidates, parity, scoreboard, scoreboard_figure, seed_everything, spread, stamp,
    Table, verdicts, wilson_interval,
)
from cookbook.plots import new_picture

stamp()

# %% [markdown]
# ## The pictures
#
# Fashion-MNIST holds 70,000 grey pictures of clothes, 28 by 28 pixels, in ten classes. They come with
# the project: nothing is downloaded. They are cut into three parts with three purposes. We **fit** on
# *train*, **choose** on *validation* and **report** on *test*, once. Whoever chooses on the test
# pictures reports luck. The library refuses to train, to calibrate or to choose on the test part.
#
# Expect three lines with the sizes; the cut is fixed and keeps each class's share.

# %%
# NBVAL_CHECK_OUTPUT
splits = load_fashion_mnist()
for part in (splits.train, splits.validation, splits.test):
    print(part, "| pictures of each class:", sorted(set(part.labels.bincount().tolist())))

# %% [markdown]
# Let us look at them before we compute with them. Expect one row for each class; some of the shirts,
# pullovers and coats are hard to tell apart for people too.

# %%
rows = [splits.train.images[splits.train.labels == label][:14, 0] for label in range(10)]
mosaic = torch.cat([torch.cat(list(row), dim=1) for row in rows])
picture, axes = new_picture("Ten classes; shirts, pullovers and coats look alike", size=(7.0, 5.2))
axes.imshow(mosaic, cmap="gray")
axes.set_yticks(range(14, 280, 28), splits.train.classes)
axes.set_xticks([])
axes.grid(False)
picture

# %% [markdown]
# ## The running model
#
# A residual network with 20 layers, 32 channels wide at its entrance, trained by one command. Its
# weights and the record of that training ship with the project. Expect the command and what it reached.

# %%
checkpoint = data_directory() / "checkpoints" / "baseline.safetensors"
record = json.loads(checkpoint.with_suffix(".json").read_text())
model = load(checkpoint)
print(record["command"])
print(f"validation {record['validation']['accuracy']:.2%}, test {record['test']['accuracy']:.2%}")

# %% [markdown]
# ### Size and operations
#
# A convolution multiplies, for each number of its output, one filter with one patch of its input.
# Its multiply-accumulates (MACs) are therefore the size of the output times the size of one filter. Five
# lines count them; expect the library's count for the whole network to be equal to the number.

# %%
# NBVAL_CHECK_OUTPUT
example = splits.test.normalized()[:1]
counted = []
layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
hooks = [layer.register_forward_hook(lambda m, _, out: counted.append(out.numel() * m.weight[0].numel())) for layer in layers]
model(example)
for hook in hooks:
    hook.remove()
print(f"{count_parameters(model):,} parameters, {sum(counted):,} MACs for one picture in {len(layers)} layers")
print("equal to the library's count:", sum(counted) == count_macs(model, example))

# %% [markdown]
# ### Accuracy, with its interval
#
# An accuracy is a count of hits in a sample, so it comes with an uncertainty. Wilson's interval (E. B.
# Wilson, Journal of the American Statistical Association 22, 1927) is four lines long. Expect both
# computations to agree, and the interval to be wider than many published gains.

# %%
test = ResidentLoader(splits.test.subset(by_profile(quick=1000, full=10_000)), 250)
baseline = evaluate(model, test)
share, count, z = baseline.accuracy, len(baseline.labels), 1.959964
centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
half = z * ((share * (1 - share) + z**2 / (4 * count)) / count) ** 0.5 / (1 + z**2 / count)
low, high = wilson_interval(baseline.hits, count)
print(f"{baseline.hits} of {count} pictures: {share:.2%}, 95 % interval [{low:.2%}, {high:.2%}]")
print("by hand the same:", abs(centre - half - low) < 1e-6 and abs(centre + half - high) < 1e-6)

# %% [markdown]
# ## A file that can be shipped
#
# PyTorch trains; a *runtime* serves. We export the network to ONNX, an open format, and run the file in
# ONNX Runtime. Another program has other rounding, so we ask for parity: how far apart are the
# outputs, in units of their own spread? Expect a difference far below one thousandth and the same classes.

# %%
exported = export(model, example, cache_directory() / "lessons" / "00" / "baseline.onnx")
runtime = Runtime(exported, threads=1)
images, _ = next(iter(test))
same = parity(model, runtime, images)
print(same)

# %% [markdown]
# The next cell prints what must hold on every machine. Expect a file of little more than four bytes a parameter,
# and the same class for each picture.

# %%
# NBVAL_CHECK_OUTPUT
print("bytes for each parameter, rounded:", round(exported.stat().st_size / count_parameters(model), 1))
print("difference below a thousandth:", same.largest < 1e-3, "| same classes:", same.agreement == 1.0)

# %% [markdown]
# ## One instrument
#
# `measure_candidates` measures whatever can predict: all candidates in turns, A B A B, so that a
# machine that slows down slows both; with pinned threads; accuracy counted per picture; bytes as they lie
# on disk; peak memory; energy where a counter can be read. Every result goes to the *ledger*, one line each. Expect the
# speed as a ratio to the first row with its 95 % interval, and the milliseconds of this machine beside it.

# %%
ledger = Ledger.local()
candidates = [
    Candidate.from_torch("baseline fp32", model, example, artefacts=[checkpoint], seed=record["recipe"]["seed"]),
    Runtime(exported, threads=1).candidate(
        "baseline fp32, exported", parameters=count_parameters(model), macs=count_macs(model, example)
    ),
]
measurements = measure_candidates(candidates, test, lesson="00", rounds=by_profile(quick=8, full=30))
for measurement in measurements:
    ledger.append(measurement)
scoreboard(measurements)

# %% [markdown]
# Two dimensions are no columns of the scoreboard, but every measurement holds them: the memory that a batch of 64
# adds at its peak, and what one picture costs to answer. Joules need a counter that the operating system lets us
# read; where there is none, the dash says so and the processor's seconds stand in. Expect less memory in the runtime that
# planned its buffers in advance.

# %%
costs = [
    (row.subject, f"{row.peak_memory / 1e6:.1f}", "—" if row.energy_joules is None else f"{1e3 * row.energy_joules:.1f}",
     f"{1e3 * row.values['cpu_seconds_per_image']:.2f}")
    for row in measurements
]
Table(("subject", "peak memory, MB", "energy, mJ an image", "CPU time, ms an image"), costs, title="Memory and energy")

# %% [markdown]
# The figure draws the two rows as every later lesson will: accuracy upwards, latency to the right on a
# logarithmic axis, the area of a marker for its bytes. Better is up and to the left. Expect two points at
# the same height: exporting changes the speed, not the answers.

# %%
scoreboard_figure(measurements)

# %% [markdown]
# ### Why is the same network faster elsewhere?
#
# The arithmetic is the same. ONNX Runtime read the whole graph beforehand: it folded each BatchNorm into the
# convolution before it, fused the ReLU behind it, and laid the weights out for this processor. PyTorch
# dispatches one operation after the other from Python. Lesson 07 looks at the kernels that really ran.
#
# ## Better, worse, or no difference
#
# A comparison ends in one of three words. On the same pictures, only those on which the two models disagree
# carry information; McNemar's test (Psychometrika 12, 1947) asks whether they favour one side. Expect `no
# difference` for the exported file.

# %%
# NBVAL_CHECK_OUTPUT
deployed = torch.cat([runtime(pictures).argmax(1) for pictures, _ in test])
comparison = compare_paired(baseline.correct, deployed == baseline.labels)
print(comparison.word)

# %% [markdown]
# ## Two runs of the same code
#
# Training starts from random weights and sees the pictures in random order. With the same seed, two
# runs on one machine end bit for bit alike. Expect `True`: what follows is no accident of the machine.

# %%
# NBVAL_CHECK_OUTPUT
config = by_profile(quick=ResNetConfig(depth=8, width=8), full=ResNetConfig())
recipe = Recipe(**record["recipe"])
recipe = by_profile(quick=replace(recipe, epochs=3, ema_decay=None, channels_last=False), full=recipe)
pictures = splits.train.subset(by_profile(quick=2000, full=55_000))
augmentation = Augmentation(crop=2, flip=True)


def train_once(seed, epochs=recipe.epochs):
    seed_everything(seed)
    network = build(config)
    loader = ResidentLoader(pictures, by_profile(quick=50, full=128), augmentation=augmentation, seed=seed)
    return network, fit(network, loader, replace(recipe, seed=seed, epochs=epochs))


twins = [train_once(0, epochs=1)[0].state_dict() for _ in range(2)]
print("same seed, same weights:", all(torch.equal(twins[0][name], twins[1][name]) for name in twins[0]))

# %% [markdown]
# Now three seeds, nothing else changed. The step time varies as well: other work on the machine, the
# temperature of the processor, the memory that the program happened to get. Expect a range of accuracies
# that a paper could have sold as progress. (In the quick profile the network is tiny and hardly trained,
# so that its range is large; the full profile repeats the running model's own training.)

# %%
validation = ResidentLoader(splits.validation, 500)
accuracies, step_times = [], []
for seed in (0, 1, 2):
    network, history = train_once(seed)
    accuracies.append(100 * evaluate(network, validation).accuracy)
    step_times.append(min(epoch.seconds for epoch in history))
runs, times = spread(accuracies), spread(step_times)
values = {"accuracy_range_points": runs.range, "step_time_range_percent": 100 * times.range / times.mean}
ledger.append(ClaimEvidence(claim="measure-01", lesson="00", values=values, seeds=(0, 1, 2)))
print(f"accuracy {runs.low:.2f} to {runs.high:.2f} %, standard deviation {runs.std:.2f} points")
print(f"step time: range {values['step_time_range_percent']:.1f} % of the mean")

# %% [markdown]
# ## What held and what did not
#
# The verdict is computed from the ledger by the rule that `claims.toml` states; nobody types it. From the quick
# profile it is labelled, because a small experiment can show how a verdict is found, and no more than that.

# %%
verdicts("00")

# %% [markdown]
# ## Your turn
#
# 1. Set `width` to 16 and predict the MACs before you run the cell. Halving the width halves the inputs *and*
#    the outputs of each convolution. The check compares with a quarter.
# 2. Export a network of another depth and compare the two files' sizes with `bytes_on_disk`.
# 3. Train with `seed=3` and `seed=4` as well. Does the range shrink when there are more runs, or grow?
#
# The check is an invariant, not a number to hit: it holds for any width that you choose.

# %%
# NBVAL_CHECK_OUTPUT
width = 32
ratio = count_macs(build(ResNetConfig(width=width)), example) / count_macs(model, example)
print("MACs follow the square of the width, within 5 %:", abs(ratio / (width / 32) ** 2 - 1) < 0.05)

# %% [markdown]
# ## Next
#
# [01 GPU setup](01_gpu_setup.ipynb): which device does the work, how to find out why it is not the one you
# hoped for, and what happens when a model and its data live in different places.
