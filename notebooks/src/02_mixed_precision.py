# %% [markdown]
# # 02 Mixed precision
#
# | | |
# |---|---|
# | **Question** | When do 16 bits train faster, what do they save, and what do they cost? |
# | **You need** | lessons 00 and 01; a GPU is welcome and not needed |
# | **Time** | about a minute and a half on a two-core CPU in the quick profile; on a GPU: not recorded yet |
# | **You will have measured** | three seeds in fp32 and in bf16, the gradients that 16 bits lose, evaluation under autocast, and what each change of the speed stack brings on this machine |
#
# A number of 16 bits takes half the memory of one of 32 and, on hardware that is built for it, a fraction of the time.
# *Mixed* precision means to use it where that is safe: for the products of matrices, and not for the weights, the
# loss or the statistics of BatchNorm. Here we look at where the line runs, by hand first, then with the library.

# %% [markdown]
# Imports and stamp. Expect `cpu` without an accelerator: all cells run, and what only a GPU can show is read from a recorded run.

# %%
import copy
from dataclasses import replace

import torch
import torch.nn.functional as F

from cookbook import (
    Augmentation, ClaimEvidence, Ledger, Recipe, ResidentLoader, ResNetConfig, Table, build, by_profile, compare_paired,
    compare_seeds, evaluate, fit, load_fashion_mnist, pick_device, seed_everything, stamp, verdicts,
)
from cookbook.models import eval_mode
from cookbook.plots import gradient_figure, stack_figure
from cookbook.precision import Precision, gradient_survival
from cookbook.speed import CHANNELS_LAST, COMPILED, CUDA_GRAPHS, FUSED, RESIDENT, SpeedChange, TrainingSetup
from cookbook.speed import in_precision, measure_stack, with_accumulation, with_larger_batch, with_recomputation

stamp()
device, ledger = pick_device(), Ledger.local()

# %% [markdown]
# ## Three formats
#
# A floating-point number is a sign, an exponent, which says how far the format reaches, and a mantissa, which says how finely.
# `float16` spends 5 bits on the exponent and 10 on the mantissa, `bfloat16` 8 and 7: it reaches as far as
# `float32`, but less finely. Expect an epsilon (the step after 1) that is eight times as large in bfloat16 as in float16, and a largest
# float16 of only 65,504.

# %%
# NBVAL_CHECK_OUTPUT
formats = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
for name, dtype in formats.items():
    info = torch.finfo(dtype)
    print(f"{name:8}  {info.bits} bits  epsilon 2^{round(torch.tensor(info.eps).log2().item()):3}  "
          f"smallest normal {info.smallest_normal:.2g}  largest {info.max:.6g}")

# %% [markdown]
# Rounding is easy to do by hand: split a number into mantissa and exponent, round the mantissa to the bits that there are (half
# to even), and put it together again. Expect it to equal torch's cast, bit for bit, for a million normal numbers.

# %%
# NBVAL_CHECK_OUTPUT
def rounded(numbers, mantissa_bits):
    mantissa, exponent = torch.frexp(numbers)
    steps = 2.0 ** (mantissa_bits + 1)
    return torch.ldexp((mantissa * steps).round() / steps, exponent)


numbers = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)).clamp(-8, 8)
numbers = numbers[numbers.abs() > 1e-3]
print("float16 by hand:", torch.equal(rounded(numbers, 10), numbers.half().float()))
print("bfloat16 by hand:", torch.equal(rounded(numbers, 7), numbers.bfloat16().float()))

# %% [markdown]
# Three accidents follow. A small number *underflows* to zero, a large one *overflows* to infinity, and a small step from a
# large number goes nowhere. Expect each of them in float16; bfloat16 has only the third, at larger steps. The 1e-8 is no
# invention: it is the epsilon that keeps Adam from dividing by zero.

# %%
# NBVAL_CHECK_OUTPUT
for name, dtype in formats.items():
    small, large, one = (torch.tensor(value, dtype=dtype) for value in (1e-8, 70_000.0, 1.0))
    print(f"{name:8}  1e-8 is zero: {bool(small == 0)!s:5}  70,000 is infinite: {bool(large.isinf())!s:5}  "
          f"1 + 0.0004 is 1: {bool(one + 0.0004 == one)!s:5}  1 + 0.003 is 1: {bool(one + 0.003 == one)}")

