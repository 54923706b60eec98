# %% [markdown]
# # 09 Hardware-aware search
#
# | | |
# |---|---|
# | **Question** | Which small architecture is fast on this machine, and does a search find it better than a hand does? |
# | **You need** | lessons 00 and 04; no GPU, no network |
# | **Time** | about two minutes on a two-core CPU in the quick profile; on a GPU: not recorded yet |
# | **You will have measured** | how well operations predict latency, hundreds of networks without training each, three samplers against each other, and a found network against a hand-made one |
#
# Lessons 04 to 06 shrink a network that somebody designed. Here the design itself is looked for: how deep, how
# wide in each stage. Two things make that affordable. A *supernet* holds all candidates in one set of weights, so
# that a candidate costs an evaluation and not a training. And the latency is measured where the network will
# run, once for each candidate.

# %% [markdown]
# The first cell imports and prints the stamp. Expect versions, device and profile.

# %%
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F

from cookbook import (
    ClaimEvidence, Ledger, Recipe, ResidentLoader, Table, by_profile, compare_seeds, count_macs, evaluate, fit,
    load_fashion_mnist, seed_everything, stamp, verdicts,
)
from cookbook.experiments.search import recorded_table
from cookbook.plots.search import hypervolume_figure, search_figure
from cookbook.search import RelativeLatency, SearchSpace, SharedWeights, SuperNet, search, train_supernet

stamp()

# %% [markdown]
# ## The space
#
# A search space is a list of choices: two depths, some widths for each stage, and whether the channels inside a
# block are halved. Expect hundreds of networks, from small to twenty times as large.

# %%
# NBVAL_CHECK_OUTPUT
space = SearchSpace(depths=(8, 14), widths=((8, 12, 16), (8, 16, 24, 32), (16, 32, 48, 64)), pruning=(0.0, 0.5))
splits = load_fashion_mnist()
example = splits.train.normalized()[:1]
networks = list(space.candidates())
print(f"{space.combinations} combinations of choices, {len(networks)} different networks")
for candidate in (space.smallest, space.largest):
    print(f"{candidate}: {count_macs(candidate.build(), example):,} MACs")

# %% [markdown]
# ## Operations are a guess
#
# Papers often search for few multiply-accumulates (MACs), because they can be counted without a clock. Does the order by
# MACs equal the order by latency? `RelativeLatency` times a network in turns with the largest one in ONNX
# Runtime, one thread, and gives the ratio. Spearman's rank correlation is the correlation of the two orders: 1 for
# the same order, 0 for none. Expect a number near 1, but not 1, if nothing else computes on your machine.

# %%
clock = RelativeLatency(space, example, rounds=by_profile(quick=7, full=30))
generator = torch.Generator().manual_seed(0)
sample = list(dict.fromkeys(space.draw(generator) for _ in range(by_profile(quick=12, full=60))))
macs = torch.tensor([float(count_macs(candidate.build(), example)) for candidate in sample])
latency = torch.tensor([clock(candidate) for candidate in sample])
ranks = torch.stack([values.argsort().argsort().double() for values in (macs, latency)])
correlation = torch.corrcoef(ranks)[0, 1].item()
per_mac = latency / (macs / macs.max())
print(f"rank correlation of MACs and measured latency over {len(sample)} networks: {correlation:.2f}")
print(f"time for the same number of MACs differs by a factor of up to {per_mac.max() / per_mac.min():.2f}")

# %% [markdown]
# The factor is why we measure. A narrow layer leaves vector registers half empty (lesson 04), and each
# layer costs a little whatever its width, so that depth is dearer than MACs say.
#
# ## One network that holds all others
#
# A narrower network takes the first channels of each layer, a shallower one the first blocks of each stage (Yu and Huang,
# arXiv 1903.05134; Cai et al., arXiv 1908.09791). For the first layer that is one line. Expect `True`: the cut-out network
# computes what the slice of the shared weight computes, with a small share of the weights.

