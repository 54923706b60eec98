"""Export to ONNX, run it, and prove that it computes the same."""

from cookbook.deploy.export import export
from cookbook.deploy.parity import Parity, parity
from cookbook.deploy.runtime import Runtime

__all__ = ["Parity", "Runtime", "export", "parity"]
