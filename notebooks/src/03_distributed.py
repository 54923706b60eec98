# %% [markdown]
# # 03 Distributed training
#
# | | |
# |---|---|
# | **Question** | Do several processes compute what one computes, on one machine and on several? |
# | **You need** | lessons 00 to 02; neither a GPU nor a second machine |
# | **Time** | about a minute and a half on a two-core CPU in the quick profile; on several GPUs: not recorded yet |
# | **You will have measured** | how far the gradients of two processes are from those of one, with and without BatchNorm; what a script without the sampler does; the accuracy of both ways in two precisions; the time of a step, and what a model makes of it for a thousand GPUs |
#
# In *data-parallel* training every process, a *rank*, has the whole model and a part of each batch. All that the ranks exchange are
# gradients, and if they average them rightly, they take the very step that one process would have taken. Most that goes wrong goes wrong
# silently: the training runs, and learns something else. So we compare with one process at every turn.

# %% [markdown]
# Imports and stamp. The workers come from a module, because the processes that we start must be able to import them. With fewer than two
# GPUs the ranks are processes on the CPU, which talk to each other through gloo. Expect the device of this notebook in the stamp.

# %%
import json
import sys

import torch
import torch.nn.functional as F

from cookbook import Augmentation, ClaimEvidence, Ledger, ResidentLoader, Table, build, by_profile
from cookbook import load_fashion_mnist, seed_everything, speedup, stamp, verdicts
from cookbook.distributed import averaged, hosts_unavailable, launch, overlap, relative_difference, sampled, two_hosts
from cookbook.distributed import ScalingModel, cluster_template, fitted_link, gradient_bytes
from cookbook.distributed.scaling import LINKS
from cookbook.distributed.trial import gradient_trial
from cookbook.distributed.workers import NETWORK, step_trial, training_trial, visited_samples
from cookbook.measure import Timing
from cookbook.plots.distributed import scaling_figure

stamp()
ledger, place = Ledger.local(), "cpu" if torch.cuda.device_count() < 2 else None

# %% [markdown]
# ## Averaging gradients, by hand
#
# The loss of a batch is a mean over its images, so its gradient is a mean too: of the gradients of two halves. `DistributedDataParallel`
# (DDP) averages over the ranks in just that way. With 10 images on one rank and 20 on the other, the mean of the two means counts an image
# of the short batch twice; each rank's loss must be multiplied by its images × ranks / all images, and `fit` does so. Expect three relations.

# %%
# NBVAL_CHECK_OUTPUT
seed_everything(0)
network, inputs, targets = torch.nn.Linear(6, 3), torch.randn(30, 6), torch.randn(30, 3)


def gradients(rows):
    network.zero_grad()
    F.mse_loss(network(inputs[rows]), targets[rows]).backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


halves, parts = ([gradients(slice(0, cut)), gradients(slice(cut, 30))] for cut in (15, 10))
whole = gradients(slice(None))
print("halves, averaged, are the whole:", relative_difference(averaged(halves), whole) < 1e-6)
print("10 and 20 images, averaged, are not:", relative_difference(averaged(parts), whole) > 1e-2)
print("weighted by their images, they are:", relative_difference(averaged(parts, counts=(10, 20)), whole) < 1e-6)

# %% [markdown]
# ## Two processes
#
# `launch` starts a function of a module in several processes through `torchrun`, prints what they print with the rank in front, and
# returns what they return. If one fails, its traceback is shown and the others are stopped; when this kernel is interrupted or restarted, none
# stays behind. Here each rank takes half of one batch through DDP, then the whole batch alone, and compares the gradients. Expect rounding
# for a network without BatchNorm. BatchNorm normalizes by the images that a rank sees, so expect another gradient with it.

# %%
found = launch(gradient_trial, ranks=2, threads=1, timeout=120)
for trial in found:
    print(f"rank {trial['rank']} of {trial['world']}: {trial['plain']:.1e} from one process; with BatchNorm {trial['batch_norm']:.1%}")
worst = {name: max(trial[name] for trial in found) for name in ("plain", "batch_norm")}
values = {"relative_difference": worst["plain"], "relative_difference_batchnorm": worst["batch_norm"]}
ledger.append(ClaimEvidence(claim="ddp-03", lesson="03", values=values, note="two gloo ranks, float32, 32 images"))

