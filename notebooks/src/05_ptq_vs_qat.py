# %% [markdown]
# # 05 PTQ vs QAT
#
# | | |
# |---|---|
# | **Question** | When does a model of small integers run faster, what does it lose, and when is it worth training for? |
# | **You need** | lessons 00 and 07's idea of kernels; no GPU, no network |
# | **Time** | about a minute and a half on one CPU core in the quick profile, under half an hour in the full one; on a GPU: not recorded yet |
# | **You will have measured** | the running model in eight bits: kernels, speed beside other quantizers, bytes, accuracy; what quantization after training (PTQ) loses under bad conditions and with fewer bits; what quantization-aware training (QAT) gains over the same epochs in float |
#
# Eight bits instead of thirty-two: a quarter of the bytes, cheaper arithmetic. Yet most published recipes make a
# network *slower*, because the runtime converts back and forth between integers and floats. And most tables that praise training
# with rounding leave out one row: the same extra epochs without it. Both are measured here.

# %% [markdown]
# The first cell imports what the lesson needs and prints the stamp: versions, device and profile.

# %%
from dataclasses import replace
from statistics import fmean

import torch

from cookbook import (ClaimEvidence, Ledger, Recipe, ResidentLoader, ResNetConfig, Runtime, Table, build, by_profile, bytes_on_disk, cache_directory, compare_paired, compare_seeds, count_macs, count_parameters,
    data_directory, evaluate, export, fit, interleave, kernels, load, load_fashion_mnist, measure_candidates, parity, scoreboard, seed_everything, speedup, stamp, verdicts)  # fmt: skip
from cookbook.experiments.quantization import recorded_widths
from cookbook.experiments.quantization_conditions import CORRUPTIONS, corrupted, long_tailed
from cookbook.experiments.quantization_zoo import recorded_table
from cookbook.models import PerceptronConfig
from cookbook.plots.quantization import bits_figure, quantizer_figure, sensitivity_figure
from cookbook.quantization import Affine, Scheme, adaround, best_range, fold_batchnorm, learned_step, load_packed, quantize, quantize_aware_training, round_to_nearest, save_packed, saturates, sensitivity
from cookbook.quantization.dynamic import quantize_dynamically
from cookbook.quantization.eager_history import REPLACED
from cookbook.quantization.peers import FLOAT, OURS, files_by_quantizer

stamp()

# %% [markdown]
# ## From a float to an integer and back
#
# An affine quantizer divides by a *scale*, rounds, and shifts so that 0.0 becomes an integer, the *zero point*. The way back
# cannot restore what rounding took, but inside the range it takes at most half a scale. Ten lines; expect `True` three times:
# the bound holds, and torch's own kernel and the library's class return the same numbers.

# %%
# NBVAL_CHECK_OUTPUT
def affine(x, low, high, bits=8):
    largest = 2**bits - 1
    scale = torch.tensor((high - low) / largest)
    zero_point = round(-low / scale.item())
    integers = (torch.round(x * (1 / scale)) + zero_point).clamp(0, largest)
    return (integers - zero_point) * scale, scale.item(), zero_point


x = torch.linspace(-1.3, 2.9, 1001)
back, scale, zero_point = affine(x, -1.3, 2.9)
print("at most half a scale away:", bool((x - back).abs().max() <= scale / 2 + 1e-6))
print("as torch's kernel:", torch.allclose(back, torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)))
print("as the library's:", torch.allclose(back, Affine.spanning(-1.3, 2.9)(x)))

# %% [markdown]
# ### The best range is not the widest
#
# A narrower range cuts off the outermost values and resolves all others more finely. Which range is best can be found by trying.
# Expect the brute force over five thousand ranges to find hardly less error than the library's search over a hundred; and at four bits
# both to beat the widest range on the weights of a real layer.

# %%
checkpoint = data_directory() / "checkpoints" / "baseline.safetensors"
model = load(checkpoint)
weight = model.blocks[4].conv1.weight.detach()


def loss(high, bits):
    return (Affine.spanning(-high, high, bits=bits, symmetric=True)(weight) - weight).square().mean().item()


largest = weight.abs().max().item()
for bits in (8, 4):
    brute = min(loss(largest * step / 5000, bits) for step in range(500, 5001))
    found = loss(max(map(abs, best_range(weight, bits=bits, symmetric=True))), bits)
    print(f"{bits} bits: widest range {loss(largest, bits) / brute:.2f} times the least error, the search {found / brute:.3f} times")

