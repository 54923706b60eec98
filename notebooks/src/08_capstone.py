# %% [markdown]
# # 08 Capstone
#
# | | |
# |---|---|
# | **Question** | What remains of each gain when the techniques are combined, and in which order? |
# | **You need** | lessons 04 to 07; no GPU, no network |
# | **Time** | about a minute and a half on one CPU core in the quick profile, under half an hour in the full one; on a GPU: not recorded yet |
# | **You will have measured** | the running model pruned, distilled and quantized under a budget, stage by stage; a file that is smaller still on disk; each technique alone against all three in several orders, at equal epochs and over three seeds; what one core serves before and after |
#
# Each lesson so far took one technique and one control. Whoever ships a model asks for something else: ten times faster, at most half a
# point worse, and on Monday. That is a *budget*, and a budget is met or it is not. Gains multiply on slides. Here the stages run one after
# the other on the running model, every stage is measured beside the model that it started from, and the last line says *met* or
# by how much it was missed.

# %% [markdown]
# The first cell imports what the lesson needs and prints the stamp: versions, device and profile.

# %%
import copy
import tempfile
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from statistics import fmean, median

import torch
from torchvision.utils import save_image

from cookbook import (Budget, ClaimEvidence, Distill, Ledger, MACs, Outcome, Prune, Quantize, Recipe, Relative, ResidentLoader, ResNetConfig, Runtime, Splits, Table, Work, build, by_profile, bytes_on_disk, compare_seeds,
    compress, count_macs, count_parameters, data_directory, evaluate, fit, kernels, load, load_fashion_mnist, measure_candidates, quantize, scoreboard, scoreboard_figure, seed_everything, serve_load, serving_table, speedup, stamp, unpack_onnx, verdicts)  # fmt: skip
from cookbook.cli.compress import compress as compress_command
from cookbook.experiments.capstone import recorded_targets
from cookbook.experiments.combination import recorded_arms
from cookbook.pipeline.writing import write_file

stamp()

# %% [markdown]
# The running model, its pictures, the ledger, and a folder that goes away with the kernel. The quick profile takes few pictures.
# Expect the sizes.

# %%
model = load(data_directory() / "checkpoints" / "baseline.safetensors")
whole = load_fashion_mnist()
parts = by_profile(quick=(400, 100, 200), full=(55_000, 5_000, 10_000))
splits = Splits(*(split.subset(size) for split, size in zip((whole.train, whole.validation, whole.test), parts, strict=True)))
example = splits.validation.normalized()[:2]
test = ResidentLoader(splits.test, 250)
ledger, SEEDS = Ledger.local(), (0, 1, 2)
place = tempfile.TemporaryDirectory()
folder = Path(place.name)
print(f"{count_parameters(model):,} parameters, {count_macs(model, example):,} MACs;", splits.train)

# %% [markdown]
# ## A budget
#
# A budget is three bounds, all relative to the fp32 model in the same runtime on the same thread: latency of one picture, points of
# accuracy, bytes of the file. Checking it takes three comparisons. Expect the bounds that fail, with the amount, and nothing for what holds.

# %%
# NBVAL_CHECK_OUTPUT
budget = Budget(latency=0.1, accuracy_drop=0.5, bytes=0.1)
print(budget)
for found in (Relative(latency=0.08, accuracy_drop=0.4, bytes=0.05), Relative(latency=0.2, accuracy_drop=0.7, bytes=0.05)):
    by_hand = [found.latency <= 0.1, found.accuracy_drop <= 0.5, found.bytes <= 0.1]
    broken = budget.check(found)
    print("met" if all(by_hand) else "; ".join(map(str, broken)), "| the library agrees:", len(broken) == by_hand.count(False))

