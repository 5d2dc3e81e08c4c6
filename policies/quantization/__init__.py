"""Quantised policies by fake quantisation: numbers are rounded to grids of few bits and computed with as floats."""

from policies.quantization.grids import Bits, Grid
from policies.quantization.layers import LayerReport, quantized, whole_model_bits
from policies.quantization.methods import QuantizationMethod
from policies.quantization.statistics import InputStatistics, input_statistics

__all__ = [
    "Bits",
    "InputStatistics",
    "LayerReport",
    "QuantizationMethod",
    "Grid",
    "input_statistics",
    "quantized",
    "whole_model_bits",
]
