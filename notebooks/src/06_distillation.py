# %% [markdown]
# # 06 Distillation
#
# | | |
# |---|---|
# | **Question** | What does a teacher add to the same budget with hard labels? |
# | **You need** | lesson 00; no GPU, no network |
# | **Time** | about a minute and a half on one CPU core in the quick profile, under half an hour in the full one; on a GPU: not recorded yet |
# | **You will have measured** | a small student with and without a teacher, at equal epochs, on the same pictures in the same order, over three seeds: with all labels and with a tenth; the effect of temperature and of the teacher's share; a published result that is an artefact; a student that a teacher may not help |
#
# A label says *shirt*. A trained network says *shirt, but nearly a pullover, and surely no boot*. Distillation
# lets a small network learn from those softer answers. Papers report gains of a point or more; often the
# control had fewer epochs, other augmentation, or a bug. Here the control is the same training with hard
# labels, paired seed by seed, and every gain comes with its interval.

# %% [markdown]
# The first cell imports what the lesson needs and prints the stamp: versions, device and profile.

# %%
from itertools import pairwise
from statistics import fmean

import torch
import torch.nn.functional as F

from cookbook import (Augmentation, Candidate, ClaimEvidence, CookbookError, Ledger, Recipe, ResidentLoader, ResNetConfig, Table, build, by_profile,
    cache_directory, compare_seeds, count_parameters, data_directory, evaluate, fit, load, load_fashion_mnist, measure_candidates, scoreboard,
    seed_everything, stamp, verdicts)  # fmt: skip
from cookbook.distillation import (
    Feature, ViewLoader, augmented_views, decoupled_parts, distill, logit_mse, soft_targets, student_config, teacher_logits,
)
from cookbook.experiments.distillation import recorded_table
from cookbook.models import PerceptronConfig
from cookbook.plots import soft_targets_figure, temperature_figure

stamp()

# %% [markdown]
# ## Teacher and student
#
# The teacher is the running model as it ships. The student is a ResNet-8 of width 16: few layers, because depth costs
# a runtime more than width, and channels in multiples of 16, because odd numbers are slow. Expect a
# student with less than a tenth of the teacher's parameters.

# %%
# NBVAL_CHECK_OUTPUT
checkpoint = data_directory() / "checkpoints" / "baseline.safetensors"
teacher = load(checkpoint)
sizes = [count_parameters(network) for network in (teacher, build(student_config()))]
print(f"teacher {sizes[0]:,} parameters, student {sizes[1]:,}: {sizes[0] / sizes[1]:.1f} times fewer")
print("below 100,000:", sizes[1] < 100_000, "| channels:", sorted(set(student_config().stage_channels)))

# %% [markdown]
# The quick profile has to be small: a narrower student, few pictures, a part of validation and test. Expect the sizes.