# %% [markdown]
# ## Autocast decides operation by operation
#
# Under `torch.amp.autocast` the weights stay in float32. A convolution or a linear layer casts its inputs to 16 bits on the way in;
# the loss casts its input back. BatchNorm keeps statistics in float32 whatever comes in. Expect 16 bits
# out of both layers, and float32 for everything that is kept from step to step.

# %%
# NBVAL_CHECK_OUTPUT
seed_everything(0)
layers = torch.nn.ModuleDict({"convolution": torch.nn.Conv2d(1, 4, 3), "norm": torch.nn.BatchNorm2d(4), "linear": torch.nn.Linear(4, 2)})
with Precision("bf16", "cpu").autocast():
    maps = layers["convolution"](torch.randn(8, 1, 6, 6))
    logits = layers["linear"](layers["norm"](maps).mean((2, 3)))
    loss = F.cross_entropy(logits, torch.arange(8) % 2)
loss.backward()
print("out of the convolution:", maps.dtype, "| logits:", logits.dtype, "| loss:", loss.dtype)
print("weights:", layers["linear"].weight.dtype, "| gradients:", layers["linear"].weight.grad.dtype,
      "| running variance:", layers["norm"].running_var.dtype)

# %% [markdown]
# ## What it saves
#
# Training remembers the activations of the forward pass until the backward pass has used them. That is most of its memory once the
# batch is large, and it is what 16 bits halve. A hook sees all that autograd keeps; expect a share of about one half. The weights are
# not in it: they stay in float32, so that the whole step saves less than that.

# %%
config = ResNetConfig(depth=8, width=16, stem_stride=2)
splits = load_fashion_mnist()


def kept_for_backward(precision):
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # holding it keeps its address from reuse
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), Precision(precision, device.type).autocast():
        logits = build(config).to(device)(splits.train.subset(64).normalized().to(device))
    return sum(storage.nbytes() for storage in kept.values()) if logits.requires_grad else 0


kept = {precision: kept_for_backward(precision) for precision in ("fp32", "bf16")}
print({precision: f"{count / 1e6:.1f} MB" for precision, count in kept.items()}, f"share {kept['bf16'] / kept['fp32']:.2f}")

# %% [markdown]
# ## The loss scaler
#
# fp16 gradients may underflow. Multiply the loss by a large number, and the chain rule multiplies every gradient by it; divide before the
# update. Which number? As large as possible: start with 65,536, halve it when something overflows and skip that step, double
# it after a long time without (Micikevicius et al., arXiv 1710.03740). That is the whole of `GradScaler`; expect the
# ten lines below to print nothing yet: the next cell compares them with torch's on forty steps.

# %%
def scales_by_hand(overflows, scale=2.0**16, growth_interval=5):
    quiet, seen = 0, []
    for overflow in overflows:
        quiet = 0 if overflow else quiet + 1
        if overflow:
            scale = scale / 2
        elif quiet == growth_interval:
            scale, quiet = 2 * scale, 0
        seen.append(scale)
    return seen


overflows = (torch.rand(40, generator=torch.Generator().manual_seed(1)) < 0.15).tolist()

# %% [markdown]
# torch's own sees the same accidents, as infinite gradients. Expect `True` twice: the same scales, and a weight that
# moved in exactly the steps without an overflow.

# %%
# NBVAL_CHECK_OUTPUT
weight = torch.nn.Parameter(torch.zeros(1))
optimizer = torch.optim.SGD([weight], lr=1.0)
scaler = torch.amp.GradScaler("cpu", growth_interval=5)
scales = []
for overflow in overflows:
    optimizer.zero_grad()
    scaler.scale(-weight * (float("inf") if overflow else 1.0)).sum().backward()
    scaler.step(optimizer)
    scaler.update()
    scales.append(scaler.get_scale())
print("the same scales:", scales == scales_by_hand(overflows), "| between", int(min(scales)), "and", int(max(scales)))
print("one update for each step without overflow:", weight.item() == overflows.count(False))

# %% [markdown]
# Two details decide whether that works in a real loop. Clipping comes after undoing the scale, else it clips
# the scaled gradient. And a skipped step must not advance the schedule. `fit` takes care of both, and its record tells
# what happened. Here the loss is ten times too large on purpose; expect a few skipped steps, and a scale that fell.

# %%
tiny = ResidentLoader(splits.train.subset(160), 16, device=device)


