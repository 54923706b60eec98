# %% [markdown]
# # 04 Pruning
#
# | | |
# |---|---|
# | **Question** | Which removed weights save time? |
# | **You need** | lesson 00; no GPU, no network |
# | **Time** | about a minute and a half on one CPU core in the quick profile, under half an hour in the full one; on a GPU: not recorded yet |
# | **You will have measured** | zeros against bytes and latency; the running model with half of its multiplications; latency against channels, one by one; a network pruned to a latency; criteria against chance and fine-tuning against training from scratch, over three seeds; a vision transformer that loses its attention heads |
#
# Papers count what pruning removes: weights, channels, operations. Whoever waits for an answer counts milliseconds.
# A pruned network counts here when it is faster in the runtime that serves it, when its accuracy is compared with the
# right controls (chance instead of a criterion, the same shape trained from scratch) and when its budget is the same.

# %% [markdown]
# The first cell imports what the lesson needs and prints the stamp: versions, device and profile.

# %%
from dataclasses import replace
from functools import partial
from statistics import fmean

import torch

from cookbook import (ClaimEvidence, CookbookError, Ledger, Recipe, ResidentLoader, ResNetConfig, Runtime, Table, build, by_profile, cache_directory, compare_seeds, count_macs,
    count_parameters, data_directory, evaluate, export, fit, interleave, kernels, load, load_fashion_mnist, measure_candidates, scoreboard, seed_everything, speedup, stamp, verdicts)  # fmt: skip
from cookbook.experiments.pruning import recorded_networks
from cookbook.experiments.pruning_latency import latency_table
from cookbook.experiments.pruning_zoo import recorded_table
from cookbook.models import VisionTransformerConfig
from cookbook.plots.pruning import sensitivity_figure, speed_figure, staircase_figure
from cookbook.pruning import (Latency, MACs, OrtClock, fine_tuning_recipe, head_importance, least_important_heads, make_permanent, mask_channels, mask_report, mask_two_of_four,
    mask_weights, masked_heads, preferred_multiple, prune, prune_channels, reestimate_batchnorm, remove_heads, scan_sensitivity, scratch_control, width_staircase)  # fmt: skip

stamp()

# %% [markdown]
# The running model, its pictures, and the ledger. Calibrating and estimating see *train*, choosing sees *validation*, and *test* is
# looked at once, at the end. Expect the sizes.

# %%
checkpoint = data_directory() / "checkpoints" / "baseline.safetensors"
model = load(checkpoint)
splits = load_fashion_mnist()
example = splits.validation.normalized()[:1]
validation = ResidentLoader(splits.validation.subset(by_profile(quick=250, full=5_000)), 250)
test = ResidentLoader(splits.test.subset(by_profile(quick=500, full=10_000)), 250)
ledger, folder, SEEDS = Ledger.local(), cache_directory() / "lessons" / "04", (0, 1, 2)
ROUNDS = by_profile(quick=12, full=60)
print(f"{count_parameters(model):,} parameters, {count_macs(model, example):,} MACs;", validation.split)

# %% [markdown]
# ## Zeros
#
# The oldest way: set the smallest weights to zero (Han et al., arXiv 1506.02626). Three lines do it. Expect the library to remove the same
# weights, and exactly as many as asked for.

# %%
# NBVAL_CHECK_OUTPUT
weight = model.blocks[4].conv1.weight.detach()
threshold = weight.abs().flatten().sort().values[round(0.9 * weight.numel())]
by_hand = weight * (weight.abs() >= threshold)
sparse = make_permanent(mask_weights(model, sparsity=0.9))
print("the same weights by hand:", torch.allclose(by_hand, sparse.blocks[4].conv1.weight))
print(f"zeros: {mask_report(sparse).sparsity:.3f} of the weights of all layers")

# %% [markdown]
# What are they worth? Zeros compress well, so a file that is compressed for shipping shrinks. Then the runtime unpacks it and
# multiplies. Expect bytes that fall with the zeros, and a speed that stays at 1.

