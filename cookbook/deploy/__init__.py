"""Export to ONNX, simplify, run, and prove that the file computes the same and with which kernels."""

from cookbook.deploy.executorch_format import ExecutorchRuntime, export_executorch
from cookbook.deploy.export import export
from cookbook.deploy.graph import GraphSummary, graph_summary
from cookbook.deploy.islands import Island
from cookbook.deploy.kernels import Coverage, KernelReport, kernels, optimized_graph
from cookbook.deploy.legacy import export_legacy
from cookbook.deploy.openvino_format import OpenVinoRuntime, export_openvino
from cookbook.deploy.parity import Parity, ParityReport, parity, parity_suite
from cookbook.deploy.profiling import OperatorTime, Profile, profile
from cookbook.deploy.runtime import Runtime
from cookbook.deploy.simplify import Simplification, simplify
from cookbook.deploy.torchscript import load_torchscript, trace_torchscript

__all__ = [
    "Coverage",
    "ExecutorchRuntime",
    "GraphSummary",
    "Island",
    "KernelReport",
    "OpenVinoRuntime",
    "OperatorTime",
    "Parity",
    "ParityReport",
    "Profile",
    "Runtime",
    "Simplification",
    "export",
    "export_executorch",
    "export_legacy",
    "export_openvino",
    "graph_summary",
    "kernels",
    "load_torchscript",
    "optimized_graph",
    "parity",
    "parity_suite",
    "profile",
    "simplify",
    "trace_torchscript",
]
