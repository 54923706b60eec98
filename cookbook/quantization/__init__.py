"""Integers for weights and activations: quantization after training and in training, for int8 kernels that run."""

from cookbook.quantization.adaround import LayerRounding, adaround
from cookbook.quantization.affine import Affine, best_range, entropy_range
from cookbook.quantization.capture import capture
from cookbook.quantization.equalization import correct_bias, equalize
from cookbook.quantization.graphs import QuantizableGraph, layer_names
from cookbook.quantization.layers import fold_batchnorm
from cookbook.quantization.lsq import LearnedStepQuantize, learned_step
from cookbook.quantization.observers import Method
from cookbook.quantization.packing import load_packed, pack, save_packed, unpack
from cookbook.quantization.prepare import convert, freeze_batch_norm, prepare, set_observers
from cookbook.quantization.ptq import calibrate, quantize, quantize_on
from cookbook.quantization.qat import quantize_aware_training
from cookbook.quantization.quantizer import OnnxRuntimeQuantizer
from cookbook.quantization.report import Quantized, Report, quantized, saturates
from cookbook.quantization.rounding import round_to_nearest, weight_scale
from cookbook.quantization.scheme import Scheme
from cookbook.quantization.sensitivity import LayerSensitivity, SensitivityReport, sensitivity

__all__ = [
    "Affine",
    "LayerRounding",
    "LayerSensitivity",
    "LearnedStepQuantize",
    "Method",
    "OnnxRuntimeQuantizer",
    "QuantizableGraph",
    "Quantized",
    "Report",
    "Scheme",
    "SensitivityReport",
    "adaround",
    "best_range",
    "calibrate",
    "capture",
    "convert",
    "correct_bias",
    "entropy_range",
    "equalize",
    "fold_batchnorm",
    "freeze_batch_norm",
    "layer_names",
    "learned_step",
    "load_packed",
    "pack",
    "prepare",
    "quantize",
    "quantize_aware_training",
    "quantize_on",
    "quantized",
    "round_to_nearest",
    "saturates",
    "save_packed",
    "sensitivity",
    "set_observers",
    "unpack",
    "weight_scale",
]