# %% [markdown]
# The same as relations that hold on every machine. Expect `True` three times: two ranks are one process, but not with BatchNorm. Where that matters,
# `Parallel(sync_batchnorm=True)` lets all ranks normalize together, on GPUs; GroupNorm has no such difference.

# %%
# NBVAL_CHECK_OUTPUT
print("ranks:", [trial["rank"] for trial in found], "| equal to 1e-6 without BatchNorm:", worst["plain"] < 1e-6)
print("the ranks agree with each other:", len({trial["plain"] for trial in found}) == 1)
print("BatchNorm makes a difference:", worst["batch_norm"] > 1e-3)

# %% [markdown]
# ## Who sees what
#
# Nothing in DDP looks at the data. A script whose DataLoader merely shuffles lets every rank go through the whole dataset; and since scripts
# set one seed, both ranks take the *same* batches in the same order: two processes do the work of one, and report twice the speed.
# `DistributedSampler` parts one common order. Each rank below says which of 400 samples it visited. Expect an overlap of 1 and of 0, and the
# same order in both epochs, because nobody called `set_epoch`.

# %%
visits = launch(visited_samples, 400, ranks=2, threads=1, timeout=120)

# %% [markdown]
# Who saw what, and what both saw:

# %%
# NBVAL_CHECK_OUTPUT
plain, dealt, second = ([rank[name] for rank in visits] for name in ("plain", "sampler", "second epoch"))
values = {"overlap_without": overlap(plain), "overlap_with": overlap(dealt)}
ledger.append(ClaimEvidence(claim="ddp-02", lesson="03", values=values, note="two ranks, 400 samples, one seed for all"))
print("overlap without the sampler:", values["overlap_without"], "| with:", values["overlap_with"])
print("without the sampler the ranks even take the same samples at the same time:", plain[0] == plain[1])
print("two epochs without set_epoch are equal:", dealt == second,
      "| with it:", sampled(400, 2, epoch=0) == sampled(400, 2, epoch=1))

# %% [markdown]
# One more trap lies in evaluation: the sampler repeats images until all ranks have equally many, so that an accuracy counts some of them
# twice. Expect 10,002 visits of 10,001 images. The loaders of the cookbook do without the sampler: `fit` shares out each batch, in an order
# that depends on the epoch, and evaluation counts every image once, whatever the number of ranks.

# %%
# NBVAL_CHECK_OUTPUT
shards = sampled(10_001, ranks=2)
print("DistributedSampler:", sum(map(len, shards)), "visits of", len(set(shards[0]) | set(shards[1])), "images")
loader = ResidentLoader(load_fashion_mnist().test.subset(1001), 250)
counted = [sum(len(range(rank, loader.images_in(batch), 2)) for batch in range(len(loader))) for rank in range(2)]
print("shards of a loader:", counted, "visits of", len(loader.split), "images")

# %% [markdown]
# ## The same fit
#
# In a group of ranks `fit` wraps the model in DDP, parts the batches, lets gradients travel once a step however many batches it accumulates, and
# lets rank 0 write the checkpoint; the call stays the same. So the worker below can also be called here, as one process: that is the
# control, with the same seeds, batches and augmentation. Then two ranks train, in fp32 and in bf16. Expect accuracies that are close, and not
# equal: BatchNorm sees half batches.

# %%
size = by_profile(quick=(640, 2, 32), full=(55_000, 3, 128))
seeds, tested = by_profile(quick=(0,), full=(0, 1, 2)), by_profile(quick=500, full=10_000)
one = training_trial(*size, ("fp32",), seeds, tested, place)
two, _ = launch(training_trial, *size, ("fp32", "bf16"), seeds, tested, place, ranks=2, threads=1)
print("images evaluated by one process:", one["images"], "| by two ranks together:", two["images"])

# %% [markdown]
# The table pairs the seeds. The claim says that DDP and mixed precision go together, so the verdict below compares both at once with neither;
# the second row separates them. In the quick profile the training has hardly begun and few images are tested: expect points of difference in
# either direction, and evidence only from the full profile.