# %% [markdown]
# ## BatchNorm goes into the convolution
#
# In eval mode BatchNorm multiplies and shifts each channel by constants. The convolution before it can do that with its own
# weights. Five lines fold one pair; expect the library's fold of the whole network to agree, and the function to be unchanged.

# %%
# NBVAL_CHECK_OUTPUT
splits = load_fashion_mnist()
example = splits.validation.normalized()[:8]
folded = fold_batchnorm(model, example)
conv, norm = model.stem[0], model.stem[1]
factor = norm.weight / (norm.running_var + norm.eps).sqrt()
print("by hand as the library:", torch.allclose(conv.weight * factor.view(-1, 1, 1, 1), folded.stem[0].weight, atol=1e-6))
print("bias as well:", torch.allclose(norm.bias - norm.running_mean * factor, folded.stem[0].bias, atol=1e-6))
with torch.inference_mode():
    print("the same function:", torch.allclose(model(example), folded(example), atol=1e-4))
print("BatchNorm left:", sum(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules()))

# %% [markdown]
# ## Quantization after training
#
# `quantize` captures the network as a graph, folds BatchNorm, watches the activations on a few training images, and
# rounds weights to signed bytes with one scale a channel and activations to unsigned bytes with one scale a tensor. The
# result is a *simulation* that computes in floats what integers will: good for accuracy, useless for speed. A processor without
# the instructions called VNNI adds byte products in pairs, in 16 bits, where large sums are cut off; weights of half the range
# (`reduce_range`) cannot overflow. We quantize both ways and go on with the one that suits this processor. Expect what
# became integer, what did not, and why.

# %%
calibration = ResidentLoader(splits.train, 64, seed=0)
by_range = {
    reduced: quantize(model, calibration, scheme=Scheme(reduce_range=reduced), images=by_profile(quick=64, full=512))
    for reduced in (False, True)
}
quantized = by_range[saturates()]
print(quantized)

# %% [markdown]
# Only the file counts. Expect one kernel for 8 bits where there was a convolution with BatchNorm and ReLU, and full coverage of
# convolutions, sums and the linear layer: no tensor becomes a float in between.

# %%
folder = cache_directory() / "lessons" / "05"
floats = export(model, example, folder / "baseline.onnx")
integers = quantized.export(folder / "baseline-int8.onnx")
ran = kernels(integers)
print(ran)

# %% [markdown]
# The next cell prints what must hold on every machine; then come the bytes. Expect a little more than a quarter: biases and scales
# stay wide.

# %%
# NBVAL_CHECK_OUTPUT
print("in 8 bits:", {name: f"{ran.coverage[name].share:.0%}" for name in ("conv", "add", "linear")})
print("BatchNorm nodes left:", sum("BatchNormalization" in name for name in ran.original))
bytes_ratio = bytes_on_disk(floats) / bytes_on_disk(integers)
print(f"{bytes_ratio:.1f} times fewer bytes; at most 0.27 of them:", 1 / bytes_ratio <= 0.27)

# %% [markdown]
# Does the file compute what the simulation computes? ONNX Runtime's fused kernels round at other places, so logits may differ by
# about a step. Expect the same class for nearly every image, also for images that no training prepares a network for, ten times
# as bright or shifted, in the rows that suit this processor; where sums are cut off, the whole range of weights shows it.

# %%
test = ResidentLoader(splits.test.subset(by_profile(quick=250, full=10_000)), 250)
images = next(test.batches(0))[0][:by_profile(quick=50, full=250)]
for reduced, found in by_range.items():
    runtime = Runtime(integers if found is quantized else found.export(folder / "baseline-other-range.onnx"), threads=1)
    for name, batch in (("as they are", images), ("ten times", 10 * images), ("shifted", images + 3)):
        print(f"{'half' if reduced else 'whole'} range, {name:12}", parity(found.module, runtime, batch))

# %% [markdown]
# ## What happens when BatchNorm stays outside
#
# *BatchNorm must be fused before export*, people say. The control: the same network with each BatchNorm written out as a
# product and a sum, which no exporter recognizes. Expect the same answers in float, and other kernels.

