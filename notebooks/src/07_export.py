# %% [markdown]
# # 07 Export
#
# | | |
# |---|---|
# | **Question** | Does the deployed file compute the same, and with which kernels? |
# | **You need** | lesson 00; no GPU, no network; OpenVINO and ExecuTorch are welcome and not needed |
# | **Time** | about two minutes on a two-core CPU in the quick profile; on a GPU: not recorded yet |
# | **You will have measured** | how far the file's answers are from the model's, its honest size, what simplification removes and what that brings, which kernels ran, other formats beside ONNX, and what batches do to throughput and latency |
#
# A trained network is not yet something that a user can run. Between the two lie an exporter, a file
# format, perhaps a simplifier, and a runtime with an optimizer of its own. Each rewrites the network, each can
# break it, and for each somebody promises speed. This lesson asks every one of them for evidence.

# %% [markdown]
# Imports and stamp. Expect the profile and the versions of the exporter's and the runtime's libraries.

# %%
from dataclasses import replace
from functools import partial

import torch
import torch_pruning as tp

from cookbook import (
    Candidate, ClaimEvidence, CookbookError, Ledger, ResidentLoader, ResNetConfig, Runtime, Table, build, by_profile,
    bytes_on_disk, cache_directory, count_macs, count_parameters, data_directory, export, interleave, load, load_fashion_mnist,
    measure_candidates, parity, save, scoreboard, scoreboard_figure, speedup, stamp, verdicts)
from cookbook.deploy import export_legacy, graph_summary, kernels, parity_suite, profile, simplify
from cookbook.deploy.executorch_format import ExecutorchRuntime, export_executorch
from cookbook.deploy.openvino_format import OpenVinoRuntime, export_openvino
from cookbook.deploy.torchscript import load_torchscript, trace_torchscript
from cookbook.plots import graph_figure, kernel_figure, serving_figure
from cookbook.serving import serve_arrivals, serve_load, serving_table, throughput_by_batch

stamp()

# %% [markdown]
# ## One file
#
# `export` runs the network once on symbols instead of numbers (`torch.export`), translates the recorded operators to ONNX,
# strips what no runtime reads, checks the file and tries it. The batch size stays free: an example of one
# picture must not freeze it. Expect one input whose first size is a name instead of a number.

# %%
splits = load_fashion_mnist()
folder = cache_directory() / "lessons" / "07"
checkpoint = data_directory() / "checkpoints" / "baseline.safetensors"
model = load(checkpoint)
images = splits.validation.subset(500).normalized()[:64]
baseline = export(model, images, folder / "baseline.onnx")
print(graph_summary(baseline))

# %% [markdown]
# ### The same answers, on all kinds of pictures
#
# A file can be right on the usual pictures and wrong elsewhere. `parity_suite` compares the two on pictures of
# many kinds and gives each difference in units of the logits' own spread. Expect rounding errors, about a
# millionth, in every row.

# %%
runtime = Runtime(baseline, threads=1)
report = parity_suite(model, runtime, images)
print(report)

# %% [markdown]
# Would it notice a fault? Suppose that somebody clips the pixels on their way to the runtime, at a bound that no normalized
# picture reaches. Accuracy on any test set is unchanged. Expect that only the rows with pixels beyond the bound tell.

# %%
def clipped(pictures):
    return runtime(pictures.clamp(-3, 3))


print(parity_suite(model, clipped, images))

# %% [markdown]
# What holds on every machine. Expect `True` three times.

# %%
# NBVAL_CHECK_OUTPUT
faulty = parity_suite(model, clipped, images)
print("rounding only:", report.worst.largest < 1e-3)
print("same classes in range:", report.cases["in range"].agreement == 1.0)
print("the fault shows out of range only:", faulty.worst.largest > 0.01 and faulty.cases["in range"] == report.cases["in range"])

# %% [markdown]
# ## Bytes, honestly counted
#
# What must be shipped is every file that the runtime opens. By default torch writes the weights into a second
# file beside the graph, and notes for each node from which line of Python it came. A listing that shows
# the `.onnx` alone flatters. We take a small network, on which it matters. Expect the stripped file to be the smallest, close to four bytes a parameter.