# %%
SPARSITIES = by_profile(quick=(0.95,), full=(0.5, 0.8, 0.9, 0.95))
networks = {0.0: model} | {share: make_permanent(mask_weights(model, sparsity=share)) for share in SPARSITIES}
reports = {share: mask_report(network) for share, network in networks.items()}
files = {share: export(network, example, folder / f"zeros_{100 * share:.0f}.onnx") for share, network in networks.items()}
timings = interleave({share: partial(Runtime(path, threads=1), example) for share, path in files.items()}, rounds=ROUNDS, threads=1)
faster = {share: speedup(timings[0.0], timings[share]) for share in SPARSITIES}
rows = [
    (f"{share:.0%}", f"{report.dense_bytes / 1e6:.2f} MB", f"{report.compressed_bytes / 1e6:.2f} MB", str(faster.get(share, "1.00×")))
    for share, report in reports.items()
]
Table(("zeros", "dense", "compressed", "speed, batch 1"), rows, title="Single weights set to zero")

# %% [markdown]
# **Why is it not faster?** The kernel that runs is the same, and a dense kernel multiplies by zero as fast as by anything else. Skipping a
# zero costs a decision, and a processor that multiplies eight numbers in one instruction would have to find eight zeros
# in the right place. There is one pattern that some GPUs do skip, two zeros in each four neighbours (2:4); this CPU
# does not. Expect the same kernels for both files, and the pattern in every group of four.

# %%
same = kernels(files[0.0]).optimized == kernels(files[SPARSITIES[-1]]).optimized
pattern = make_permanent(mask_two_of_four(model)).blocks[0].conv1.weight.detach()
groups = (pattern.unflatten(1, (-1, 4)) == 0).sum(2)
print("the same kernels run:", same, "| zeros in each four neighbours:", groups.unique().tolist())
smallest = reports[SPARSITIES[-1]]
values = {f"speedup_at_{100 * share:.0f}_percent_zeros": ratio.value for share, ratio in faster.items()}
values |= {"speedup_at_95_percent_zeros_low": faster[0.95].low, "speedup_at_95_percent_zeros_high": faster[0.95].high}
values["compressed_share_at_95_percent_zeros"] = smallest.compressed_bytes / reports[0.0].compressed_bytes
ledger.append(ClaimEvidence(claim="prune-01", lesson="04", values=values))

# %% [markdown]
# ## Channels
#
# Remove whole channels, and the tensors become smaller: nothing is left to skip. A filter with a small sum of absolute weights contributes
# little (Li et al., arXiv 1608.08710), so such filters leave first, and with them the slices of the next layer that listened to them.
# Expect `True` for the four lines by hand, and for the comparison with a network in which the same channels are silenced.

# %%
# NBVAL_CHECK_OUTPUT
weight = model.blocks[0].conv1.weight.detach()
order = weight.abs().sum(dim=(1, 2, 3)).argsort(descending=True)  # one number a filter
kept, gone = order[:16].sort().values, order[16:].tolist()
library = prune_channels(model, example, ratio={"blocks.0.conv1": 0.5}, importance="l1")
print("the same filters by hand:", torch.equal(library.blocks[0].conv1.weight, weight[kept]))
print("the next layer listens to", library.blocks[0].conv2.in_channels, "channels instead of", model.blocks[0].conv2.in_channels)
silenced = mask_channels(model, example, {"blocks.0.conv1": gone})
print("removed equals silenced:", torch.allclose(library(example), silenced(example), atol=1e-5))

# %% [markdown]
# Channels that a residual sum adds can only leave together; the library finds such groups from autograd's graph (DepGraph, arXiv
# 2301.12900, through Torch-Pruning). `prune` takes a budget instead of a ratio. Expect half of the multiplications, and widths in multiples of 16.