# %%
class Arithmetic(torch.nn.Module):
    def __init__(self, norm):
        super().__init__()
        factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
        self.register_buffer("factor", factor.view(-1, 1, 1))
        self.register_buffer("shift", (norm.bias - norm.running_mean * factor).detach().view(-1, 1, 1))

    def forward(self, images):
        return images * self.factor + self.shift


apart = load(checkpoint)
for name in [name for name, module in apart.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]:
    apart.set_submodule(name, Arithmetic(apart.get_submodule(name)))

# %% [markdown]
# Expect the coverage of the convolutions, and the conversions that ONNX Runtime had to insert.

# %%
unfused = quantize(apart, calibration, scheme=quantized.scheme, images=64).export(folder / "baseline-apart-int8.onnx")
ran_apart = kernels(unfused)
rows = [
    (name, f"{report.coverage['conv'].share:.0%}", sum(report.floating.values()), sum(report.conversions.values()))
    for name, report in (("folded", ran), ("written out", ran_apart))
]
Table(("BatchNorm", "convolutions in 8 bits", "nodes in float", "conversions"), rows, title="The same network in integers")

# %% [markdown]
# ## Quantizers and their real speed
#
# ONNX Runtime brings quantizers of its own: a static one, whose defaults are signed bytes and one scale a layer, and a dynamic one,
# which measures activations anew in each call. torchao brings a quantizer for its own compiler. Expect a file from each, made from the
# same calibration images.

# %%
images, _ = next(calibration.batches(0))
files = dict(files_by_quantizer(model, images, folder, scheme=quantized.scheme, exported=floats))
files["BatchNorm written out"] = unfused
print("\n".join(f"{name:34}{bytes_on_disk(file):>10,} bytes" for name, file in files.items()))

# %% [markdown]
# All files run in turns, A B A B, on one thread, for one image and for a batch. Expect the ratio to float in the same run with
# its 95 % interval. Some of these "accelerations" slow the model down.

# %%
runtimes = {name: Runtime(file, threads=1) for name, file in files.items()}
timings = {}
for batch in (1, by_profile(quick=16, full=64)):
    part = images[:batch]
    calls = {name: (lambda runtime=runtime, part=part: runtime(part)) for name, runtime in runtimes.items()}
    timings[batch] = interleave(calls, batch=batch, rounds=by_profile(quick=6, full=30), threads=1)
ratios = {
    name: {batch: speedup(found[FLOAT], found[name]) for batch, found in timings.items()} for name in files if name != FLOAT
}
quantizer_figure(ratios)

# %% [markdown]
# ### Why so different?
#
# The kernels say it. Expect, beside each file, how many of its nodes compute in float or convert: what is not one
# fused integer kernel pays twice. Processors matter as well: without VNNI a product of bytes takes three instructions instead of one.

# %%
reports = {name: kernels(file) for name, file in files.items()}
rows = [
    (name, f"{report.coverage['conv'].share:.0%}", sum(report.floating.values()), sum(report.conversions.values()),
     "1.00" if name == FLOAT else " / ".join(f"{ratio.value:.2f}" for ratio in ratios[name].values()))
    for name, report in reports.items()
]
Table(("file", "convolutions in 8 bits", "nodes in float", "conversions", f"speed, batch {' / '.join(map(str, timings))}"), rows)

# %% [markdown]
# ### Beyond the running model
#
# Other families have other operators. Expect torchvision's models with random weights, quantized by the same call, and recorded in turns with
# float32 and with ONNX Runtime's own tool. Where kernels are missing, such as that for hard sigmoids, a network goes back and forth between bytes
# and floats, and can lose by it; `python -m cookbook.experiments.quantization_zoo NAME` names what stays in floats, and why.

# %%
recorded_table(Ledger.recorded())

# %% [markdown]
# ### Where dynamic quantization belongs
#
# It quantizes weights beforehand and activations in each call. That pays where a layer is mostly weights and its input small. Expect a
# perceptron to shrink and to keep its answers; whether it is faster, the clock decides.

