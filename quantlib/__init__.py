"""quantlib: what the quantization lessons import. Start from `quantize` and `Grid`.

Names are loaded on first use, so that importing the package costs nothing and needs neither transformers nor
matplotlib. The distribution is called quantization-lessons: "quantlib" on the package index is a finance library.
"""

from importlib import import_module

_HOME = {
    "Grid": "grid",
    "QuantizedTensor": "grid",
    "quantize": "grid",
    "mse_clip": "grid",
    "pack": "packing",
    "unpack": "packing",
    "linear": "kernels",
    "explain": "kernels",
    "Int8Linear": "layers",
    "Int4Linear": "layers",
    "MixedInt8Linear": "mixed",
    "outlier_features": "outliers",
    "smooth_scale": "smooth",
    "quantize_model": "convert",
    "RTN": "convert",
    "LLMInt8": "convert",
    "GPTQ": "convert",
    "InputStats": "methods.statistics",
    "gptq_quantize": "methods.gptq",
    "output_error": "methods.gptq",
    "token_windows": "models.calibration",
    "collect_stats": "models.calibration",
    "load_lesson_model": "zoo",
    "load_model": "zoo",
    "load_text": "zoo",
    "perplexity": "evaluate",
    "compare": "evaluate",
    "paired_bootstrap": "evaluate",
    "footprint": "sizes",
    "model_shape": "sizes",
    "REAL_MODELS": "sizes",
    "explore": "widgets",
}
__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'quantlib' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(import_module(f"quantlib.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