# %% [markdown]
# ## The running model under that budget
#
# `compress` chains the stages: prune, train the rest on the unpruned model's answers, go to integers, export. With nothing but
# a budget it measures how far to prune; here the share of the operations is given, so that the lesson's widths are the same on every machine. In the
# quick profile the bounds are loose, the training is a token, and the integers come after it instead of through it. Expect a line for everything that begins.

# %%
asked = by_profile(quick=Budget(latency=0.5, accuracy_drop=30, bytes=0.1), full=Budget(latency=0.1, accuracy_drop=0.5, bytes=0.05))
recipe = Recipe(epochs=by_profile(quick=2, full=3), learning_rate=by_profile(quick=0.1, full=0.05), channels_last=True)
stages = (
    Prune(MACs(by_profile(quick=0.25, full=0.15)), multiples=(16, 8)),
    Distill(),
    Quantize(way=by_profile(quick="ptq", full="qat"), recipe=replace(recipe, epochs=1, learning_rate=0.01)),
)
settings = dict(
    budget=asked, folder=folder / "running", stages=stages, recipe=recipe, entropy_coded=True,
    batch_size=by_profile(quick=50, full=128), device="cpu", rounds=by_profile(quick=3, full=30),
)
compressed = compress(model, splits, **settings, announce=print)

# %% [markdown]
# The verdict is one sentence, and it is the same sentence in the report and at a terminal. The same call again, whether the first one was
# interrupted or not, does only what is left to do. Expect the verdict on validation, and `True`.

# %%
print(compressed.verdict)
print("called again, it goes on at the end:", compress(model, splits, **settings).measurement == compressed.measurement)

# %% [markdown]
# What did each stage cost, and what did it bring? All files were timed in turns with the fp32 file. Expect speed from pruning and from
# integers, accuracy from the training between them, and bytes from both.

# %%
rows, before = [], compressed.baseline
for stage in compressed.stages:
    total, step = Relative.of(stage.measurement, compressed.baseline), Relative.of(stage.measurement, before)
    rows.append((stage.name, f"{stage.seconds:.0f} s", f"{step.points_gained:+.2f}", f"{1 / step.latency:.2f}×", f"{1 / total.latency:.2f}×", f"{1 / total.bytes:.1f}×"))
    before = stage.measurement
Table(("stage", "took", "points gained", "speed by itself", "speed so far", "as small so far"), rows, title="Stage by stage, on validation")

# %% [markdown]
# What holds on every machine. Expect `True` four times.

# %%
# NBVAL_CHECK_OUTPUT
first, last = compressed.stages[0].measurement, compressed.stages[-1].measurement
print("half of the operations or fewer:", first.macs <= 0.5 * compressed.baseline.macs)
print("integers do not change the count:", last.macs == first.macs)
print("every convolution runs in 8 bits:", kernels(compressed.stages[-1].path).coverage["conv"].share == 1.0)
print("at least 8 times smaller:", Relative.of(last, compressed.baseline).bytes <= 1 / 8)

# %% [markdown]
# ### Smaller still on disk
#
# Integers that training left near zero are frequent, and frequent values need fewer bits: the last step of *Deep Compression* (Han et al.,
# arXiv 1510.00149). The packed file is for storing and sending; a runtime needs the plain one. Expect it back byte for byte.

# %%
# NBVAL_CHECK_OUTPUT
plain = unpack_onnx(compressed.packed, folder / "unpacked.onnx")
print("the same bytes:", plain.read_bytes() == compressed.path.read_bytes())
print("packed is smaller:", bytes_on_disk(compressed.packed) < bytes_on_disk(compressed.path))

# %% [markdown]
# Expect the sizes, plain and packed, beside the fp32 file.

# %%
floats, smallest = folder / "running" / "0-baseline" / "model.onnx", compressed.stages[-1].path
sizes = {"fp32 ONNX": floats, "after the last stage": smallest, "to ship": compressed.path, "to ship, packed": compressed.packed}
sizes = {name: bytes_on_disk(file) for name, file in sizes.items()}
Table(("file", "bytes", "as small"), [(name, f"{size:,}", f"{sizes['fp32 ONNX'] / size:.1f}×") for name, size in sizes.items()], title="Bytes on disk")

