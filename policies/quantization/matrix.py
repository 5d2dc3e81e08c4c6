"""A matrix of bits by methods, and that of the study (arXiv 2504.04823)."""

from typing import Any

from policies.quantization.grids import FLOAT_BITS, Bits
from policies.quantization.methods import QuantizationMethod
from support.errors import ConfigError

#: the paper's matrix
METHODS = [
    QuantizationMethod("AWQ", ["W3-A16-KV16", "W4-A16-KV16"], scaling="awq", clip_search=True),
    QuantizationMethod("GPTQ", ["W3-A16-KV16", "W4-A16-KV16"], rounding="gptq", clip_search=True),
    QuantizationMethod("KVQuant", ["W16-A16-KV3", "W16-A16-KV4"], keys="channel"),
    QuantizationMethod("QuaRot-KV", ["W16-A16-KV3", "W16-A16-KV4"], rotation=True, cache_clip=0.95),
    QuantizationMethod("SmoothQuant", ["W8-A8-KV8"], scaling="smoothquant", group=None, symmetric=True),
    QuantizationMethod(
        "QuaRot",
        ["W4-A4-KV4", "W8-A8-KV8"],
        rounding="gptq",
        rotation=True,
        group=None,
        symmetric=True,
        clip_search=True,
        activation_clip=0.9,
        cache_clip=0.95,
    ),
]


def cells(bits: list[Bits], methods: list[QuantizationMethod]) -> list[tuple[Bits, QuantizationMethod]]:
    """The matrix without repetitions and without the float model.

    Raises:
        ConfigError: bits that cannot be read, two methods of one name, or an empty matrix.
    """
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise ConfigError(f"two methods share a name among {names}; give each a name of its own (methods.name).")
    results: list[tuple[Bits, QuantizationMethod]] = []
    seen: set[Any] = set()
    for method in methods:
        for bit_widths in bits if method.bits is None else map(Bits.parse, method.bits):
            key = method.acting(bit_widths)
            if key not in seen and min(bit_widths) < FLOAT_BITS:
                seen.add(key)
                results.append((bit_widths, method))
    if not results:
        raise ConfigError(
            "the matrix is empty: model.bits has nothing below 16 bits, and no method has bits of its own; add rows "
            "such as W4-A16-KV16."
        )
    return results