# %%
torch.manual_seed(0)
small = build(ResNetConfig(depth=8, width=8)).eval()
program = torch.onnx.export(
    small, (images[:2],), dynamo=True, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), verbose=False
)
default, single = folder / "default" / "small.onnx", folder / "single" / "small.onnx"
for path, external in ((default, True), (single, False)):
    path.parent.mkdir(parents=True, exist_ok=True)
    program.save(path, external_data=external)
stripped = export(small, images, folder / "stripped" / "small.onnx")
weights = save(small, folder / "small.safetensors")

# %% [markdown]
# Expect the first row to show how far the `.onnx` alone is from what must be shipped with it.

# %%
rows = [
    (name, f"{path.stat().st_size:,}", f"{bytes_on_disk(path):,}", f"{bytes_on_disk(path) / count_parameters(small):.2f}")
    for name, path in {
        "torch's default, weights beside": default, "one file, with notes": single, "stripped": stripped, "weights alone": weights,
    }.items()
]
Table(("file", "bytes of the file named", "bytes to ship", "bytes a parameter"), rows, title="What must be shipped")

# %% [markdown]
# The next cell prints relations instead of numbers. Expect `True` twice.

# %%
# NBVAL_CHECK_OUTPUT
print("the graph file is not what must be shipped:", default.stat().st_size < bytes_on_disk(default))
print("stripping saves bytes:", bytes_on_disk(stripped) < min(bytes_on_disk(single), bytes_on_disk(default)))

# %% [markdown]
# ## Does simplification speed the file up?
#
# The advice is old and common: prune, export, then run a simplifier, which removes redundant nodes. We put it to the
# test with two simplifiers and three exporters. First a pruned network: Torch-Pruning takes half of the channels away, those with the
# smallest weights, and rounds the widths to multiples of eight. Its accuracy is lesson 04's business; here we look at its graph.
# Expect about a quarter of the operations.

# %%
# NBVAL_CHECK_OUTPUT
pruned = load(checkpoint)
pruner = tp.BasePruner(
    pruned, images[:1], importance=tp.importance.MagnitudeImportance(p=1), pruning_ratio=0.5,
    ignored_layers=[pruned.head], round_to=8,
)
pruner.step()
print("channels after the stem:", pruned.stem[0].out_channels, "of", model.stem[0].out_channels)
print(f"multiply-accumulates left: {count_macs(pruned, images[:1]) / count_macs(model, images[:1]):.0%}")

# %% [markdown]
# The three exporters: torch's current one with its own optimization (the default), without it, and the legacy TorchScript exporter, which is
# deprecated and stands here because the advice dates from its time. Each file goes through both simplifiers; `simplify` refuses a
# result that answers differently. Expect no output.

# %%
exporters = {"default": export, "unoptimized": partial(export, optimize=False), "legacy": export_legacy}
networks = {"unpruned": model, "pruned": pruned}
files, results = {}, {}
for kind, network in networks.items():
    for exporter, write in exporters.items():
        path = files[kind, exporter] = write(network, images, folder / f"{kind}_{exporter}.onnx")
        for tool in ("onnxslim", "onnxsim"):
            out = path.with_suffix(f".{tool}.onnx")
            results[kind, exporter, tool] = simplify(path, out, simplifier=tool, images=images)

# %% [markdown]
# All files before and after, timed in turns with one picture: with so little work the cost of each node shows most. Expect node counts that fall where
# the exporter left something to do.

# %%
paths = {(*key, "as exported"): path for key, path in files.items()} | {key: done.path for key, done in results.items()}
sessions = {key: partial(Runtime(path, threads=1), images[:1]) for key, path in paths.items()}
timings = interleave(sessions, rounds=by_profile(quick=8, full=60), threads=1)
running = {key: sum(kernels(path).optimized.values()) for key, path in paths.items()}
rows = []
for (kind, exporter, tool), done in results.items():
    before, after = (kind, exporter, "as exported"), (kind, exporter, tool)
    ratio = speedup(timings[before], timings[after])
    nodes = f"{done.nodes_before} → {done.nodes_after}"
    rows.append((kind, exporter, tool, nodes, f"{running[before]} → {running[after]}", str(ratio), ratio.verdict()))
columns = ("model", "exporter", "simplifier", "nodes in the file", "nodes that run", "speed", "word")
Table(columns, rows, title="Simplification, before and after")

