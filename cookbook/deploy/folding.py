"""An ONNX graph folded into few boxes that can be drawn: chains become one box, long graphs a strip (lesson 07)."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cookbook.deploy.graph import read_graph
from cookbook.errors import UsageError

STRIPS = 40  # boxes of a graph that is too large for one box a chain
LINES = 6  # of text in a box


@dataclass(frozen=True)
class Box:
    """Nodes that are drawn together.

    Attributes:
        operators: of its nodes, in order.
        column: length of the longest way from an input of the graph, in boxes.
        lane: place among the boxes of its column, from 0.
        summary: whether the nodes are no chain, so that only their numbers can be written.
    """

    operators: tuple[str, ...]
    column: int
    lane: int
    summary: bool = False

    @property
    def lines(self) -> list[str]:
        """The text: operators in order, a repeated pattern once with its number, and at most six lines."""
        names = _paired(self.operators)
        if self.summary:
            lines = [f"{name} ×{count}" if count > 1 else name for name, count in Counter(names).most_common()]
        else:
            period = next(size for size in range(1, len(names) + 1) if names == _repeat(names[:size], len(names)))
            lines = list(names[:period])
            if period < len(names):
                times = f"×{len(names) // period}"
                lines = [f"{lines[0]} {times}"] if period == 1 else [*lines, times]
        return lines if len(lines) <= LINES else [*lines[: LINES - 1], f"… {len(lines) - LINES + 1} more"]


@dataclass(frozen=True)
class FoldedGraph:
    """A graph of boxes.

    Attributes:
        path: the ONNX file.
        boxes: in topological order.
        edges: pairs of indices into `boxes`, from producer to consumer.
        nodes: nodes in the boxes.
        hidden: nodes that compute with constants only, such as the dequantization of weights; they are in no box.
        strips: whether boxes stand for stretches of the graph instead of chains.
    """

    path: Path
    boxes: tuple[Box, ...]
    edges: tuple[tuple[int, int], ...]
    nodes: int
    hidden: int
    strips: bool


def folded_graph(path: str | os.PathLike[str], *, limit: int = 150) -> FoldedGraph:
    """Fold a graph: nodes in a chain share a box; with more than `limit` boxes, stretches of equal depth share one.

    Args:
        path: the ONNX file.
        limit: the largest number of boxes with one chain each.

    Raises:
        DeploymentError: the file is missing or not readable as ONNX.
        UsageError: a limit below 1, or no node depends on an input.
    """
    if limit < 1:
        raise UsageError(f"limit is {limit}: use 1 or more.")
    graph = read_graph(path).graph
    makers: dict[str, int] = {}
    alive = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    names: list[str] = []
    before: list[set[int]] = []
    for node in graph.node:
        if not alive & set(node.input):
            continue
        alive |= set(node.output)
        before.append({makers[name] for name in node.input if name in makers})
        makers |= dict.fromkeys(node.output, len(names))
        names.append(node.op_type)
    if not names:
        raise UsageError(f"No node of {path} depends on an input: there is nothing to draw.")
    chains, parents = _chains(before)
    columns = _depths(parents)
    strips = len(chains) > limit
    if strips:
        width = math.ceil((max(columns) + 1) / STRIPS)
        groups: dict[int, list[int]] = {}
        for chain, column in zip(chains, columns, strict=True):
            groups.setdefault(column // width, []).extend(chain)
        chains = [sorted(groups[number]) for number in sorted(groups)]
        parents = [{number - 1} if number else set() for number in range(len(chains))]
        columns = list(range(len(chains)))
    lanes = _lanes(columns, parents)
    boxes = [
        Box(tuple(names[index] for index in chain), column, lane, strips)
        for chain, column, lane in zip(chains, columns, lanes, strict=True)
    ]
    edges = [(parent, child) for child, known in enumerate(parents) for parent in sorted(known)]
    return FoldedGraph(Path(path), tuple(boxes), tuple(edges), len(names), len(graph.node) - len(names), strips)


def _paired(operators: Sequence[str]) -> tuple[str, ...]:
    """Write a QuantizeLinear and the DequantizeLinear after it as one."""
    names: list[str] = []
    for operator in operators:
        if operator == "DequantizeLinear" and names and names[-1] == "QuantizeLinear":
            names[-1] = "Q + DQ"
        else:
            names.append(operator)
    return tuple(names)


def _repeat(pattern: Sequence[str], length: int) -> tuple[str, ...]:
    """Return the pattern as often as it fits into the length."""
    return tuple(pattern) * (length // len(pattern))


def _chains(before: Sequence[set[int]]) -> tuple[list[list[int]], list[set[int]]]:
    """Return the chains of nodes, and for each the chains before it.

    A node joins its predecessor's chain when it has no other and is the only one after it.
    """
    users = Counter(parent for parents in before for parent in parents)
    chains: list[list[int]] = []
    home: list[int] = []
    for index, parents in enumerate(before):
        (parent,) = parents if len(parents) == 1 else (None,)
        if parent is not None and users[parent] == 1:
            home.append(home[parent])
            chains[home[index]].append(index)
        else:
            home.append(len(chains))
            chains.append([index])
    return chains, [{home[parent] for parent in before[chain[0]]} for chain in chains]


def _depths(parents: Sequence[set[int]]) -> list[int]:
    """Return the length of the longest way to each box; parents come before their children."""
    depths: list[int] = []
    for known in parents:
        depths.append(1 + max((depths[parent] for parent in known), default=-1))
    return depths


def _lanes(columns: Sequence[int], parents: Sequence[set[int]]) -> list[int]:
    """Return each box's place in its column, close to the boxes before it."""
    lanes = [0] * len(columns)
    for column in range(max(columns) + 1):
        members = [index for index, own in enumerate(columns) if own == column]
        wish = {index: sum(lanes[parent] for parent in parents[index]) / max(len(parents[index]), 1) for index in members}
        for lane, index in enumerate(sorted(members, key=lambda index: (wish[index], index))):
            lanes[index] = lane
    return lanes
