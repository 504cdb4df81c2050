"""quantlib: what the quantization lessons import. Start from `quantize` and `Grid`.

Ten rooms, and imports point down only: numerics; methods and kernels; layers; models, measure and zoo; records and
book; commands. Names are loaded on first use, so that importing the package costs nothing and needs neither
transformers nor matplotlib. The distribution is called quantization-lessons: "quantlib" on the package index is a
finance library.
"""

from quantlib.names import offered

__getattr__, __dir__, __all__ = offered(
    __name__,
    {
        "numerics.grid": "Grid",
        "numerics.quantize": "QuantizedTensor quantize mse_clip",
        "numerics.packing": "pack unpack",
        "methods.llm_int8": "outlier_features",
        "methods.smoothquant": "smooth_scale",
        "methods.statistics": "InputStats",
        "methods.gptq": "gptq_quantize output_error",
        "methods.awq": "awq_scale awq_clip",
        "kernels.product": "linear explain",
        "layers.weight_only": "Int8Linear Int4Linear",
        "layers.mixed": "MixedInt8Linear",
        "models.convert": "quantize_model RTN LLMInt8 GPTQ",
        "models.awq": "AWQ",
        "models.calibration": "collect_stats",
        "models.localise": "find_faulty_layer",
        "models.checkpoints.saving": "save_quantized",
        "models.checkpoints.loading": "load_quantized",
        "models.decoder": "Decoder",
        "models.compiled_decoder": "CompiledDecoder fastest_decoder generate_text",
        "models.windows": "token_windows",
        "models.sizes": "footprint model_shape REAL_MODELS",
        "measure.evaluate": "perplexity compare paired_bootstrap",
        "zoo.zoo": "load_lesson_model load_model load_text",
        "book.widgets": "explore",
    },
)
