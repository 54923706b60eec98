"""Serving: requests gathered into batches behind a bounded queue, and the load that measures it (lesson 07)."""

from cookbook.serving.batcher import MicroBatcher, QueueFullError, ServerStoppedError
from cookbook.serving.load import serve_arrivals, serve_load, throughput_by_batch
from cookbook.serving.result import ServingResult, serving_table

__all__ = [
    "MicroBatcher",
    "QueueFullError",
    "ServerStoppedError",
    "ServingResult",
    "serve_arrivals",
    "serve_load",
    "serving_table",
    "throughput_by_batch",
]