# %% [markdown]
# ## A budget that cannot be met
#
# Ask for the impossible, and the answer is the file that breaks the budget least, even if that is the unchanged model, together with the bounds
# that fail and by how much. At a terminal `cookbook compress` then ends with exit status 3, so that a script can tell. Nothing that was missed is ever
# called met. Expect this run's file, judged by a budget of a thousandth.

# %%
impossible = Budget(latency=0.001, accuracy_drop=0.0, bytes=0.001)
shown = replace(compressed, budget=impossible, violations=impossible.check(compressed.relative))
print(shown.verdict)
print("met:", shown.met, "| bounds that fail:", [violation.bound for violation in shown.violations])

# %% [markdown]
# ## One technique, or all three?
#
# Now the claim: combined, the three beat any one of them. The control is the same network with the same extra epochs and nothing
# removed. A single technique may use all of these epochs, and pruning alone may remove more; each of the three stages gets a third.
# First three small networks, one a seed. Expect their accuracies on validation.

# %%
CONFIG = by_profile(quick=ResNetConfig(depth=8, width=8, stem_stride=2), full=ResNetConfig(depth=8, width=32, stem_stride=2))
small = Splits(whole.train.subset(by_profile(quick=600, full=20_000)), splits.validation, splits.test)
SIZE, MULTIPLE = by_profile(quick=(25, 4), full=(128, 8))
BASE = Recipe(epochs=by_profile(quick=4, full=6), learning_rate=0.1)
TUNE = replace(BASE, epochs=3, learning_rate=0.03)
validation = ResidentLoader(splits.validation, 250)
originals = []
for seed in SEEDS:
    seed_everything(seed)
    originals.append(build(CONFIG))
    fit(originals[-1], ResidentLoader(small.train, SIZE, seed=seed), replace(BASE, seed=seed))
print("on validation:", [f"{evaluate(network, validation).accuracy:.1%}" for network in originals])

# %% [markdown]
# The arms, as lists of stages for the pipeline. In the quick profile the integers come after the training, so that its epochs
# belong to the other stages. Expect every arm with the epochs that it trains: the same for all.

# %%
ORDERS = by_profile(quick=(("prune", "distill", "quantize"), ("distill", "prune", "quantize")), full=tuple(permutations(("prune", "distill", "quantize"))))
INTEGERS = by_profile(quick=Quantize("ptq"), full=Quantize(recipe=replace(TUNE, epochs=1)))


def pruned(share, epochs):
    return Prune(MACs(share, tolerance=0.1), multiples=(MULTIPLE,), recipe=replace(TUNE, epochs=epochs))


LONGER = Distill(TUNE, alpha=0.0)  # nothing of the teacher: the same epochs on hard labels
SINGLES = {"more epochs": (LONGER,), "distilled": (Distill(TUNE),), "quantized": by_profile(quick=(LONGER, INTEGERS), full=(Quantize(recipe=TUNE),))}
SINGLES |= {f"pruned to {share:g}": (pruned(share, 3),) for share in by_profile(quick=(0.5,), full=(0.5, 0.25))}
PARTS = {"prune": pruned(0.5, 1), "distill": Distill(replace(TUNE, epochs=by_profile(quick=2, full=1))), "quantize": INTEGERS}
ARMS = SINGLES | {" → ".join(order): tuple(PARTS[name] for name in order) for order in ORDERS}
epochs = {arm: sum(stage.epochs(TUNE, ("distill",)) for stage in stages) for arm, stages in ARMS.items()}
print(epochs)

# %% [markdown]
# A stage is an object with a method `apply`: it takes a model and returns an outcome. A few lines chain them, without measurements and
# reports. Expect nothing yet.