# %%
seed_everything(0)
pictures = splits.train.subset(by_profile(quick=1000, full=10_000))
train = ResidentLoader(pictures, by_profile(quick=50, full=128), seed=0)
perceptron = build(PerceptronConfig(hidden=(1024, 1024)))
fit(perceptron, train, Recipe(epochs=2, learning_rate=1e-3, optimizer="adamw"))
mlp = {FLOAT: export(perceptron, example, folder / "mlp.onnx"), "dynamic": quantize_dynamically(perceptron, example, folder / "mlp-dynamic.onnx")}
mlp_runtimes = {name: Runtime(file, threads=1) for name, file in mlp.items()}
calls = {name: (lambda runtime=runtime: runtime(images[:1])) for name, runtime in mlp_runtimes.items()}
timed = interleave(calls, batch=1, rounds=by_profile(quick=10, full=30), threads=1)
mlp_speedup = speedup(timed[FLOAT], timed["dynamic"])
print(f"{bytes_on_disk(mlp[FLOAT]) / bytes_on_disk(mlp['dynamic']):.2f} times fewer bytes, speed {mlp_speedup}")

# %% [markdown]
# ## A student, trained in float
#
# What follows trains, so it uses a small ResNet-8, three times over with other seeds. Expect nothing yet.

# %%
SEEDS = (0, 1, 2)
CONFIG = by_profile(quick=ResNetConfig(depth=8, width=8, stem_stride=2), full=ResNetConfig(depth=8, width=16))
validation = ResidentLoader(splits.validation.subset(by_profile(quick=500, full=5000)), 250)
BASE = Recipe(epochs=by_profile(quick=4, full=8), learning_rate=0.1, channels_last=by_profile(quick=False, full=True))
EXTRA = replace(BASE, epochs=by_profile(quick=1, full=3), learning_rate=0.01)


def loader_of(split, seed):
    return ResidentLoader(split, by_profile(quick=50, full=128), seed=seed)


def student(seed, split=pictures):
    seed_everything(seed)
    network = build(CONFIG)
    fit(network, loader_of(split, seed), replace(BASE, seed=seed))
    return network


students = [student(seed) for seed in SEEDS]

# %% [markdown]
# Expect an accuracy a seed on validation, in percent.

# %%
def accuracy(network, loader=validation):
    return 100 * evaluate(network, loader).accuracy


print("validation:", " ".join(f"{accuracy(network):.1f} %" for network in students))

# %% [markdown]
# ## Where quantization after training is said to fail
#
# Three conditions: images that are corrupted in ways the calibration never saw; a handful of calibration images; a
# training set with a long tail. The control for each is the *float* model under the same condition: a blurred image is
# harder for both. Expect the points that rounding costs beyond that, in the mean over the seeds.

# %%
quantized_students = [quantize(network, loader_of(pictures, 0), images=256).module for network in students]
drops = {"clean": [accuracy(a) - accuracy(b) for a, b in zip(students, quantized_students, strict=True)]}
for kind in CORRUPTIONS:
    shifted = ResidentLoader(corrupted(validation.split, kind), 250)
    drops[kind] = [accuracy(a, shifted) - accuracy(b, shifted) for a, b in zip(students, quantized_students, strict=True)]
for count in by_profile(quick=(8,), full=(8, 32, 128, 512, 2048)):
    drops[f"{count} images"] = [
        accuracy(network) - accuracy(quantize(network, loader_of(pictures, 1), images=count).module) for network in students
    ]
tail = long_tailed(pictures, 50)
tailed = [student(seed, tail) for seed in SEEDS]
drops["long tail"] = [accuracy(a) - accuracy(quantize(a, loader_of(tail, 0), images=256).module) for a in tailed]

# %% [markdown]
# Expect most of these drops to be smaller than the spread between seeds.

# %%
rows = [(name, f"{fmean(found):+.2f}", f"{min(found):+.2f} to {max(found):+.2f}") for name, found in drops.items()]
Table(("condition", "points lost to rounding", "over seeds"), rows, title="8 bits after training, against float under the same condition")

# %% [markdown]
# ## Which layers mind
#
# Quantize one layer alone and look at the noise. At eight bits it drowns in the signal everywhere, so the figure uses four. Expect
# the baseline's layers to differ by many decibels. `quantize(…, max_drop=0.2, validation=…)` uses this order: it puts the noisiest layers back to
# float until the accuracy on validation is within the drop.

# %%
report = sensitivity(model, calibration, scheme=Scheme(weight_bits=4), images=by_profile(quick=8, full=256))
sensitivity_figure(report)