# %%
# NBVAL_CHECK_OUTPUT
seed_everything(0)
supernet = SuperNet(space)
images = splits.train.normalized()[:8]
small = supernet.subnet(space.smallest)
weight = supernet.network.stem[0].weight
by_hand = F.conv2d(images, weight[:8], padding=1)
print("the slice is the layer:", torch.allclose(by_hand, small.stem[0](images), atol=1e-6))
print("weights shared with the largest network:", sum(p.numel() for p in small.parameters()),
      "of", sum(p.numel() for p in supernet.parameters()))

# %% [markdown]
# Training takes one more rule. If every step trained a random part, the parts would undo each other's work. The *sandwich
# rule* trains the largest, the smallest and one or two random networks in each step; the largest learns from the labels, and
# the others learn from what the largest says (distillation, lesson 06, inside one network). `train_supernet` hands this
# objective to the same `fit` as ever. Expect the largest network's accuracy on validation to rise.

# %%
pictures = splits.train.subset(by_profile(quick=800, full=55_000))
batch_size = by_profile(quick=32, full=128)
recipe = Recipe(epochs=3, learning_rate=0.1, weight_decay=1e-4)
validation = ResidentLoader(splits.validation.subset(by_profile(quick=250, full=len(splits.validation))), 250)
history = train_supernet(supernet, ResidentLoader(pictures, batch_size), recipe, drawn=by_profile(quick=1, full=2), validation=validation)
print("accuracy of the largest network:", ", ".join(f"{epoch.validation_accuracy:.1%}" for epoch in history))

# %% [markdown]
# A part of a network sees other statistics than the whole, so that the running means of BatchNorm don't fit it. They are
# estimated anew from training images (lesson 04); no weight changes. Expect the first column close to guessing for small
# networks, and the second far above it.

# %%
statistics = ResidentLoader(splits.train.subset(by_profile(quick=250, full=5000)), 250)
chosen = {"smallest": space.smallest, "one between": space.uniform(8, 12), "largest": space.largest}
rows = []
for name, candidate in chosen.items():
    borrowed = evaluate(supernet.subnet(candidate), validation).accuracy
    estimated = evaluate(supernet.subnet(candidate, statistics), validation).accuracy
    rows.append((name, str(candidate), f"{borrowed:.1%}", f"{estimated:.1%}"))
Table(("network", "shape", "the largest's statistics", "its own statistics"), rows, title="BatchNorm of a part")

# %% [markdown]
# ## One search
#
# `SharedWeights` scores a candidate: accuracy on validation with its share of the weights, and latency. Both are
# remembered, so that no network is evaluated twice. `search` lets a sampler of Optuna propose candidates: here TPE, which
# models where good networks are. There are two goals, and so the result is not one network but a *front*: those that
# no other beats in both. Expect accuracy to rise with latency along it.

# %%
score = SharedWeights(supernet, clock, statistics, validation)
trials, initial = by_profile(quick=6, full=40), by_profile(quick=3, full=10)
first = search(space, score, trials=trials, initial=initial, sampler="tpe", seed=0)
print(first)

# %% [markdown]
# How good is a front? The *hypervolume* is the area of all pairs (latency, accuracy) that some network of the front
# is at least as good as, counted from the corner "as slow as the largest, never right". By hand it is a sum of rectangles,
# one for each step of the stairs. Expect both to agree.

# %%
# NBVAL_CHECK_OUTPUT
area, end = 0.0, first.reference.latency
for trial in reversed([trial for trial in first.front if trial.score.latency < end]):
    area += (end - trial.score.latency) * trial.score.accuracy
    end = trial.score.latency
print("the area by hand is the hypervolume:", abs(area - first.hypervolume) < 1e-9)

# %% [markdown]
# ## Is it better than chance?
#
# Random search is the control that a search has to beat (Bergstra and Bengio, JMLR 13, 2012; Li and Talwalkar, arXiv
# 1902.07638). Three samplers get the same number of networks for each of several seeds: random; `evolutionary`, which is
# NSGA-II; and TPE. Expect some networks to be found by all: they are scored once and shared, so that no sampler gains by
# a luckier measurement.

# %%
seeds = tuple(range(by_profile(quick=3, full=5)))
found = {
    name: [search(space, score, trials=trials, initial=initial, sampler=name, seed=seed) for seed in seeds]
    for name in ("random", "evolutionary", "tpe")
}
clouds = {
    name: [(trial.score.latency, trial.score.accuracy) for result in results for trial in result.trials if not trial.repeated]
    for name, results in found.items()
}
search_figure(clouds)