# %%
def through(arm, seed):
    outcome, names = Outcome(originals[seed]), tuple(stage.name for stage in ARMS[arm])
    for at, stage in enumerate(ARMS[arm]):
        spot = folder / "arms" / f"{len(names)}-{arm}-{seed}" / f"{at}-{stage.name}"
        spot.mkdir(parents=True)
        work = Work(originals[seed], small, Budget(None, 100.0), replace(TUNE, seed=seed), SIZE, None, torch.device("cpu"),
                    spot, names[:at], names[at + 1 :], outcome.scheme)  # fmt: skip
        outcome = stage.apply(copy.deepcopy(outcome.model).eval(), work)
    return outcome, work

# %% [markdown]
# What does an outcome predict? The file, where the stage wrote one; else the integers that its scheme asks for, simulated; else the
# model as it is. Expect two functions.

# %%
def predictor(outcome, work):
    if outcome.file is not None:
        return Runtime(outcome.file, threads=1)
    return outcome.model if outcome.scheme is None else quantize(outcome.model, work.calibration(), scheme=outcome.scheme).module


def accuracy(found, loader):
    if isinstance(found, Runtime):
        return 100 * sum(int((found(images).argmax(1) == labels).sum()) for images, labels in loader) / len(loader.split)
    return 100 * evaluate(found, loader).accuracy

# %% [markdown]
# Every arm, every seed. Validation is for choosing among arms, test for what is reported. Expect the accuracies on test, their gain over the control,
# paired over the seeds, and that most intervals are wide.

# %%
chosen_by, scores, outcomes = {arm: [] for arm in ARMS}, {arm: [] for arm in ARMS}, {}
for arm in ARMS:
    for seed in SEEDS:
        outcome, work = through(arm, seed)
        found = predictor(outcome, work)
        chosen_by[arm].append(accuracy(found, validation))
        scores[arm].append(accuracy(found, test))
        if seed == SEEDS[0]:
            outcomes[arm] = outcome, work
rows = [(arm, f"{fmean(found):.1f} %", str(compare_seeds(scores["more epochs"], found))) for arm, found in scores.items()]
Table(("arm", "test", "points over the control"), rows, title=f"Alone and combined, {len(SEEDS)} seeds")

# %% [markdown]
# ## The scoreboard
#
# One row a technique, and the running model on top: every file in turns with all others, on test, by the one instrument. The comparison in
# the last column is with the running model's fp32 file. Expect the small networks far ahead in speed and behind in accuracy.

# %%
def sizes_of(network):
    return {"parameters": count_parameters(network), "macs": count_macs(network, example)}


files = {"baseline fp32, exported": (floats, sizes_of(model))}
files["running model, compressed"] = smallest, {"parameters": last.parameters, "macs": last.macs}
for arm, (outcome, work) in outcomes.items():
    files[arm] = write_file(outcome, work, work.folder / "model.onnx"), sizes_of(outcome.model)
candidates = [Runtime(file, threads=1).candidate(name, **size) for name, (file, size) in files.items()]
measurements = measure_candidates(candidates, test, lesson="08", rounds=by_profile(quick=5, full=30))
for row in measurements:
    ledger.append(row)
scoreboard(measurements)

# %% [markdown]
# The same as a figure. What lies on the dashed line is beaten by nothing: it is the *Pareto front*, from which a budget picks. Expect
# the title to say who is on it.

# %%
scoreboard_figure(measurements)

# %% [markdown]
# ### Why do the gains not multiply?
#
# Half of the operations and integers instead of floats do not make the product of the two speeds. A smaller network spends a larger share of its time between
# kernels, where nothing is multiplied, and that part neither gets shorter with fewer channels nor with fewer bits. Expect three ratios to the
# same float network; the third one is to be compared with the product of the first two.

