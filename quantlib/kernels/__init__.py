"""Products with quantized matrices, by the fastest kernel that is right on this machine. Start from product.py."""

from quantlib.names import offered

__getattr__, __dir__, __all__ = offered(
    __name__,
    {
        "product": "WEIGHT explain fields from_fields int8_matmul kernels_of linear pack_for_integers",
        "choose": "forget usable",
        "packed": "PackedWeight pack_checked pack_weight unpack_weight",
    },
)