# %%
arms = {"one process, fp32": one["accuracy"]["fp32"], "two ranks, fp32": two["accuracy"]["fp32"], "two ranks, bf16": two["accuracy"]["bf16"]}
base = arms["one process, fp32"]
gaps = {name: sum(arm) / len(arm) - sum(base) / len(base) for name, arm in arms.items()}
values = {"accuracy_difference_points": gaps["two ranks, bf16"], "accuracy_difference_points_fp32": gaps["two ranks, fp32"]}
ledger.append(ClaimEvidence(claim="ddp-04", lesson="03", values=values, seeds=seeds, note="ResNet-8×16 with stem stride 2"))
rows = [(name, *(f"{accuracy:.2f}" for accuracy in arm), f"{gaps[name]:+.2f}") for name, arm in arms.items()]
Table(("training", *(f"accuracy, seed {seed}, %" for seed in seeds), "against the baseline, points"), rows,
      title="The same seeds, batches and steps")

# %% [markdown]
# **When a rank dies**, `launch(…, max_restarts=3)` starts all ranks again and `fit` goes on from its checkpoint: with the weights, bit for bit, that an
# undisturbed run ends with. The number of ranks may change on the way, because a batch does not depend on it. The proof is an experiment of its
# own, `python -m cookbook.experiments.elastic --kills 20`, which kills a random rank at a random moment twenty times.
#
# ## What a step takes
#
# Rank 0 trains alone, then both ranks together with as many images *each*, in turns. Two ranks on one machine share its cores and its memory,
# so expect anything between half and twice the images per second, and no promise for a cluster. The last line is about `DataParallel`, the
# one-process predecessor of DDP: it takes two GPUs, and where they are missing, so is the number.

# %%
gpus = torch.cuda.device_count()
batch, each, rounds = by_profile(quick=(64, 2, 4), full=(128, 4, 30))
taken = launch(step_trial, batch, each, rounds, place, gpus >= 2, ranks=2, threads=1)[0]
times = {name: Timing(tuple(samples), 1, batch) for name, samples in taken.items()}
steps = {1: times["alone"].median, 2: times["together"].median}
print(f"alone {steps[1]:.4f} s, together {steps[2]:.4f} s a step: {2 * steps[1] / steps[2]:.2f} times the images per second")
if gpus >= 2:
    ratio = speedup(times["data-parallel"], times["together"])
    values = {"step_time_ratio": ratio.value, "step_time_ratio_low": ratio.low, "step_time_ratio_high": ratio.high, "gpus": 2}
    ledger.append(ClaimEvidence(claim="ddp-01", lesson="03", values=values, note=f"ResNet-8×16, {batch} images a GPU"))
print(f"DDP against DataParallel: {ratio}" if gpus >= 2 else f"DDP against DataParallel: missing, {gpus} of two GPUs are here.")

# %% [markdown]
# ## How far would it scale?
#
# A ring of N ranks adds up the gradients by passing on a share of 1/N of the bytes 2(N − 1) times. So a step takes the computation and, for
# each rank, nearly twice the bytes of the gradients over the link. Nothing else is in this **model**: no slow machine, no shared
# network, no loading of data. Part of the sending hides behind the backward pass; the band runs from none to as much as fits.
# The crosses were measured just now. Expect this machine's own "link", where one can be fitted, to be the worst: it is two processes that share cores.

# %%
scaling = ScalingModel(compute=steps[1], size=gradient_bytes(build(NETWORK)), images=batch)
own = [fitted_link("this machine, fitted", scaling.size, steps)] if steps[2] > steps[1] else []
scaling_figure(scaling, [*own, *LINKS], measured=steps)

# %% [markdown]
# ## Several machines
#
# Nothing in a training says on how many machines it runs. Start the same command on each, with the number of machines and the place
# where they meet, here for two machines with eight GPUs each:
#
# ```console
# cookbook train --out model.safetensors --nproc 8 --nnodes 2 --rdzv-endpoint host-a:29500
# ```
#
# The launchers (torchrun's, with the same options) meet at `host-a`, number the processes, and tell each by environment variables: `RANK` of
# `WORLD_SIZE`, and `MASTER_ADDR` and `MASTER_PORT`, where rank 0 waits for the others. `joined` reads them.
#
# Linux can pretend to be two machines: two network namespaces, each with a name and an address of its own, joined by a virtual cable. Below
# each runs one rank of the gradient trial. Expect two host names and a difference as small as before; where namespaces are not allowed, the reason.