# %%
timings = {row.subject: row.latency[1] for row in measurements}
first_order = " → ".join(ORDERS[0])
for arm in ("pruned to 0.5", "quantized", first_order):
    print(f"{arm:28}", speedup(timings["more epochs"], timings[arm]))

# %% [markdown]
# ### Who wins?
#
# Speed alone is cheap, so only arms count that lose at most half a point against the control on validation (five points in the quick profile, whose few pictures
# cannot tell less). Among these the fastest single technique meets the fastest combination; where there is none, the control stands in. Expect their
# ratio; and the distance between the best and the worst order, which is often no larger than chance.

# %%
means = {arm: fmean(found) for arm, found in chosen_by.items()}
combined = [arm for arm in ARMS if arm not in SINGLES]
good = [arm for arm in ARMS if means[arm] >= means["more epochs"] - by_profile(quick=5.0, full=0.5)]
one, three = (min((arm for arm in arms if arm in good), key=lambda arm: timings[arm].median, default="more epochs") for arms in (SINGLES, combined))
ratio = speedup(timings[one], timings[three])
by_accuracy = sorted(combined, key=means.get)
between = compare_seeds(scores[by_accuracy[0]], scores[by_accuracy[-1]])
print(f"combined: {three}; single: {one}; times faster: {ratio}")
print(f"best order {by_accuracy[-1]}, worst {by_accuracy[0]}: {between}")

# %% [markdown]
# ### With all pictures
#
# A minute's training on a few hundred pictures shows how the comparison is made, not what it finds. The same arms with all pictures, all six orders,
# training with rounding and a narrower student beside the single techniques are one command of over an hour that can be interrupted,
# `python -m cookbook.experiments.combination`. Expect what it recorded: every arm beside the control, which trains as long and removes nothing.

# %%
recorded_arms(Ledger.recorded())

# %% [markdown]
# ## Another shape
#
# Pruning and integers keep a network's depth and its resolution, and these are what a runtime pays for most (lesson 09 measures it). The
# stage `Student` goes further: a network of another shape takes the model's place and learns from its answers, from the first step. The course set
# itself targets before anything was trained, and chose the shape by latency and bytes alone, which need no training. The control is the same shape with
# the same epochs on hard labels. All of that is one command, `python -m cookbook.experiments.capstone`. Expect the targets beside what was recorded.

# %%
recorded_targets(Ledger.recorded())

# %% [markdown]
# The distilled file ships with the course, and any machine can run it: its integers are one bit narrower than eight, so that no processor's sums saturate
# (lesson 05). Expect its size, and how many of this run's test pictures it gets right.

# %%
shipped = data_directory() / "checkpoints" / "compressed.onnx"
right = accuracy(Runtime(shipped, threads=1), test)
print(f"{bytes_on_disk(shipped):,} bytes, {sizes['fp32 ONNX'] / bytes_on_disk(shipped):.1f} times smaller; {right:.1f} % of {len(splits.test):,} test pictures")

# %% [markdown]
# ## Serve it
#
# The file goes behind the micro-batcher of lesson 07, eight clients at a time. What one core answers in a second is what a server costs. Expect
# more requests per CPU second, yet fewer than the clock alone promised: queue and clients take their part.

# %%
pictures = splits.test.normalized()[:64]
served = {"fp32": Runtime(floats, threads=1), "compressed": Runtime(smallest, threads=1)}
rounds = [
    {name: serve_load(runtime, pictures, concurrency=8, requests=by_profile(quick=64, full=2_000), max_batch=16) for name, runtime in served.items()}
    for _ in range(5)
]
gains = sorted(found["compressed"].requests_per_cpu_second / found["fp32"].requests_per_cpu_second for found in rounds)
print(f"requests per CPU second: {median(gains):.2f} times as many, {gains[0]:.2f} to {gains[-1]:.2f} in {len(gains)} rounds")
serving_table(rounds[-1].values(), note="The first row serves the fp32 file, the second the compressed one.")

