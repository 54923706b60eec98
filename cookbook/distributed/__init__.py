"""Several processes that train one model: launched, supervised, proven equal to one."""

from cookbook.distributed.context import Context, joined, launched
from cookbook.distributed.equivalence import averaged, overlap, relative_difference, sampled
from cookbook.distributed.hosts import cluster_template, hosts_unavailable, two_hosts
from cookbook.distributed.launch import launch
from cookbook.distributed.scaling import Link, ScalingModel, fitted_link, gradient_bytes, ring_all_reduce_seconds
from cookbook.distributed.sharded import shard
from cookbook.distributed.sharded_checkpoint import load_sharded, save_sharded

__all__ = [
    "Context",
    "Link",
    "ScalingModel",
    "averaged",
    "cluster_template",
    "fitted_link",
    "gradient_bytes",
    "hosts_unavailable",
    "joined",
    "launch",
    "launched",
    "load_sharded",
    "overlap",
    "relative_difference",
    "ring_all_reduce_seconds",
    "sampled",
    "save_sharded",
    "shard",
    "two_hosts",
]