# %% [markdown]
# ## Fewer bits, without training
#
# With four bits a weight has 15 values, with two it has three. *To nearest* treats every weight alone. AdaRound (arXiv 2004.10568) learns, layer by layer,
# which to round up and which down, so that the layer's *output* stays close; it sees a few hundred images and no label. Expect a gain
# that grows as the bits run out.

# %%
def after_training(network, bits, learned):
    scheme = Scheme(weight_bits=bits)
    if learned:
        network, _ = adaround(network, loader_of(pictures, 0), scheme=scheme, images=by_profile(quick=64, full=512), steps=by_profile(quick=20, full=1000))
    elif bits < 8:
        network = round_to_nearest(network, example, scheme=scheme)
    return quantize(network, loader_of(pictures, 0), scheme=scheme, images=256)


WIDTHS = by_profile(quick=(8, 4), full=(8, 6, 4, 3, 2))
scores = {"to nearest": {}, "AdaRound": {}}
for bits in WIDTHS:
    rounded = quantized_students if bits == 8 else [after_training(network, bits, False).module for network in students]
    scores["to nearest"][bits] = [accuracy(network) for network in rounded]
    if bits <= 4:
        scores["AdaRound"][bits] = [accuracy(after_training(network, bits, True).module) for network in students]

# %% [markdown]
# ## Training with rounding, and the control
#
# QAT rounds in every forward pass and lets gradients through as if it had not. It gets extra epochs, so the control gets them too:
# the same loader, recipe and seed **in float**, then quantized after training. A table without that row credits rounding with what
# more training brought. Expect two functions, which differ in that alone.

# %%
def with_rounding(network, seed, bits, epochs=EXTRA.epochs, **settings):
    recipe = replace(EXTRA, epochs=epochs, seed=seed)
    return quantize_aware_training(network, loader_of(pictures, 10 + seed), recipe, scheme=Scheme(weight_bits=bits), **settings)


def in_float(network, seed):
    copied = build(CONFIG)
    copied.load_state_dict(network.state_dict())
    fit(copied, loader_of(pictures, 10 + seed), replace(EXTRA, seed=seed))
    return copied

# %% [markdown]
# Every width gets its training for each seed; the control is trained once a seed, because a float model can be rounded to any width. Expect
# nothing yet but a wait.

# %%
longer = [in_float(network, seed) for network, seed in zip(students, SEEDS, strict=True)]
controls = {bits: [after_training(network, bits, False).module for network in longer] for bits in WIDTHS}
scores["float epochs, then to nearest"] = {bits: [accuracy(found) for found in controls[bits]] for bits in WIDTHS}
last = []
trained = {
    bits: [with_rounding(network, seed, bits, validation=validation, on_epoch=last.append) for network, seed in zip(students, SEEDS, strict=True)]
    for bits in WIDTHS
}
scores["trained with rounding"] = {bits: [accuracy(found.module) for found in trained[bits]] for bits in WIDTHS}

# %% [markdown]
# Expect four lines that lie together at eight bits and part where bits are few. The band is the float model after the same
# extra epochs.

# %%
bits_figure(scores, [accuracy(network) for network in longer])

# %% [markdown]
# ### What is trained is what is written
#
# A library's fused fake-quantizer trained weights on another scale than it wrote; at eight bits nobody noticed. Here
# the graph in training and the converted graph must agree. Expect `True`: the last accuracy that each training reported
# is that of the converted graph, give or take an image that lies on an edge.

# %%
# NBVAL_CHECK_OUTPUT
reported = [100 * record.validation_accuracy for record in last[EXTRA.epochs - 1 :: EXTRA.epochs]]
written = [value for bits in WIDTHS for value in scores["trained with rounding"][bits]]
image = 100 / len(validation.split)
same = all(abs(before - after) < 1.5 * image for before, after in zip(reported, written, strict=True))
print("accuracy in training is that of what is written:", same)

# %% [markdown]
# A second trap waits where bits are few. BatchNorm's scale gamma/sigma goes into the weight before it is rounded. If the distance between two grid points
# does not follow it, the integers depend on the statistics, and these on the integers: a channel whose sigma grows rounds to zero, then sigma
# falls, and evaluation, which uses the average of that, is far from what was trained. So the distance that is learned here is told in units of gamma/sigma. Expect,
# for two bits, a share of zeros that runs away, and one that stays.