# %% [markdown]
# ## Your model, your pictures
#
# Nothing here is special to this model. At a terminal, a classifier of torchvision and a folder with `train` and `test`, a sub-folder a class in each,
# take one command and no code:
#
#     cookbook compress --model resnet18 --train 20 --data photos --latency 0.2 --accuracy-drop 1
#
# `--model my_package.nets:make_net --weights net.safetensors` brings a network of your own, and `--dry-run` says first what would be
# done, and about how long it takes. Expect such a plan, for a folder of pictures that the next cell writes.

# %%
for part, split in (("train", small.train), ("test", small.test)):
    for label in range(2):
        spot = folder / "photos" / part / split.classes[label].replace("/", " or ")
        spot.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(split.images[split.labels == label][:20]):
            save_image(picture / 255, spot / f"{number}.png")
compress_command(
    model="resnet18", data=str(folder / "photos"), out=folder / "photos-compressed", train=20, latency=0.2, accuracy_drop=1.0,
    size=32, batch_size=4, dry_run=True,
)

# %% [markdown]
# ## What held and what did not
#
# The verdicts are computed from the ledger, by the long experiments above.

# %%
values = {"speedup_over_best_single": ratio.value, "speedup_over_best_single_low": ratio.low, "speedup_over_best_single_high": ratio.high}
values |= {"points_between_orders": between.difference, "points_between_orders_low": between.low, "points_between_orders_high": between.high}
values |= {"points_gained_combined": compare_seeds(scores["more epochs"], scores[three]).difference, "points_gained_single": compare_seeds(scores["more epochs"], scores[one]).difference}
ledger.append(ClaimEvidence(claim="combine-01", lesson="08", values=values, seeds=SEEDS, note=f"{three} against {one}."))
by_name = {row.subject: row for row in measurements}
before, after = (by_name[name] for name in ("baseline fp32, exported", "running model, compressed"))
values = {"requests_per_cpu_second_gain": median(gains), "requests_per_cpu_second_gain_low": gains[0], "requests_per_cpu_second_gain_high": gains[-1]}
values["cpu_seconds_gain"] = before.values["cpu_seconds_per_image"] / after.values["cpu_seconds_per_image"]
values["macs_gain"] = compressed.baseline.macs / last.macs
if before.energy_joules and after.energy_joules:
    values["energy_gain"] = before.energy_joules / after.energy_joules
ledger.append(ClaimEvidence(claim="combine-02", lesson="08", values=values))
verdicts("08")

# %% [markdown]
# ## Your turn
#
# 1. Run `compress` with nothing but a budget: `compress(model, splits, budget=Budget(latency=0.3), folder="mine")`. Which widths does it choose on your machine?
# 2. Write a stage of your own, an object with `name`, `describe`, `epochs` and `apply`, that sets small weights to zero. Does it help the packed file?
# 3. Put `quantize` first. What does `work.scheme` tell the stages after it, and who rounds the file in the end?
# 4. Interrupt a compression with Ctrl-C and call it again. Which files were not written a second time?
#
# The check is an invariant of every budget: what meets a bound meets every wider one, and the distance to a budget never grows when the budget does.

# %%
# NBVAL_CHECK_OUTPUT
yours = Relative(latency=0.3, accuracy_drop=0.8, bytes=0.2)
bounds = [Budget(latency=scale * 0.1, accuracy_drop=scale * 0.2, bytes=scale * 0.05) for scale in (1, 2, 3, 4, 5)]
distances = [budget.excess(yours) for budget in bounds]
print("never farther from a wider budget:", distances == sorted(distances, reverse=True))
print("distance is zero exactly where it is met:", all((distance == 0) == (not budget.check(yours)) for distance, budget in zip(distances, bounds, strict=True)))

# %% [markdown]
# ## Next
#
# [09 Search](09_hardware_aware_search.ipynb): when widths, depths and bits are chosen by measured latency instead of by hand.
