"""Search under a hardware constraint: networks by accuracy and measured latency, with weights that they share."""

from cookbook.search.evaluation import SharedWeights
from cookbook.search.latency import RelativeLatency
from cookbook.search.result import SearchResult, SearchTrial
from cookbook.search.samplers import SamplerName
from cookbook.search.scores import REFERENCE, Score, front, hypervolume, hypervolumes
from cookbook.search.space import Candidate, SearchSpace, staged_config
from cookbook.search.storage import Storage, open_storage
from cookbook.search.study import Evaluate, search
from cookbook.search.supernet import SuperNet
from cookbook.search.training import Sandwich, train_supernet

__all__ = [
    "REFERENCE",
    "Candidate",
    "Evaluate",
    "RelativeLatency",
    "SamplerName",
    "Sandwich",
    "Score",
    "SearchResult",
    "SearchSpace",
    "SearchTrial",
    "SharedWeights",
    "Storage",
    "SuperNet",
    "front",
    "hypervolume",
    "hypervolumes",
    "open_storage",
    "search",
    "staged_config",
    "train_supernet",
]