# %%
weight = students[0].blocks[0].conv1.weight.detach()
distance = weight.abs().mean((1, 2, 3), keepdim=True)
rows = []
for sigma in (0.5, 1.0, 2.0, 4.0):
    found = [learned_step(weight / sigma, distance, -1, 1, unit) for unit in (None, torch.tensor(1 / sigma))]
    rows.append((sigma, *(f"{(values == 0).float().mean():.0%}" for values in found)))
Table(("sigma", "weights that become zero, distance fixed", "in units of gamma/sigma"), rows, title="A channel's statistics move")

# %% [markdown]
# ### How many epochs?
#
# *QAT needs 10 to 15 epochs*, it is said. Each budget gets its own schedule and all seeds, at four bits. Expect to see whether the
# longest is worth it.

# %%
BUDGETS = by_profile(quick=(1, 2), full=(1, 3, 12))
by_epochs = {EXTRA.epochs: scores["trained with rounding"][4]}
for epochs in set(BUDGETS) - set(by_epochs):
    by_epochs[epochs] = [accuracy(with_rounding(network, seed, 4, epochs).module) for network, seed in zip(students, SEEDS, strict=True)]
means = {epochs: fmean(by_epochs[epochs]) for epochs in BUDGETS}
needed = min(epochs for epochs in BUDGETS if means[epochs] >= max(means.values()) - 0.1)
print("epochs and mean accuracy:", {epochs: round(mean, 2) for epochs, mean in means.items()}, "| within 0.1 points of the best:", needed)

# %% [markdown]
# ### Narrow weights on disk
#
# A four-bit weight in a byte saves nothing. Packed, two share a byte; entropy-coded, frequent values such as zero take less still. The
# size is that of the file, with scales, biases and header. Expect falling bytes, and `True`: the tensors come back bit for bit.

# %%
rows = []
for bits in WIDTHS:
    state = trained[bits][0].module.state_dict()
    plain = sum(value.numel() * value.element_size() for value in state.values())
    packed = {coding: save_packed(state, folder / f"{bits}.{coding}", coding=coding) for coding in ("bits", "entropy")}
    same = all(torch.equal(value, load_packed(file)[0][name]) for file in packed.values() for name, value in state.items())
    rows.append((bits, f"{plain:,}", *(f"{bytes_on_disk(file):,}" for file in packed.values()), same))
Table(("bits", "bytes of the tensors", "file, packed", "file, entropy-coded", "equal when read"), rows, title="The student's weights")

# %% [markdown]
# ## The table
#
# Now the test pictures, once. The running model against its quantized file, measured in turns by the one instrument; then
# the comparison on the same pictures. Expect three words at most.

# %%
ledger = Ledger.local()
size = {"parameters": count_parameters(model), "macs": count_macs(model, example)}
names = {FLOAT: "baseline fp32, exported", OURS: "baseline int8, PTQ"}
candidates = [runtimes[name].candidate(subject, **size) for name, subject in names.items()]
measurements = measure_candidates(candidates, test, lesson="05", batches=tuple(timings), rounds=by_profile(quick=5, full=30))
for measurement in measurements:
    ledger.append(measurement)
labels = evaluate(model, test).labels
right = {name: torch.cat([runtimes[name](part).argmax(1) for part, _ in test]) == labels for name in names}
print("int8 against float32 on the same pictures:", compare_paired(right[FLOAT], right[OURS]))
scoreboard(measurements)

# %% [markdown]
# And the students: rounding in training against the same epochs in float, paired over the seeds. Expect intervals that contain
# zero at eight bits.

# %%
gains = {}
for bits in WIDTHS:
    arms = (controls[bits], [found.module for found in trained[bits]])
    control, ours = ([accuracy(found, test) for found in arm] for arm in arms)
    gains[bits] = compare_seeds(control, ours)
rows = [(bits, str(gain)) for bits, gain in gains.items()]
Table(("bits of a weight", "trained with rounding minus float epochs, then PTQ; points on test"), rows, title=f"{len(SEEDS)} seeds")

# %% [markdown]
# ### Why does training not gain more?
#
# At eight bits there is nothing to win: the rounding noise lies far below what two seeds differ by. Training earns its price where
# rounding to nearest breaks. AdaRound stands between the two: no labels, minutes instead of epochs. Expect that in what was recorded over
# all training images, where networks are good enough to lose something.