# %% [markdown]
# The second figure asks how fast each got there. Expect bands that overlap where there are few networks: a sampler that
# learns needs something to learn from, and its first networks are random too.

# %%
hypervolume_figure({name: [result.history[:trials] for result in results] for name, results in found.items()})

# %% [markdown]
# The comparison is paired by seed, by Student's t test (lesson 00), and a null result is kept. Expect `no difference`
# where there are few seeds: three pairs decide only what is large and steady.

# %%
ends = {name: [result.hypervolume for result in results] for name, results in found.items()}
against_chance = {name: compare_seeds(ends["random"], ends[name]) for name in ("evolutionary", "tpe")}
rows = [(name, f"{fmean(ends[name]):.4f}", str(comparison)) for name, comparison in against_chance.items()]
Table(("sampler", "mean hypervolume", "minus random, paired over seeds"),
      [("random", f"{fmean(ends['random']):.4f}", "the control"), *rows], title=f"After {trials} networks")

# %% [markdown]
# ## Interrupted, resumed, shared
#
# With `storage`, a search lives in an SQLite file. We stop one in the middle, as Ctrl-C would, and make the same call
# again. Every trial draws its random numbers from the seed and its own position, so that the resumed search proposes what
# an undisturbed one would have proposed. Expect `True`.

# %%
# NBVAL_CHECK_OUTPUT
def stop_in_the_middle(trial):
    if trial.number == 2:
        raise KeyboardInterrupt

with tempfile.TemporaryDirectory() as folder:
    call = {"trials": 5, "initial": initial, "seed": 1, "storage": Path(folder) / "study.db"}
    try:
        search(space, score, **call, on_trial=stop_in_the_middle)
    except KeyboardInterrupt:
        print("stopped")
    resumed = search(space, score, **call)
undisturbed = search(space, score, **{**call, "storage": None})
print("the same trials:", resumed.trials == undisturbed.trials)

# %% [markdown]
# The storage can also be the URL of a database, and then several machines share the study. Each makes the same call:
#
# ```python
# search(space, score, trials=1000, name="resnet", storage="postgresql://user@host/studies")
# ```
#
# Together they evaluate 1000 networks, once. A machine that goes away loses its one trial, which another does again. The study
# notes space, weights, images, processor and seed, and refuses a call that differs: a latency from another kind of processor
# would be another question. For processes on *one* machine the SQLite file is enough; give each a core of its own, or
# they will time each other.
#
# ## Against a hand
#
# What would a designer do without a search? Take the usual family, in which each stage is twice as wide as the one
# before, and turn one knob, the width, as far up as the limit on the latency allows. To be fair, the hand also tries both
# depths, and picks by the same scores. Both sides get the same limit. Expect the found networks to use their time differently.

# %%
limit = 0.4
widths = range(4, 17, by_profile(quick=2, full=1))
families = [[space.uniform(depth, width) for width in widths] for depth in space.depths]
fitting = [max((candidate for candidate in family if clock(candidate) <= limit), key=clock) for family in families]
by_design = max(fitting, key=lambda candidate: score(candidate).accuracy)
winners = [result.best_within(limit).candidate for result in found["tpe"][:3]]
for name, candidate in (("hand", by_design), *((f"search {seed}", winner) for seed, winner in enumerate(winners))):
    print(f"{name}: {candidate}, latency {clock(candidate):.3f}, shared weights {score(candidate).accuracy:.1%}")

# %% [markdown]
# Shared weights rank; they are not the last word. So each search's winner is trained alone from fresh weights, and so is the
# hand-made network, with the same seed, pictures and epochs, and both are judged on test, once. Expect a difference in
# accuracy that is small beside its interval.

# %%
test = ResidentLoader(splits.test.subset(by_profile(quick=500, full=10_000)), 500)
alone = replace(recipe, epochs=by_profile(quick=2, full=5))


def train_alone(candidate, seed):
    seed_everything(seed)
    network = candidate.build()
    fit(network, ResidentLoader(pictures, batch_size, seed=seed), replace(alone, seed=seed))
    return 100 * evaluate(network, test).accuracy