def too_large(model, images, labels):
    return 10 * F.cross_entropy(model(images), labels)


seed_everything(0)
recipe = Recipe(epochs=1, learning_rate=1e-4, precision="fp16")
[epoch] = fit(build(config).to(device), tiny, recipe, objective=too_large)
print(f"{epoch.skipped_steps} of {len(tiny)} steps skipped; (steps done, scale from then on):", epoch.loss_scales)

# %% [markdown]
# ## What it costs: accuracy
#
# Train the same network with the same seeds, data order and augmentation in fp32 and in bf16, and nothing else changed: fp32
# is the control. Expect two lists that overlap. On a CPU without instructions for bf16 expect the second training to take many times as long.

# %%
pictures = splits.train.subset(by_profile(quick=1280, full=55_000))
test = ResidentLoader(splits.test.subset(by_profile(quick=1000, full=10_000)), 250, device=device)
recipe = Recipe(epochs=by_profile(quick=2, full=3), learning_rate=0.1)
seeds, networks, results, seconds = (0, 1, 2), {}, {}, {"fp32": 0.0, "bf16": 0.0}
for seed in seeds:
    for precision in seconds:
        seed_everything(seed)
        network = build(config).to(device)
        loader = ResidentLoader(pictures, by_profile(quick=32, full=128), augmentation=Augmentation(crop=2, flip=True),
                                device=device, seed=seed)
        history = fit(network, loader, replace(recipe, precision=precision, seed=seed))
        networks[precision, seed], results[precision, seed] = network, evaluate(network, test)
        seconds[precision] += sum(epoch.seconds for epoch in history)

# %% [markdown]
# The comparison pairs the seeds. Expect the mean difference with an interval; with three seeds it is wide, and the verdict below
# goes by the mean, as the claim does.

# %%
accuracies = {precision: [100 * results[precision, seed].accuracy for seed in seeds] for precision in seconds}
cost = compare_seeds(accuracies["fp32"], accuracies["bf16"])
values = {"accuracy_difference_points": cost.difference, "accuracy_difference_points_low": cost.low,
          "accuracy_difference_points_high": cost.high}
values |= {f"accuracy_{precision}_seed_{seed}": 100 * result.accuracy for (precision, seed), result in results.items()}
ledger.append(ClaimEvidence(claim="amp-03", lesson="02", values=values, seeds=seeds,
                            note="ResNet-8×16 with stem stride 2, bf16 autocast minus fp32"))
rows = [(precision, *(f"{accuracy:.2f}" for accuracy in accuracies[precision]), f"{seconds[precision]:.1f}") for precision in seconds]
Table(("precision", *(f"accuracy, seed {seed}, %" for seed in seeds), "training, s"), rows, f"bf16 minus fp32: {cost}")

# %% [markdown]
# ## What `.half()` breaks
#
# Older recipes cast the whole model: `model.half()`. Then weights, gradients and the loss are float16, there is nothing to scale back
# into, and `GradScaler` refuses. `gradient_survival` takes one batch through the fp32 networks that we have just
# trained, in five ways, and compares with float32: gradients that became zero, that overflowed, and weights that an SGD step
# moves in float32 but not in this format. Expect hardly a lost gradient in a network this small, and many weights that stay
# where they are once the weights themselves have 16 bits.

# %%
batch = splits.train.subset(by_profile(quick=64, full=512))
images, labels = batch.normalized().to(device), batch.labels.to(device)
reports = [gradient_survival(networks["fp32", seed], images, labels) for seed in seeds]
mean = {way: {part: 100 * sum(getattr(report[way], part) for report in reports) / len(seeds)
              for part in ("underflow", "overflow", "error", "stuck")} for way in reports[0]}
columns = ("way", "underflow, %", "overflow, %", "error, %", "weights that stay, %")
Table(columns, [(way, *(f"{value:.2f}" for value in parts.values())) for way, parts in mean.items()],
      title=f"Gradients of {len(seeds)} trained networks against float32")

# %% [markdown]
# The claim's metric is the gradients that are lost: more by `.half()` than by autocast with a scaled loss? What is kept from step to step
# matters too, so the stuck weights are recorded beside it. Expect the difference in points.