# %%
# NBVAL_CHECK_OUTPUT
halved = prune(model, example, target=MACs(0.5), importance="l1", multiple=16)
print(f"{halved.reached:.2f} of the MACs, {count_parameters(halved.model) / count_parameters(model):.2f} of the parameters")
print("widths of the convolutions:", sorted({after for name, (_, after) in halved.widths.items() if name != "head"}))
print("in multiples of 16:", all(after % 16 == 0 for name, (_, after) in halved.widths.items() if name != "head"))

# %% [markdown]
# Without any training the accuracy is gone, but not all of it for good: the layers behind the cut normalize by statistics of a network that no longer
# exists. `reestimate_batchnorm` measures them again on training pictures. Expect a part of the accuracy back, for a few seconds of
# forward passes.

# %%
statistics = ResidentLoader(splits.train.subset(by_profile(quick=250, full=5_000)), 125)
before = evaluate(halved.model, validation).accuracy
reestimate_batchnorm(halved.model, statistics)
after = evaluate(halved.model, validation).accuracy
print(f"unpruned {evaluate(model, validation).accuracy:.1%}, pruned {before:.1%}, with new statistics {after:.1%}")

# %% [markdown]
# And the time? Both files in turns, one picture and 64 at a time. Expect about twice the speed at half the multiplications.