# %% [markdown]
# Read the column of the nodes that *run*. From the default and from the legacy file ONNX Runtime makes the same graph with
# or without a simplifier: it folds constants and drops redundant nodes itself when it loads a file. And pruning
# adds no nodes: removed channels make tensors smaller, not graphs longer. (Masks, or layers that select channels, do leave nodes behind.)
# Where the exporter's own optimizer was off, the simplifiers do remove nodes. Yet what runs is nearly as long as
# before, because the constants of BatchNorm still pass through nodes that convert and expand them, and neither the
# simplifiers nor the engine see that they could be folded. A simplifier earns its keep where the runtime is another one,
# or where nobody reads the graph before it runs; it is no cure for an exporter's switch.
#
# Now we write down what was found, for the claim's verdict. Expect one ratio an exporter, and last what the exporter's own
# optimizer brings over a simplifier behind it.

# %%
simplified = {name: speedup(timings["pruned", name, "as exported"], timings["pruned", name, "onnxslim"]) for name in exporters}
by_exporter = speedup(timings["pruned", "unoptimized", "onnxslim"], timings["pruned", "default", "as exported"])
ratio, done = simplified["default"], {name: results["pruned", name, "onnxslim"] for name in exporters}
values = {
    "latency_ratio": ratio.value, "latency_ratio_low": ratio.low, "latency_ratio_high": ratio.high,
    "latency_ratio_unoptimized": simplified["unoptimized"].value, "latency_ratio_legacy": simplified["legacy"].value,
    "nodes_default_before": done["default"].nodes_before, "nodes_default_after": done["default"].nodes_after,
    "nodes_unoptimized_before": done["unoptimized"].nodes_before, "nodes_unoptimized_after": done["unoptimized"].nodes_after,
    "nodes_legacy_before": done["legacy"].nodes_before, "nodes_legacy_after": done["legacy"].nodes_after,
    "exporter_ratio": by_exporter.value,
}
ledger = Ledger.local()
ledger.append(ClaimEvidence(claim="export-01", lesson="07", values=values))
print(", ".join(f"{name} {found}" for name, found in simplified.items()), "| exporter's optimizer", by_exporter)

# %% [markdown]
# What holds on every machine. Expect `True` twice: pruning left the graph as it was, and simplification its answers.

# %%
# NBVAL_CHECK_OUTPUT
counts = [graph_summary(files[kind, "default"]).operators for kind in networks]
print("pruned and unpruned, the same operators:", counts[0] == counts[1])
print("simplified, the same answers:", all(done.parity.largest < 1e-4 for done in results.values()))

# %% [markdown]
# ## Which kernels ran?
#
# A file says what shall be computed; the runtime decides how. `kernels` asks ONNX Runtime for the graph that it really made. Expect
# convolutions that took over the addition and the ReLU behind them, and no BatchNorm at all.

# %%
print(kernels(baseline))

# %% [markdown]
# Where did BatchNorm go? In eval mode it multiplies each channel by a constant and adds another one, and so does a
# convolution. Four lines fold the first into the second. Expect the network's own answer.

# %%
# NBVAL_CHECK_OUTPUT
conv, norm = model.stem[0], model.stem[1]
factor = norm.weight / (norm.running_var + norm.eps).sqrt()
weight, bias = conv.weight * factor[:, None, None, None], norm.bias - norm.running_mean * factor
folded = torch.conv2d(images, weight, bias, conv.stride, conv.padding)
print("one convolution instead of two layers:", torch.allclose(folded, norm(conv(images)), atol=1e-4))
print("BatchNorm nodes that run:", kernels(baseline).optimized.get("BatchNormalization", 0))

# %% [markdown]
# The runtime's own profiler tells where the time goes. It slows the run down, so look at the shares only. Expect
# convolutions, and next to nothing else: this is why other people's tricks on other nodes bring so little here.

# %%
kernel_figure(profile(baseline, images[:1], runs=by_profile(quick=20, full=100)))

# %% [markdown]
# The graph itself, drawn without a server: chains of nodes share a box. Expect nine residual blocks, each with its way around.

# %%
graph_figure(baseline)