# %%
recorded_widths(Ledger.recorded())

# %% [markdown]
# ## Appendix: the older way
#
# Texts of a few years ago quantize in *eager mode*: the model is rewritten with stubs, modules are fused by name, and the result is traced.
# torch still carries that and warns that it will go. `cookbook.quantization.eager_history` runs it, tested; here is what replaced each call.

# %%
Table(("then", "now", "why"), REPLACED, title="Eager mode, and what replaced it")

# %% [markdown]
# ## What held and what did not
#
# The verdicts are computed from the ledger. The long experiment with full training sets is one command that can be interrupted:
# `python -m cookbook.experiments.quantization`. Where it was recorded, that is judged and not this run.

# %%
def record(claim, seeds=(), **values):
    values = {name: float(value) for name, value in values.items()}
    ledger.append(ClaimEvidence(claim=claim, lesson="05", values=values, seeds=seeds))


def bounded(name, comparison):
    low, high = comparison.low, comparison.high
    middle = comparison.value if hasattr(comparison, "value") else comparison.difference
    return {name: middle, f"{name}_low": low, f"{name}_high": high}


cnn = ratios["ONNX Runtime dynamic"][1]
mlp_bytes = bytes_on_disk(mlp[FLOAT]) / bytes_on_disk(mlp["dynamic"])
record("quant-01", **bounded("mlp_speedup", mlp_speedup), mlp_bytes_ratio=mlp_bytes, cnn_speedup=cnn.value)
record("quant-02", bytes_ratio=bytes_ratio)

# %% [markdown]
# Expect the remaining claims, then the verdicts of all seven.

# %%
mean_drops = {name: fmean(found) for name, found in drops.items()}
worst_shift, fewest = max(mean_drops[kind] for kind in CORRUPTIONS), mean_drops["8 images"]
record("quant-03", SEEDS, largest_drop_points=max(worst_shift, fewest, mean_drops["long tail"]), corrupted_drop_points=worst_shift,
       fewest_images_drop_points=fewest, long_tail_drop_points=mean_drops["long tail"], clean_drop_points=mean_drops["clean"])
named = {f"gain_points_{bits}bit": gain.difference for bits, gain in gains.items()}
record("quant-04", SEEDS, **{**named, **bounded("gain_points_4bit", gains[4])})
record("quant-05", SEEDS, epochs_needed=needed, accuracy_fewest_epochs=means[1], accuracy_most_epochs=means[BUDGETS[-1]])
record("quant-06", conv_coverage_folded=ran.coverage["conv"].share, conv_coverage_apart=ran_apart.coverage["conv"].share,
       speed_folded_over_apart=ratios[OURS][1].value / ratios["BatchNorm written out"][1].value)
slower = sum(found[1].high < 1 for found in ratios.values())
one, many = (ratios[OURS][batch] for batch in timings)
record("quant-07", **bounded("speedup_batch_1", one), speedup_batch_many=many.value, slower_quantizers=slower)
verdicts("05")

# %% [markdown]
# ## Your turn
#
# 1. Quantize with one scale a layer (`Scheme(per_channel=False)`). How much of the loss does `equalize` bring back?
# 2. Exclude the first and the last layer (`Scheme(exclude=("stem", "head"))`). What does `kernels` say about the file now?
# 3. Give QAT the float model as its teacher (`teacher=network`). Does it help at two bits?
# 4. Calibrate with `method="percentile"` and with `method="entropy"`. On which images would you compare them?
#
# The check is an invariant: a wider integer never rounds worse, whatever the numbers.

# %%
# NBVAL_CHECK_OUTPUT
errors = [(Affine.spanning(-1.3, 2.9, bits=bits)(x) - x).abs().max().item() for bits in (2, 3, 4, 6, 8)]
print("each width is at least as good as the narrower one:", errors == sorted(errors, reverse=True))
halves = [Affine.spanning(-1.3, 2.9, bits=bits).scale / 2 for bits in (2, 3, 4, 6, 8)]
print("and within half its scale:", all(error <= half * 1.001 for error, half in zip(errors, halves, strict=True)))

# %% [markdown]
# ## Next
#
# [06 Distillation](06_distillation.ipynb): a smaller network that learns from a larger one's answers.