# %%
program = """
import json, os, socket
from cookbook.distributed.trial import gradient_trial
os.environ["RANK"] = {"host-a": "0", "host-b": "1"}[socket.gethostname()]
print(json.dumps(gradient_trial()))
"""
variables = {"MASTER_ADDR": "host-a", "MASTER_PORT": "29500", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "OMP_NUM_THREADS": "1"}
missing, across = hosts_unavailable(), []
if missing is None:
    with two_hosts() as hosts, hosts.started([sys.executable, "-c", program], environment=variables) as running:
        across = [json.loads(outcome.output.splitlines()[-1]) for outcome in running.wait(300)]
for trial in across:
    print(f"rank {trial['rank']} of {trial['world']} on {trial['host']}: {trial['plain']:.1e} from one process")
print(missing or "Both hosts were there.")

# %% [markdown]
# The difference is evidence for a claim where it could be computed; elsewhere the committed evidence speaks. Expect a short statement.

# %%
if across:
    values = {"relative_difference": max(trial["plain"] for trial in across), "hosts": len({trial["host"] for trial in across})}
    note = "two ranks in two network namespaces against one process, float32; only the meeting point differs"
    ledger.append(ClaimEvidence(claim="ddp-05", lesson="03", values=values, note=note))
print("recorded" if across else "not measured here")

# %% [markdown]
# **When the network fails** every rank ends with an error once the patience of its group is over, `joined(timeout=…)`. Torch's own default is half an hour
# for gloo. `launch` on several machines ends within half a minute, because its launchers listen to each other. On a cluster the scheduler starts the command for you. Two ready files do so for Slurm and for Kubernetes; copy one and
# change the lines that are marked. Expect the command of the first and the kind of the second.

# %%
# NBVAL_CHECK_OUTPUT
script, job = cluster_template("slurm"), cluster_template("kubernetes")
print(script[script.index("srun"):].strip())
print(*(line for line in job.splitlines() if line.startswith(("apiVersion", "kind"))), sep="\n")

# %% [markdown]
# ### Models that do not fit
#
# DDP keeps the whole model on every rank. `cookbook.distributed.shard` gives each rank a slice of every parameter, gradient and optimizer state
# (FSDP2, `torch.distributed.fsdp.fully_shard`; its predecessor is the class `FullyShardedDataParallel`), and gathers one block at a time.
# The gradients are those of DDP. `save_sharded` lets every rank write its slices; any number of ranks, one included, reads them back.
#
# ### Why not faster?
#
# A rank waits for the slowest one in every step, and for the bytes of all gradients, which do not become fewer when its part of the batch does.
# So give each rank a large batch; accumulate; send 16 bits (`Parallel(compression="fp16")`). Each changes something, and each is to be measured.

# %% [markdown]
# ## What held and what did not
#
# The verdicts are computed from the committed evidence and from what this notebook has just recorded. The first claim needs two GPUs, and says so
# until someone records it.

# %%
verdicts("03")

# %% [markdown]
# ## Your turn
#
# 1. Write a worker of your own in a file beside this notebook: let each rank print its number, and let rank 1 raise. What does `launch` show?
# 2. What would `averaged` need to know if a rank had no image left? What does `fit` do then?
# 3. Let `step_trial` run with a batch of 16 and of 512. When do two ranks pay, and why?
#
# An invariant for the second: the parts of three ranks, put together, are the batch, image by image, with the same augmentation. Expect `True`
# in both lines.

# %%
# NBVAL_CHECK_OUTPUT
loader = ResidentLoader(load_fashion_mnist().train.subset(100), 32, augmentation=Augmentation(crop=2, flip=True), seed=1)
images, labels = next(loader.batches(epoch=4))
together, truth = torch.empty_like(images), torch.empty_like(labels)
for rank in range(3):
    together[rank::3], truth[rank::3] = next(loader.shard(rank, 3).batches(epoch=4))
print("the parts are the batch:", torch.equal(together, images) and torch.equal(truth, labels))
print("and each epoch has another order:", not torch.equal(next(loader.batches(epoch=5))[1], labels))

# %% [markdown]
# ## Next
#
# [04 Pruning](04_pruning.ipynb): which of the weights that were trained so far can go, and which of them cost time?