# %% [markdown]
# ## Does the engine optimize a pruned model?
#
# Structured pruning leaves a dense, smaller network. If the engine's fusions depended on sizes or on special
# layers, pruning could cost them. So we count the fused nodes, and run each file with the engine's optimizer
# switched off and on. Expect as many fused nodes as before pruning.

# %%
engines = {}
for kind in networks:
    for optimize in (False, True):
        session = Runtime(files[kind, "default"], threads=1, optimize=optimize)
        engines[kind, optimize] = partial(session, images[:1])
engine_times = interleave(engines, rounds=by_profile(quick=8, full=60), threads=1)
fused = {kind: sum(kernels(files[kind, "default"]).fused.values()) for kind in networks}
by_engine = {kind: speedup(engine_times[kind, False], engine_times[kind, True]) for kind in networks}
by_pruning = speedup(engine_times["unpruned", True], engine_times["pruned", True])
rows = [(kind, str(fused[kind]), str(by_engine[kind])) for kind in networks]
Table(("model", "fused nodes", "speed with the engine's optimizer"), rows, f"Pruned against unpruned, both optimized: {by_pruning}.")

# %% [markdown]
# These numbers go to the ledger as well. Expect the same number of fused nodes: `True`.

# %%
# NBVAL_CHECK_OUTPUT
values = {
    "engine_speedup": by_engine["pruned"].value, "engine_speedup_low": by_engine["pruned"].low,
    "engine_speedup_high": by_engine["pruned"].high, "fused_nodes": fused["pruned"], "fused_nodes_unpruned": fused["unpruned"],
    "latency_ratio": by_pruning.value, "latency_ratio_low": by_pruning.low, "latency_ratio_high": by_pruning.high,
}
ledger.append(ClaimEvidence(claim="export-02", lesson="07", values=values))
print("as many fused nodes as before pruning:", fused["pruned"] == fused["unpruned"])

# %% [markdown]
# ## Other formats
#
# OpenVINO has a format and a CPU runtime of its own. TorchScript is how models were shipped before `torch.export`: a
# trace that freezes every condition into the branch that it saw. It is deprecated, and here as history. ExecuTorch targets phones;
# it is large and not part of this project's lock. Expect a sentence for each format whose library is missing.

# %%
script = load_torchscript(trace_torchscript(model, images, folder / "baseline.pt"))


def traced(pictures):
    with torch.inference_mode():
        return script(pictures)


facts = {"parameters": count_parameters(model), "macs": count_macs(model, images[:1])}
candidates = [
    Candidate.from_torch("baseline fp32", model, images[:1], artefacts=[checkpoint]),
    Candidate("baseline fp32, traced", "TorchScript", traced, artefacts=(folder / "baseline.pt",), **facts),
    runtime.candidate("baseline fp32, exported", **facts),
]

# %% [markdown]
# The two runtimes that need a library of their own. Expect either nothing, or what to install.

# %%
others = {
    "OpenVINO": lambda: OpenVinoRuntime(export_openvino(baseline, folder / "baseline.xml"), threads=1),
    "ExecuTorch": lambda: ExecutorchRuntime(export_executorch(model, images, folder / "baseline.pte")),
}
for name, make in others.items():
    try:
        candidates.append(make().candidate(f"baseline fp32, {name}", **facts))
    except CookbookError as error:
        print(error)

# %% [markdown]
# All candidates on the same pictures, in turns, with one thread. Expect one accuracy for all, and the runtimes that read the whole graph ahead.

# %%
test = ResidentLoader(splits.test.subset(by_profile(quick=500, full=10_000)), 50)
measurements = measure_candidates(candidates, test, lesson="07", rounds=by_profile(quick=4, full=30))
for measurement in measurements:
    ledger.append(measurement)
scoreboard(measurements)

# %% [markdown]
# The figure of every lesson: accuracy upwards, latency to the right. Expect the points on one level.

# %%
scoreboard_figure(measurements)

# %% [markdown]
# Equal accuracies could hide different answers, so we compare the answers. Expect `True` for each format.

# %%
# NBVAL_CHECK_OUTPUT
same = [parity(model, candidate.predict, images) for candidate in candidates[1:]]
print("every format gives the same classes:", all(outcome.agreement == 1.0 for outcome in same))

