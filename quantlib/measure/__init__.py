"""How good and how fast: perplexity and agreement, benchmarks, what the machine could do. Start from evaluate.py and benchmark.py."""

from quantlib.names import offered

__getattr__, __dir__, __all__ = offered(
    __name__,
    {
        "evaluate": "compare paired_bootstrap perplexity",
        "benchmark": "measure",
        "measurements": "Benchmark best_float",
        "ceilings": "READ Ceilings",
        "decoding": "DecodeProfile TokenRates",
    },
)