# %%
half, safe = ([100 * report[way].lost for report in reports] for way in (".half()", "fp16 autocast, loss scaled"))
more = compare_seeds(safe, half)
values = {"half_lost_more_points": more.difference, "half_lost_more_points_low": more.low, "half_lost_more_points_high": more.high,
          "half_stuck_percent": mean[".half()"]["stuck"], "bfloat16_stuck_percent": mean[".bfloat16()"]["stuck"],
          "autocast_stuck_percent": mean["fp16 autocast, loss scaled"]["stuck"]}
ledger.append(ClaimEvidence(claim="amp-04", lesson="02", values=values, seeds=seeds))
print(f"lost by .half() and not by scaled autocast: {more.difference:.3f} points; "
      f"weights that stay: {values['half_stuck_percent']:.1f} % against {values['autocast_stuck_percent']:.1f} %")

# %% [markdown]
# The figure shows why: where the gradients of one network lie, on a scale of powers of two, and where float16 ends. Expect a hill;
# scaling the loss moves it to the right as a whole.

# %%
twin = copy.deepcopy(networks["fp32", 0]).train()
F.cross_entropy(twin(images), labels).backward()
gradient_figure(torch.cat([parameter.grad.flatten() for parameter in twin.parameters()]), scale=1024.0)

# %% [markdown]
# ## Evaluate in fp32
#
# `evaluate` computes in float32 under `inference_mode`, whatever the training used. What if autocast were left on? The same
# networks and pictures, with bf16 logits. Expect a few changed predictions, those that were close; whether they are a *bias*, or cancel out, the
# paired test says.

# %%
def correct_under_autocast(network):
    with eval_mode(network), torch.inference_mode(), Precision("bf16", device.type).autocast():
        return torch.cat([network(pictures).argmax(1) for pictures, _ in test]).cpu()


exact = torch.cat([results["fp32", seed].predictions for seed in seeds])
casted = torch.cat([correct_under_autocast(networks["fp32", seed]) for seed in seeds])
truth = torch.cat([results["fp32", seed].labels for seed in seeds])
bias = compare_paired(exact == truth, casted == truth)
print("under autocast minus fp32:", bias)

# %% [markdown]
# A bias may go either way, so its size is what counts, with the interval turned along. Expect the share of changed predictions to be larger
# than the change in accuracy.

# %%
low, high = sorted((bias.low, bias.high) if bias.difference >= 0 else (-bias.low, -bias.high))
values = {"bias_points": abs(bias.difference), "bias_points_low": low, "bias_points_high": high,
          "changed_predictions_percent": 100 * (exact != casted).double().mean().item()}
ledger.append(ClaimEvidence(claim="amp-05", lesson="02", values=values, seeds=seeds, note="bf16 autocast, all seeds pooled"))
print(f"changed predictions {values['changed_predictions_percent']:.2f} %, accuracy {bias.difference:+.2f} points")

# %% [markdown]
# ## What it brings: time
#
# Now the step itself, in turns with fp32: all formats that this device can compute, and bf16 together with the channels-last memory
# format. The note names the processor and its instruction sets, because they decide: with `avx512_bf16` or `amx_bf16` expect a
# speed above one, and without them far below.

# %%
start = TrainingSetup(recipe=Recipe(epochs=1, learning_rate=0.01, schedule="constant"), split=splits.train.subset(2048),
                      batch_size=32, device=device, resident=True)
both = SpeedChange("bf16 + channels-last", lambda setup: setup.with_recipe(precision="bf16", channels_last=True), stacks=False)
formats = [replace(in_precision(name), stacks=False) for name in ("tf32", "bf16", "fp16")]
steps = measure_stack([*formats, both], start, lambda: build(config), rounds=by_profile(quick=5, full=30))
for row in steps.measurements:
    ledger.append(replace(row, subject=f"formats: {row.subject}"))
steps

# %% [markdown]
# The claim says one and a half to three times as fast. Expect one sentence that says what this machine does, faster or slower, and whether
# bf16 with channels-last reached 1.6 times.

