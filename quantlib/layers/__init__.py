"""Linear layers whose weight is codes. Start from weight_only.py; mixed.py has integers on both sides."""

from quantlib.names import offered

__getattr__, __dir__, __all__ = offered(
    __name__,
    {
        "weight_only": "Int4Linear Int8Linear QuantizedLinear",
        "mixed": "MixedInt8Linear",
    },
)