# %%
splits = load_fashion_mnist()
SEEDS = (0, 1, 2)
EPOCHS, FEW_EPOCHS = by_profile(quick=(3, 14), full=(3, 12))
CONFIG = by_profile(quick=ResNetConfig(depth=8, width=8, stem_stride=2), full=student_config())
pictures = splits.train.subset(by_profile(quick=1_600, full=55_000))
few = pictures.subset(len(pictures) // 10)
validation = ResidentLoader(splits.validation.subset(by_profile(quick=1_000, full=5_000)), 250)
test = ResidentLoader(splits.test.subset(by_profile(quick=1_000, full=10_000)), 250)
for part in (pictures, few, validation.split, test.split):
    print(part)

# %% [markdown]
# ## What a teacher knows beyond the label
#
# `teacher_logits` asks the teacher about each picture once and keeps the answers on disk. We look for the validation
# picture on which its two favourites lie closest together. Expect a garment that could pass for two, and a
# softmax that spreads over more classes as its temperature rises.

# %%
answers = teacher_logits(teacher, validation.split)
first, second = answers.softmax(1).topk(2).values.T
confusing = int((first - second).argmin())
soft_targets_figure(
    validation.split.images[confusing, 0], answers[confusing], int(validation.split.labels[confusing]),
    validation.split.classes, temperatures=(1, 4, 16),
)

# %% [markdown]
# ## The loss in five lines
#
# Divide the logits of both by a temperature T, compare the two softmax distributions by the Kullback–Leibler divergence, and
# multiply by the square of T, because softening shrinks the gradient by that factor (Hinton, Vinyals and Dean, arXiv
# 1503.02531). KL is a sum over classes, then a mean over pictures: `batchmean`. With `reduction="mean"`, which many
# scripts use, the loss is divided by the number of classes as well (torch warns of it). Expect `True`, and the factor 10.

# %%
# NBVAL_CHECK_OUTPUT
generator = torch.Generator().manual_seed(0)
ours, theirs = (torch.randn(6, 10, generator=generator, dtype=torch.float64) for _ in range(2))
T = 4.0
p, q = (theirs / T).softmax(1), (ours / T).softmax(1)
by_hand = T**2 * (p * (p / q).log()).sum(1).mean()
print("by hand the same:", bool((by_hand - soft_targets(ours, theirs, T)).abs() < 1e-12))
divided = T**2 * F.kl_div((ours / T).log_softmax(1), p, reduction="none").mean()
print("the mean over all numbers is too small by the factor", round((by_hand / divided).item(), 6))

# %% [markdown]
# ### Two things that follow
#
# For a large T the exponential is nearly straight, and the loss tends to half the mean squared difference of the logits, each
# picture's mean subtracted: a hot teacher is logit matching. And the divergence splits exactly into a part about the
# labelled class and a part about the others, which a confident teacher mutes: *decoupled* distillation (Zhao et al., arXiv
# 2203.08679) gives that second part a weight of its own. Expect errors that fall tenfold with each tenfold T, and `True`.

# %%
# NBVAL_CHECK_OUTPUT
limit = logit_mse(ours, theirs, centered=True) / 2
errors = [abs(soft_targets(ours, theirs, hot) / limit - 1).item() for hot in (1e3, 1e4, 1e5)]
print("error falls by", [round(before / after) for before, after in pairwise(errors)])
labels = torch.arange(6)
target, among, sure = decoupled_parts(ours, theirs, labels, T)
print("parts add up:", bool((T**2 * (target + (1 - sure) * among).mean() - by_hand).abs() < 1e-12))

# %% [markdown]
# ## Both must see the same crop
#
# Training shifts and mirrors each picture at random. If the teacher's answer was computed for the plain picture, it is
# an answer to another question. How different? Expect an agreement below
# 100 %, and a divergence above zero.

# %%
AUGMENTATION = Augmentation(crop=2, flip=True)
cropped = augmented_views(validation.split, AUGMENTATION, 1)[0]
moved = teacher_logits(teacher, cropped)
agreement = (moved.argmax(1) == answers.argmax(1)).float().mean()
print(f"same class for picture and crop: {agreement:.1%}; divergence of the answers at T = 4: {soft_targets(answers, moved, 4.0):.3f}")

# %% [markdown]
# There are three ways out. **Live**: the teacher answers in every step, on the very batch of the student: exact, and
# several times dearer than the student itself. **Cached without augmentation**: cheap, but the student sees plain pictures
# only. **Cached views**: augment each picture a few times, once and for all, and ask about every copy once. A `ViewLoader` shows each
# picture in one of its views an epoch. The cache is named by the teacher's weights and the pixels; a file that belongs to something
# else is refused. Expect equal logits from the second call, and one sentence of refusal.

# %%
# NBVAL_CHECK_OUTPUT
def prepared(split, augmentation=AUGMENTATION, views=2):
    copies = augmented_views(split, augmentation, views)
    return copies, torch.stack([teacher_logits(teacher, copy) for copy in copies])


shown, known = prepared(pictures)
print("read again, equal:", torch.equal(prepared(few)[1], prepared(few)[1]))
own_file = cache_directory() / "lessons" / "06" / "teacher.safetensors"
teacher_logits(teacher, few, path=own_file, refresh=True)
try:
    teacher_logits(build(CONFIG).eval(), few, path=own_file)
except CookbookError as error:
    print("refused:", str(error).replace(str(own_file), "the file"))

# %% [markdown]
# ## The experiment and its control
#
# One function trains every student of this lesson. With answers it distils, (1 − alpha) · hard labels + alpha · soft
# targets; without them it is plain `fit` on the same loader: the same weights at the start, the same pictures in the same order.
# Expect `True`: with alpha = 0 the two are one, bit for bit.

# %%
# NBVAL_CHECK_OUTPUT
def train_student(seed, shown, known=None, epochs=EPOCHS, config=CONFIG, rate=0.1, **settings):
    seed_everything(seed)
    network = build(config)
    loader = ViewLoader(shown, by_profile(quick=25, full=128), logits=known, seed=seed)
    recipe = Recipe(epochs=epochs, learning_rate=rate, channels_last=by_profile(quick=False, full=True), seed=seed)
    if known is None:
        fit(network, loader, recipe)
    else:
        distill(network, None, loader, recipe, **settings)
    return network


few_shown, few_known = prepared(few)
one, other = train_student(0, few_shown, epochs=1), train_student(0, few_shown, few_known, epochs=1, alpha=0.0)
print("alpha = 0 is hard labels:", all(map(torch.equal, one.state_dict().values(), other.state_dict().values())))

# %% [markdown]
# ### All labels
#
# Four ways, three seeds each, scored on validation: with and without the teacher on the same views, and with and without it on
# plain pictures. Only the rows of one kind of picture may be compared, because augmentation has an effect of its own. Expect
# to see how far seeds lie apart within a row.

# %%
plain_shown, plain_known = prepared(pictures, Augmentation(), 1)
ways = {"hard labels": (shown,), "distilled, cached views": (shown, known)}
ways |= {"hard labels, plain pictures": (plain_shown,), "distilled, plain pictures": (plain_shown, plain_known)}
networks = {name: [train_student(seed, *data) for seed in SEEDS] for name, data in ways.items()}
scores = {name: [100 * evaluate(network, validation).accuracy for network in found] for name, found in networks.items()}
for name, values in scores.items():
    print(f"{name:28}", " ".join(f"{value:.1f}" for value in values), f"| mean {fmean(values):.2f} %")

# %% [markdown]
# ### A tenth of the labels, and the temperature
#
# Where labels are scarce a teacher should help most. (It saw all labels itself; "a tenth" is what the student
# gets.) The student sees a tenth of the pictures for more epochs, with hard labels and at several temperatures. Expect three
# points at each temperature, over the band of the hard labels.

# %%
TEMPERATURES = by_profile(quick=(1.0, 4.0, 8.0), full=(1.0, 2.0, 4.0, 8.0))
few_networks = {"hard": [train_student(seed, few_shown, epochs=FEW_EPOCHS) for seed in SEEDS]}
for temperature in TEMPERATURES:
    few_networks[temperature] = [
        train_student(seed, few_shown, few_known, epochs=FEW_EPOCHS, temperature=temperature) for seed in SEEDS
    ]
few_scores = {name: [100 * evaluate(network, validation).accuracy for network in found] for name, found in few_networks.items()}
means = {temperature: fmean(few_scores[temperature]) for temperature in TEMPERATURES}
temperature_figure({temperature: few_scores[temperature] for temperature in TEMPERATURES}, few_scores["hard"])

# %% [markdown]
# ### How much of the teacher
#
# alpha is the teacher's share of the loss. With alpha = 1 the student never sees a label. Expect the mean over the seeds of each share, on
# validation, at T = 4.

# %%
shares = {0.0: few_scores["hard"], 0.9: few_scores[4.0]}
for alpha in (0.5, 1.0):
    found = [train_student(seed, few_shown, few_known, epochs=FEW_EPOCHS, alpha=alpha) for seed in SEEDS]
    shares[alpha] = [100 * evaluate(network, validation).accuracy for network in found]
rows = [(f"{alpha:g}", f"{fmean(shares[alpha]):.2f}", f"{min(shares[alpha]):.1f} to {max(shares[alpha]):.1f}") for alpha in sorted(shares)]
Table(("alpha", "accuracy, %", "over seeds"), rows, title="The teacher's share, a tenth of the labels")

# %% [markdown]
# ### Beyond the logits
#
# A teacher also has insides. `features` names places in both networks by their module path: *attention* compares where
# activations are strong (arXiv 1612.03928), a *hint* regresses the teacher's channels from the student's (FitNets, arXiv 1412.6550), and
# *relational* compares distances and angles between the pictures of a batch (arXiv 1904.05068). The teacher must be live for that.
# Expect falling losses, and for a wrong path a sentence that lists its neighbours.

# %%
features = [
    Feature(student="blocks.0", teacher="blocks.8", loss="relational", weight=1.0),
    Feature(student="blocks.2", teacher="blocks.8", loss="hint", weight=0.1),
]
loader = ResidentLoader(splits.train.subset(200), 50, augmentation=AUGMENTATION)
seed_everything(0)
history = distill(build(student_config()), teacher, loader, Recipe(epochs=2, learning_rate=0.05), features=features)
print("loss of each epoch:", [round(epoch.train_loss, 2) for epoch in history])
try:
    wrong = [Feature(student="block.2", teacher="blocks.8", loss="hint", weight=0.1)]
    distill(build(student_config()), teacher, loader, Recipe(epochs=1, learning_rate=0.05), features=wrong)
except CookbookError as error:
    print("refused:", error)

# %% [markdown]
# ## A published gain that is none
#
# A widely read course reports a student that goes from 58.66 % to 96.85 % on digits by distillation. Its student ends in a
# ReLU *behind the logits*. A logit that is negative becomes 0 and passes no gradient back: such a picture can
# no longer pull its class up, and a class whose logit is negative everywhere is lost. Soft targets happen to push differently. The
# missing control is the same student without that ReLU. Expect the seeds to differ wildly with the ReLU, and hard labels
# to do without a teacher what the teacher is credited for.

# %%
def perceptron(seed, relu, known=None):
    seed_everything(seed)
    network = build(PerceptronConfig(hidden=(20, 20)))
    network = torch.nn.Sequential(network, torch.nn.ReLU()) if relu else network
    loader = ViewLoader(shown, by_profile(quick=32, full=128), logits=known, seed=seed)
    recipe = Recipe(epochs=by_profile(quick=8, full=3), learning_rate=1e-3, optimizer="adamw", schedule="constant", seed=seed)
    fit(network, loader, recipe) if known is None else distill(network, None, loader, recipe, alpha=0.7, temperature=7.0)
    return 100 * evaluate(network, validation).accuracy


artefact = {
    "ReLU behind the logits, hard labels": [perceptron(seed, True) for seed in range(5)],
    "ReLU behind the logits, distilled": [perceptron(seed, True, known) for seed in range(5)],
    "no ReLU, hard labels": [perceptron(seed, False) for seed in range(5)],
}

# %% [markdown]
# Whoever runs one seed can choose the story. Expect, below the table, the largest gain that a single seed shows, and what
# remains of it against the right control, paired over the five seeds.

# %%
hard_relu, soft_relu, hard_plain = artefact.values()
gains = [after - before for before, after in zip(hard_relu, soft_relu, strict=True)]
print(f"largest gain of one seed with the ReLU: {max(gains):+.1f} points; over all seeds {compare_seeds(hard_relu, soft_relu)}")
print(f"removing the ReLU instead, no teacher: {compare_seeds(hard_relu, hard_plain)}")
Table(
    ("student", *(f"seed {seed}" for seed in range(5)), "mean"),
    [(name, *(f"{value:.1f}" for value in values), f"{fmean(values):.1f}") for name, values in artefact.items()],
    title="Validation accuracy, %",
)

# %% [markdown]
# ## A student that may gain nothing
#
# Soft targets can only teach what a student can hold. A linear classifier has no room for the shades between classes, so we
# ask it too, with a learning rate low enough for both losses, and keep the row whatever it says. Expect the paired difference over the seeds, on validation; it may even be a loss.

# %%
linear = {
    name: [100 * evaluate(train_student(seed, *data, config=PerceptronConfig(hidden=()), rate=0.003), validation).accuracy
           for seed in SEEDS]
    for name, data in (("hard", (shown,)), ("soft", (shown, known)))
}
print(f"linear student, {fmean(linear['hard']):.1f} % with hard labels; distilled {compare_seeds(linear['hard'], linear['soft'])}")

# %% [markdown]
# ## The table
#
# Now the test pictures, once. The temperature was chosen on validation. Expect for each budget of labels the two means, and the gain
# with its interval over the seeds: an interval that contains zero is *no difference*.

# %%
best, worst = max(means, key=means.get), min(means, key=means.get)


def on_test(found):
    return [100 * evaluate(network, test).accuracy for network in found]


all_hard, all_soft = on_test(networks["hard labels"]), on_test(networks["distilled, cached views"])
few_hard, few_soft, few_worst = (on_test(few_networks[name]) for name in ("hard", best, worst))
gain, gain_few, swing = compare_seeds(all_hard, all_soft), compare_seeds(few_hard, few_soft), compare_seeds(few_worst, few_soft)
rows = [
    (f"{len(pictures):,}", f"{fmean(all_hard):.2f}", f"{fmean(all_soft):.2f}", str(gain)),
    (f"{len(few):,}", f"{fmean(few_hard):.2f}", f"{fmean(few_soft):.2f}", f"{gain_few}, temperature {best:g}"),
]
Table(("labels", "hard, %", "distilled, %", "gain over hard labels, points"), rows, title=f"Test accuracy, {len(SEEDS)} seeds")

# %% [markdown]
# Beside the baseline, one student of each kind (the first seed, chosen beforehand) goes through the course's instrument. Expect both
# students to be many times faster than the teacher, and equally fast: distillation changes weights, not shapes.

# %%
ledger = Ledger.local()
example = splits.validation.normalized()[:1]
candidates = [Candidate.from_torch("baseline fp32", teacher, example, artefacts=[checkpoint])]
for name, label in (("hard labels", "student, hard labels"), ("distilled, cached views", "student, distilled")):
    candidates.append(Candidate.from_torch(label, networks[name][0], example, seed=SEEDS[0]))
measurements = measure_candidates(candidates, test, lesson="06", rounds=by_profile(quick=5, full=30))
for measurement in measurements:
    ledger.append(measurement)
scoreboard(measurements)

# %% [markdown]
# ### Why is the gain no larger?
#
# Three reasons to keep in mind. With all labels a small network is limited by its size, not by what it is told. The teacher
# was trained with label smoothing, which makes its answers about the wrong classes nearly equal and so erases what distillation
# lives on (Müller, Kornblith and Hinton, arXiv 1906.02629; the figure above shows it). And on the pictures it was trained on, a teacher
# is mostly sure: there, soft targets are hard labels with a little smoothing.
#
# ### The same over more seeds and epochs
#
# A small gain needs many trainings to be told from none. That is one command that can be interrupted, `python -m cookbook.experiments.distillation`, and it
# records its results in two parts. Expect what has been recorded by now, with the interval over the seeds.

# %%
recorded_table(Ledger.recorded())

# %% [markdown]
# ## What held and what did not
#
# The verdicts are computed from the ledger. A claim that was recorded is judged by that, and not by this run.

# %%
def bounded(name, comparison):
    return {name: comparison.difference, f"{name}_low": comparison.low, f"{name}_high": comparison.high}


note = f"{len(pictures):,} images and a tenth of them, on cached views."
values = {**bounded("gain_points", gain), **bounded("gain_points_tenth", gain_few)}
ledger.append(ClaimEvidence(claim="kd-01", lesson="06", values=values, seeds=SEEDS, note=note))
values = {**bounded("temperature_spread_points", swing), "best_temperature": best, "worst_temperature": worst}
ledger.append(ClaimEvidence(claim="kd-02", lesson="06", values=values, seeds=SEEDS, note=note))
verdicts("06")

# %% [markdown]
# ## Your turn
#
# 1. Let the student teach a copy of itself: `distill(copy.deepcopy(network), network, …)`. Does the second generation gain?
# 2. Give the student two teachers with `Ensemble`. Is the mean of the probabilities better than the mean of the logits?
# 3. Train with `mixup=0.2` and a live teacher. Why can cached logits not do that?
# 4. Use `method="decoupled"` on the tenth of the labels. Which `beta` would you choose, and on which split?
#
# The check is an invariant of every loss here: it is zero when the student already says what the teacher says, and adding a
# constant to all logits of a picture changes nothing that a softmax can see.

# %%
# NBVAL_CHECK_OUTPUT
constant = torch.arange(6.0, dtype=torch.float64)[:, None]
print("zero for equal logits:", soft_targets(theirs, theirs).abs().item() < 1e-12)
print("blind to a constant:", bool((soft_targets(ours + constant, theirs) - soft_targets(ours, theirs)).abs() < 1e-9))

# %% [markdown]
# ## Next
#
# [07 Export](07_export.ipynb): the student becomes a file. Does it compute the same, and with which kernels?