searched = [train_alone(winner, seed) for seed, winner in enumerate(winners)]
designed = [train_alone(by_design, seed) for seed in range(3)]
gain = compare_seeds(designed, searched)
print(f"searched {fmean(searched):.2f} %, hand-made {fmean(designed):.2f} %; difference in points: {gain}")

# %% [markdown]
# The winner has weights already: its share of the supernet's. Fine-tuned at a tenth of the rate for the same number of
# epochs, does it end where the fresh training ends? Expect a head start, which matters most when the training is short.

# %%
tuned = supernet.subnet(winners[0], statistics).train()
before = 100 * evaluate(tuned, test).accuracy
fit(tuned, ResidentLoader(pictures, batch_size), replace(alone, learning_rate=0.1 * alone.learning_rate))
print(f"shared weights {before:.2f} %, fine-tuned {100 * evaluate(tuned, test).accuracy:.2f} %, fresh {searched[0]:.2f} %")

# %% [markdown]
# The lesson's table: found and hand-made networks with what they take and what they reach. Expect latencies below
# the limit on both sides.

# %%
shown = [("hand-made", by_design, designed), *(("searched", winner, searched[seed:seed + 1]) for seed, winner in enumerate(winners))]
rows = [
    (name, str(candidate), f"{count_macs(candidate.build(), example) / 1e6:.2f} M", f"{clock(candidate):.3f}", f"{fmean(reached):.2f} %")
    for name, candidate, reached in shown
]
Table(("network", "shape", "MACs", "share of the largest's latency", "accuracy on test"), rows, title=f"At most {limit} of the latency")

# %% [markdown]
# The evidence goes to the ledger: the gain over the hand-made network with its interval, how much slower or faster the
# winners are, and what the samplers gained over chance.

# %%
values = {"gain_points": gain.difference, "gain_points_low": gain.low, "gain_points_high": gain.high}
values |= {"latency_ratio": fmean(clock(winner) for winner in winners) / clock(by_design), "latency_limit": limit}
values |= {"searched_accuracy": fmean(searched), "hand_accuracy": fmean(designed), "rank_correlation_of_macs": correlation}
for name, comparison in against_chance.items():
    values |= {f"hypervolume_gain_{name}": comparison.difference, f"hypervolume_gain_{name}_low": comparison.low}
    values |= {f"hypervolume_gain_{name}_high": comparison.high}
ledger = Ledger.local()
ledger.append(ClaimEvidence(claim="search-01", lesson="09", values=values, seeds=(0, 1, 2), note=f"{trials} networks a search."))

# %% [markdown]
# ## What held and what did not
#
# Networks that were trained for seconds cannot decide. The long experiment, with all pictures and forty networks a search, is one command of
# about an hour that can be interrupted: `python -m cookbook.experiments.search`. Expect intervals that include zero: in this space three searches
# were not steadily better than a hand that also tries both depths and measures, and no sampler was steadily better than chance.

# %%
recorded_table(Ledger.recorded())

# %% [markdown]
# The verdict is computed from the ledger by the rule in `claims.toml`, by the recorded experiment.

# %%
verdicts("09")

# %% [markdown]
# ## Your turn
#
# 1. Give the search `stem_strides=(1, 2)`. A stem with stride 2 has a quarter of the MACs in the first stage. What does the front
#    look like, and which networks vanish from it?
# 2. Let a search end by itself with `patience=8`. How many networks did it spare, and what did it miss?
# 3. Order the channels by importance with `supernet.sort_inner_channels()` before training, and after. Why does
#    the first change nothing that matters?
#
# The check is an invariant: a longer search with the same seed begins with the shorter one's trials, so that more trials
# never make the front worse.

# %%
# NBVAL_CHECK_OUTPUT
shorter = search(space, score, trials=4, initial=initial, seed=0)
longer = search(space, score, trials=6, initial=initial, seed=0)
print("the longer search begins like the shorter:", longer.trials[: len(shorter.trials)] == shorter.trials)
print("its front is at least as good:", longer.hypervolume >= shorter.hypervolume)

# %% [markdown]
# ## Next
#
# This is the last lesson. [08 Capstone](08_capstone.ipynb) combines the techniques under one budget; a network that you
# found here is a good start for it.