# %%
found = {row.subject: row.values for row in steps.measurements}
bf16, pair = found["bf16 alone"], found["bf16 + channels-last alone"]
values = {f"step_time_ratio{end}": bf16[f"speedup{end}"] for end in ("", "_low", "_high")}
values["step_time_ratio_channels_last"] = pair["speedup"]
ledger.append(ClaimEvidence(claim="amp-02", lesson="02", values=values, note="ResNet-8×16 with stem stride 2, fp32 over bf16"))
sets = ", ".join(steps.measurements[0].provenance.instruction_sets) or "no known instruction sets"
word = "faster" if pair["speedup"] > 1 else "slower"
print(f"{device.type} ({sets}): bf16 + channels-last takes {1 / pair['speedup']:.2f} of the time of fp32: {word};",
      "1.6 times reached" if pair["speedup"] >= 1.6 else "1.6 times not reached")

# %% [markdown]
# ## The speed stack
#
# Precision is one of several changes that leave the result alone. One at a time, each by itself and on top of those before it,
# against the loop that most people write first: fp32, pictures one by one through a `DataLoader`. The last three are measured alone: a larger batch changes
# what is learned per picture, and accumulation and activation checkpointing *pay* with time for memory. Expect the loader to matter most
# for a network this small, and a reason where this device cannot take part.

# %%
compiled = by_profile(quick=[], full=[COMPILED, CUDA_GRAPHS])
changes = [RESIDENT, CHANNELS_LAST, FUSED, *compiled, in_precision("bf16"), replace(with_larger_batch(2), stacks=False),
           with_accumulation(2), with_recomputation(lambda model: model.blocks)]
stack = measure_stack(changes, replace(start, resident=False), lambda: build(config), rounds=by_profile(quick=4, full=30))
for row in stack.measurements:
    ledger.append(replace(row, subject=f"speed stack: {row.subject}"))
stack

# %% [markdown]
# The figure draws the table with its intervals. What lies left of the dashed line made training slower on this machine.

# %%
stack_figure(stack)

# %% [markdown]
# ### Why is bf16 slow on many CPUs?
#
# The arithmetic units of a processor know the formats that they were built for. Without bf16 instructions each number is widened to 32 bits,
# computed with, and rounded back; the memory that is saved does not pay for that. A GPU with tensor cores multiplies 16-bit
# matrices many times as fast as float32 ones, which is why the claim is about GPUs.
#
# ### Recorded on an accelerator
#
# What was recorded on one is listed here with its device and date. Expect a sentence instead of a table where nothing was.

# %%
recorded = [row for claim in ("amp-01", "amp-02", "amp-03") for row in Ledger.recorded().claim_evidence(claim)
            if not row.provenance.device.startswith("cpu")]
names = ("memory_ratio", "reserved_ratio", "step_time_ratio", "step_time_ratio_resnet50_tf32", "accuracy_difference_points")
rows = [(row.claim, name.replace("_", " "), f"{row.values[name]:.3g}", row.provenance.device, row.recorded[:10])
        for row in recorded for name in names if name in row.values]
rows += [("speed stack", row.subject, f"{row.values['speedup']:.2f}", row.provenance.device, row.recorded[:10])
         for row in Ledger.recorded().measurements(lesson="02") if "speedup" in row.values and row.provenance.device != "cpu"]
Table(("claim", "figure", "value", "device", "date"), rows, "" if rows else "Nothing was recorded on an accelerator yet.",
      "Recorded on an accelerator")

# %% [markdown]
# ## What held and what did not
#
# The verdicts are computed from the committed evidence and from what this notebook has just recorded. Two claims are about GPUs: without a
# recorded run they say so.

# %%
verdicts("02")

# %% [markdown]
# ## Your turn
#
# 1. Write `rounded` for a format with 3 bits of mantissa. How far is the next number after 1?
# 2. Give `gradient_survival` a learning rate of 1 and of 1e-4. Which formats lose more weights, and why does autocast never lose any?
# 3. Put `in_precision("bf16")` first in the stack. Which changes gain by it on your machine, which lose?
#
# An invariant for the third: accumulating two halves is one step of the whole, so both ways must end with the same weights
# but for rounding, in a network without BatchNorm. Expect `True`.

# %%
# NBVAL_CHECK_OUTPUT
ends = []
for accumulate in (1, 2):
    seed_everything(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    loader = ResidentLoader(splits.train.subset(320), 32 // accumulate)
    fit(network, loader, Recipe(epochs=1, learning_rate=0.01, accumulate=accumulate))
    ends.append(network[1].weight)
print("accumulating is a larger batch:", torch.allclose(*ends, atol=1e-6))

# %% [markdown]
# ## Next
#
# [03 Distributed training](03_distributed.ipynb): the same step, shared by several processes.