# %%
files["halved"] = export(halved.model, example, folder / "halved.onnx")
half_speed = {}
for batch in (1, 64):
    pictures = splits.validation.normalized()[:batch]
    sessions = {name: partial(Runtime(files[name], threads=1), pictures) for name in (0.0, "halved")}
    timings = interleave(sessions, batch=batch, rounds=ROUNDS if batch == 1 else ROUNDS // 2, threads=1)
    half_speed[batch] = speedup(timings[0.0], timings["halved"])
print(", ".join(f"batch {batch}: {ratio}" for batch, ratio in half_speed.items()))
values = {"speedup_at_half_macs": half_speed[1].value, "speedup_at_half_macs_low": half_speed[1].low, "speedup_at_half_macs_high": half_speed[1].high}
values |= {"speedup_at_half_macs_batch64": half_speed[64].value, "macs_share": halved.reached}
ledger.append(ClaimEvidence(claim="prune-02", lesson="04", values=values))

# %% [markdown]
# ## The width staircase
#
# Why multiples of 16? Let us not assume it. A chain of convolutions that all have the same number of channels, in many widths, all timed in turns. A width is wasteful when a
# wider network is hardly slower, and the multiple to choose is the smallest one without wasteful widths. Expect a table with the
# evidence for this machine; another processor may like another multiple.

# %%
def chain(width):
    layers = [torch.nn.Conv2d(1, width, 3, stride=2, padding=1), torch.nn.ReLU()]
    for _ in range(3):
        layers += [torch.nn.Conv2d(width, width, 3, padding=1), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(width, 10))


WIDTHS = by_profile(quick=(8, 12, 16, 20, 24, 28, 31, 32, 40), full=tuple(range(8, 65)))
staircase = width_staircase(chain, WIDTHS, example, clock=OrtClock(rounds=ROUNDS))
preferred = preferred_multiple(staircase)
print(preferred)

# %% [markdown]
# The figure is the lesson in one picture. The dashed line is what the count of multiplications promises. Expect steps instead, and narrower
# networks that take longer than wider ones.

# %%
staircase_figure(staircase, preferred)

# %% [markdown]
# ### The kernels that ran
#
# ONNX Runtime computes a convolution fastest when the channels lie in blocks, eight or sixteen numbers side by side. It arranges them so only
# where their number fits; elsewhere a slower kernel runs, and at each border numbers are copied from one layout to the other. Expect blocked convolutions
# throughout for 32 channels, and other kernels for 31. (On a processor without such blocks both lists are alike.)

# %%
for width in (31, 32):
    path = export(chain(width), example, folder / f"width_{width}.onnx")
    print(f"{width} channels:", ", ".join(f"{name} ×{count}" for name, count in list(kernels(path).optimized.items())[:6]))
inverse, (narrow, wide, worst) = staircase.ratio(31, 32), staircase.worst_inversion
values = {"latency_ratio_31_over_32_channels": inverse.value, "latency_ratio_31_over_32_channels_low": inverse.low,
          "latency_ratio_31_over_32_channels_high": inverse.high, "largest_ratio_with_fewer_macs": worst.value,
          "wasteful_widths": len(staircase.wasteful()), "widths": len(WIDTHS), "preferred_multiple": preferred.multiple}
ledger.append(ClaimEvidence(claim="prune-05", lesson="04", values=values))
print(f"31 channels take {inverse} of the time of 32; the worst pair is {narrow} against {wide}: {worst}")

# %% [markdown]
# ## A budget in milliseconds
#
# So a budget of operations is not a budget of time. `Latency(0.5)` asks for half of the latency: a table of single layers, measured when first met, proposes
# widths; the whole exported network is timed beside the unpruned one; what the table got wrong corrects its next proposal. Expect a share
# within the tolerance, or a sentence that says why not: on a machine that is busy with other things no clock can tell.

# %%
wide_network = by_profile(quick=build(ResNetConfig(depth=8, width=32)), full=model)
target = Latency(0.5, tolerance=by_profile(quick=0.15, full=0.05), rounds=2 * ROUNDS)
try:
    reached = prune(wide_network, example, target=target, multiple=min(16, preferred.multiple))
    print(f"{reached.reached:.2f} of the latency with {count_macs(reached.model, example) / count_macs(wide_network, example):.2f} of the MACs")
except CookbookError as error:
    print("not reached:", error)

# %% [markdown]
# ## Which channels, and does it matter?
#
# Every criterion is a guess about what the network needs, so each is judged against channels drawn by lot, over three seeds, before and after the same
# fine-tuning. First the networks to prune: small ones, so that there is time for controls. Expect one accuracy a seed.

# %%
CONFIG = by_profile(quick=ResNetConfig(depth=8, width=8, stem_stride=2), full=ResNetConfig(depth=8, width=16))
CRITERIA = by_profile(quick=("l1", "gamma", "random"), full=("l1", "l2", "gamma", "taylor", "fpgm", "random"))
MULTIPLE, SIZE = by_profile(quick=(4, 25), full=(8, 128))
pictures = splits.train.subset(by_profile(quick=1_000, full=55_000))
recipe = Recipe(epochs=5, learning_rate=0.1, channels_last=by_profile(quick=False, full=True))
tuning = fine_tuning_recipe(recipe, share=0.2, rate=0.5)
originals = []
for seed in SEEDS:
    seed_everything(seed)
    originals.append(build(CONFIG))
    fit(originals[-1], ResidentLoader(pictures, SIZE, seed=seed), replace(recipe, seed=seed))
print("on validation:", [f"{evaluate(network, validation).accuracy:.1%}" for network in originals])

# %% [markdown]
# Half of the channels leave by each criterion; then every network gets the same fine-tuning, a fifth of the original epochs. The shapes are equal, so only
# the choice differs. Expect large differences before the training, and small ones after it.

# %%
judged = list(ResidentLoader(pictures, 125, shuffle=False).batches(0))[:4]
raw, tuned = {name: [] for name in CRITERIA}, {name: [] for name in CRITERIA}
for criterion in CRITERIA:
    for seed, original in zip(SEEDS, originals, strict=True):
        small = prune_channels(original, example, ratio=0.5, importance=criterion, multiple=MULTIPLE, batches=judged, seed=seed)
        raw[criterion].append(100 * evaluate(small, test).accuracy)
        fit(small, ResidentLoader(pictures, SIZE, seed=seed + 100), replace(tuning, seed=seed))
        tuned[criterion].append(100 * evaluate(small, test).accuracy)
gains = {name: compare_seeds(tuned["random"], tuned[name]) for name in CRITERIA if name != "random"}
rows = [(name, f"{fmean(raw[name]):.1f}", f"{fmean(tuned[name]):.2f}", str(gains.get(name, "the control"))) for name in CRITERIA]
Table(("criterion", "before, %", "fine-tuned, %", "against chance, points"), rows, title=f"Test accuracy, {len(SEEDS)} seeds")

# %% [markdown]
# The claim names two criteria as good ones, so the lesser of their gains counts. We record it, with what there was before the training.

# %%
lesser = min(("l1", "gamma"), key=lambda name: gains[name].difference)
values = {"least_gain_points": gains[lesser].difference, "least_gain_points_low": gains[lesser].low, "least_gain_points_high": gains[lesser].high}
values |= {f"gain_points_{name}": gain.difference for name, gain in gains.items()}
values |= {f"gain_points_{name}_before": fmean(raw[name]) - fmean(raw["random"]) for name in gains}
ledger.append(ClaimEvidence(claim="prune-03", lesson="04", values=values, seeds=SEEDS, note=f"{CONFIG.depth} layers, half of the channels."))
print(f"the lesser gain is that of {lesser}: {gains[lesser]}")

# %% [markdown]
# ### Fine-tuning, and the control that most papers skip
#
# How much of the drop does fine-tuning bring back? And would the small shape have learned as much on its own? `scratch_control` builds it with fresh
# weights and the epochs of both trainings together (Liu et al., arXiv 1810.05270). Expect most of the drop recovered, and a close race.

# %%
scratch = []
for seed, original in zip(SEEDS, originals, strict=True):
    small = prune_channels(original, example, ratio=0.5, importance="l1", multiple=MULTIPLE)
    fresh, longer = scratch_control(small, recipe, tuning, seed=seed)
    fit(fresh, ResidentLoader(pictures, SIZE, seed=seed), longer)
    scratch.append(100 * evaluate(fresh, test).accuracy)
whole = [100 * evaluate(original, test).accuracy for original in originals]
recovered = (fmean(tuned["l1"]) - fmean(raw["l1"])) / (fmean(whole) - fmean(raw["l1"]))
against_scratch = compare_seeds(scratch, tuned["l1"])
values = {"recovered_share": recovered, "scratch_accuracy": fmean(scratch), "tuned_accuracy": fmean(tuned["l1"])}
values |= {"gain_over_scratch_points": against_scratch.difference, "epochs_share": tuning.epochs / recipe.epochs}
ledger.append(ClaimEvidence(claim="prune-04", lesson="04", values=values, seeds=SEEDS))
print(f"unpruned {fmean(whole):.2f} %, pruned {fmean(raw['l1']):.2f} %, fine-tuned {fmean(tuned['l1']):.2f} %: {recovered:.0%} of the drop")
print(f"against the same shape from scratch, {fmean(scratch):.2f} %: {against_scratch}")

# %% [markdown]
# ## Where does it hurt?
#
# The scan prunes one group of channels at a time and looks at validation. `allocate_ratios` turns it into ratios by layer, and `prune` takes them as
# `proportions`. Expect some layers that hardly notice, and one or two that do.

# %%
scan = scan_sensitivity(originals[0], example, validation, ratios=by_profile(quick=(0.5,), full=(0.25, 0.5, 0.75)), multiple=MULTIPLE)
sensitivity_figure(scan)

# %% [markdown]
# ## Heads
#
# A transformer has attention heads instead of channels. How much does the loss change when the output of a head is multiplied by a factor? The derivative at 1, its
# absolute value averaged over pictures, is the head's importance (Michel, Levy and Neubig, arXiv 1905.10650). First three small vision transformers. Expect
# their accuracies.

# %%
VIT = by_profile(
    quick=VisionTransformerConfig(patch=7, embedding=32, layers=2, heads=4, head_dim=8, hidden=64), full=VisionTransformerConfig()
)
attentive = Recipe(epochs=by_profile(quick=5, full=3), learning_rate=3e-3, optimizer="adamw", weight_decay=0.05)
transformers = []
for seed in SEEDS:
    seed_everything(seed)
    transformers.append(build(VIT))
    fit(transformers[-1], ResidentLoader(pictures, SIZE, seed=seed), replace(attentive, seed=seed))
print("on validation:", [f"{evaluate(network, validation).accuracy:.1%}" for network in transformers])

# %% [markdown]
# Removal shrinks the four projections; the smaller network must answer as the larger one does with these heads silenced. Expect `True`, and
# projections with as many rows as are left.

# %%
# NBVAL_CHECK_OUTPUT
transformer = transformers[0].eval()
some = {"blocks.0.attention": [0], "blocks.1.attention": [1, 2]}
smaller = remove_heads(transformer, some)
with masked_heads(transformer, some):
    print("removed equals masked:", torch.allclose(smaller(example), transformer(example), atol=1e-5))
print("heads:", VIT.heads_per_layer[:2], "become", smaller.config.heads[:2])
print("rows of the queries follow:", [block.attention.q.out_features // block.attention.head_dim for block in smaller.blocks[:2]])

# %% [markdown]
# Now one head after the other, the least important first, without any fine-tuning, and as a control the same number of heads by lot. Expect a plateau, then a slope.

# %%
total = sum(VIT.heads_per_layer)
COUNTS = range(total - VIT.layers + 1)
ranked, chance = {count: [] for count in COUNTS}, {count: [] for count in COUNTS}
for seed, network in zip(SEEDS, transformers, strict=True):
    importance = head_importance(network, ResidentLoader(pictures.subset(500), 100))
    torch.manual_seed(seed)
    lot = {name: torch.rand(len(scores)) for name, scores in importance.items()}
    for found, order in ((ranked, importance), (chance, lot)):
        for count in COUNTS:
            with masked_heads(network, least_important_heads(order, count)):
                found[count].append(100 * evaluate(network, test).accuracy)
rows = [(str(count), f"{fmean(ranked[count]):.1f}", f"{fmean(chance[count]):.1f}") for count in COUNTS]
Table(("heads removed", "least important, %", "by lot, %"), rows, title=f"Test accuracy, {total} heads, {len(SEEDS)} seeds")

# %% [markdown]
# The source removes a fifth of the heads without a noticeable loss; we record the loss at a fifth and at half, and the speed that every second removal brings, in turns in
# ONNX Runtime. Expect less speed than heads: the perceptrons of each block stay as they were.

# %%
fifth, half = total // 5, total // 2
importance = head_importance(transformer, ResidentLoader(pictures.subset(500), 100))
lighter = {str(count): remove_heads(transformer, least_important_heads(importance, count)) for count in COUNTS[::2]}
times = OrtClock(rounds=ROUNDS)(lighter, example)
head_speed = {count: speedup(times["0"], times[str(count)]) for count in COUNTS[::2]}
lost = {name: compare_seeds(found[count], found[0]) for name, found, count in
        (("fifth", ranked, fifth), ("half", ranked, half), ("half_by_lot", chance, half))}
values = {"points_lost_fifth_of_heads": lost["fifth"].difference, "points_lost_fifth_of_heads_low": lost["fifth"].low,
          "points_lost_fifth_of_heads_high": lost["fifth"].high, "points_lost_half_of_heads": lost["half"].difference,
          "points_lost_half_of_heads_by_lot": lost["half_by_lot"].difference, "speedup_half_of_heads": head_speed[half].value}
ledger.append(ClaimEvidence(claim="prune-06", lesson="04", values=values, seeds=SEEDS, note=f"{fifth} and {half} of {total} heads."))
print(f"{fifth} of {total} heads: {lost['fifth'].difference:.2f} points; {half}: {lost['half'].difference:.2f} points, speed {head_speed[half]}")

# %% [markdown]
# The same as a picture: a point a seed, and the mean of each number of removed heads at its speed. Expect the points to move to the right by little and down by more.

# %%
arms = {f"{count} heads removed": (head_speed[count].value, ranked[count]) for count in COUNTS[2::2]}
speed_figure(arms, fmean(ranked[0]))

# %% [markdown]
# ## Beyond the running model
#
# Whoever tries several networks and keeps the one that measures best flatters it. So the share of the latency was told a second time, by new files in new
# sessions, for three architectures that were asked for half. Expect the share while choosing, the share told again, and how far it is off.

# %%
latency_table(Ledger.recorded().bench())

# %% [markdown]
# Now half of the operations instead, for ten of torchvision's classifiers: pruned, stored, loaded by their widths, exported, compared with torch and timed in turns
# (`python -m cookbook.experiments.pruning_zoo`). Expect every network to be faster, and none by all of the factor
# of two that the operations promise: what moves data instead of multiplying stays.

# %%
recorded_table(Ledger.recorded())

# %% [markdown]
# ## The table
#
# The course's instrument, on the files that would be shipped: the running model, the one full of zeros, and the one with half of the multiplications, none of them
# fine-tuned here. Expect the zeros to change neither bytes nor speed, and the missing training to show in the accuracy.

# %%
shown = {"baseline fp32, exported": (0.0, model), "95 % zeros": (0.95, networks[0.95]), "half of the MACs": ("halved", halved.model)}
candidates = [
    Runtime(files[key], threads=1).candidate(name, parameters=count_parameters(network), macs=count_macs(network, example))
    for name, (key, network) in shown.items()
]
measurements = measure_candidates(candidates, test, lesson="04", rounds=by_profile(quick=5, full=30))
for measurement in measurements:
    ledger.append(measurement)
scoreboard(measurements)

# %% [markdown]
# ### With training
#
# The running model was cut to half and to a third of its measured latency, by the criterion and the widths that lost least on validation. Each network then got a fifth of the original
# epochs, distilled from the unpruned model (lesson 06). Beside them stand what Torch-Pruning's defaults leave at the same operations, trained
# alike, and three controls: the half on hard labels alone, its shape trained from scratch for all epochs together, and a uniformly narrower network that
# takes as long. That is one command of two hours that can be interrupted, `python -m cookbook.experiments.pruning`. Expect what it recorded: points won or
# lost on test against the unpruned model, beside what the course asked of itself, and the speed.
#
# Read the controls first. Where the shape trained from scratch loses as little, pruning has found a shape and not weights worth keeping; where a narrower network of the same
# latency does too, it has not even found a shape that one number could not give. What pruning then saves is training: a fifth of the epochs
# instead of all of them, for whoever has the unpruned model already.

# %%
recorded_networks(Ledger.recorded())

# %% [markdown]
# ## What held and what did not
#
# The verdicts are computed from the ledger. A claim that was recorded is judged by that, and not by this run; what comes from the quick profile is labelled.

# %%
verdicts("04")

# %% [markdown]
# ## Your turn
#
# 1. Prune the running model to `Latency(0.5, batch=64)`. Which widths does it choose, compared with `Latency(0.5)`?
# 2. Use `scope="global"` instead of uniform ratios. Which layers lose most? Is the network faster or slower at equal MACs?
# 3. Fine-tune `halved.model` for an epoch with `fine_tune(…, teacher=model)` and without a teacher. Lesson 06 says what to watch for.
# 4. Let the masks grow while training, with `GradualMasking` and a `CubicSchedule`. Is one-shot magnitude worse at 95 % zeros?
#
# The check is an invariant of the surgery: whatever is removed, and by whichever criterion, the pruned network answers as the whole one with
# the same channels silenced, and a network is never pruned below what it was asked to keep.

# %%
# NBVAL_CHECK_OUTPUT
criterion, ratio = "fpgm", 0.25
yours = prune_channels(model, example, ratio=ratio, importance=criterion, multiple=8)
left = yours.stem[0].out_channels
print("multiples of 8:", left % 8 == 0, "| about the ratio:", abs(left / model.stem[0].out_channels - (1 - ratio)) <= 0.125)
try:
    prune_channels(model, example, ratio=1.0)
except CookbookError as error:
    print("refused:", error)

# %% [markdown]
# ## Next
#
# [05 PTQ vs QAT](05_ptq_vs_qat.ipynb): the weights that stay, in eight bits instead of thirty-two.