# %% [markdown]
# ## Batches and clients
#
# A call has a fixed cost, which a batch shares out; and larger tensors keep the arithmetic units busier. On the other hand the
# first picture of a batch waits until the last is done. First the model alone: expect pictures per second to rise with the batch, and then to level off.

# %%
sizes = (1, 2, 4, 8, 16, 32, 64)
alone = throughput_by_batch(runtime, images, sizes, rounds=by_profile(quick=4, full=30))
per_image = {
    size: replace(timing, samples=tuple(sample / size for sample in timing.samples), batch=1) for size, timing in alone.items()
}
rows = [
    (str(size), f"{alone[size].throughput:,.0f}", str(speedup(per_image[1], per_image[size])), f"{1e3 * alone[size].median:.2f}")
    for size in sizes
]
Table(("batch", "pictures/s", "throughput against batch 1", "a batch takes, ms"), rows, title="The model alone, one thread")

# %% [markdown]
# Clients send one picture each. A *micro-batcher* gathers those that wait into one call, behind a queue with a bound. Expect
# more clients to wait longer, whether or not their pictures share a call.

# %%
loads = [
    serve_load(runtime, images, concurrency=clients, requests=by_profile(quick=100, full=2000), max_batch=limit)
    for limit in (1, 16)
    for clients in (1, 4, 16)
]
serving_table(loads)

# %% [markdown]
# The same as a figure: up is more throughput, left is less waiting. Expect the price of concurrency on the horizontal axis.

# %%
serving_figure(loads)

# %% [markdown]
# ### Overload
#
# Clients that wait for their answer slow down with the server. The world does not: requests come when they
# come. Beyond its capacity a server must turn some away, or its queue grows until every answer is too
# late. Expect no rejection at half of the capacity, many at three times, and a latency that stays bounded by the queue.

# %%
capacity = max(result.throughput for result in loads)
arrivals = [
    serve_arrivals(
        runtime, images, rate=factor * capacity, requests=by_profile(quick=150, full=2000), max_batch=16, queue_size=32
    )
    for factor in (0.5, 3.0)
]
serving_table(arrivals)

# %% [markdown]
# Requests per CPU second are the cost figure: what one core, kept busy, answers in a second, whatever the wall clock says. Everything goes to
# the ledger. Expect `True`: an overloaded queue rejects instead of growing.

# %%
# NBVAL_CHECK_OUTPUT
throughput_gain = speedup(per_image[1], per_image[64])
one, many = loads[0], loads[-1]
values = {
    "throughput_gain": throughput_gain.value, "throughput_gain_low": throughput_gain.low,
    "throughput_gain_high": throughput_gain.high, "p99_ratio": many.p99 / one.p99, "served_gain": many.throughput / one.throughput,
    "requests_per_cpu_second": many.requests_per_cpu_second,
    "rejected_share_overloaded": arrivals[1].rejected / (arrivals[1].rejected + arrivals[1].answered),
}
ledger.append(ClaimEvidence(claim="export-03", lesson="07", values=values))
print("the overloaded queue turned requests away:", arrivals[1].rejected > 0)

# %% [markdown]
# ## What held and what did not
#
# The verdicts come from the ledger by the rules in `claims.toml`. From the quick profile they are labelled: so few rounds show how a verdict is
# found, and no more.

# %%
verdicts("07")

# %% [markdown]
# `cookbook zoo` at a terminal asks whether the way holds beyond this one network: it exports, compares, simplifies and serves fourteen families of
# torchvision, and prints a table of what passes.
#
# ## Your turn
#
# 1. Choose another width below. Does the exporter write other nodes for it? The check compares operators.
# 2. Prune with `round_to=1` and a ratio of 0.45. Which kernels run now, and how fast? (`kernels` marks blocked layouts.)
# 3. Give the micro-batcher a `max_wait` of 5 ms. Who gains, who pays?
#
# The check holds for any width.

# %%
# NBVAL_CHECK_OUTPUT
width = 12
other = export(build(ResNetConfig(depth=8, width=width)), images, folder / "other.onnx")
print("the width changes no operator:", graph_summary(other).operators == graph_summary(stripped).operators)

# %% [markdown]
# ## Next
#
# Lesson 08 combines the techniques and asks what remains of each gain.
