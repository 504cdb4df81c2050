"""The products of a CUDA device, a ladder from naive to Triton. Start from ladder.py."""

from quantlib.names import offered

__getattr__, __dir__, __all__ = offered(__name__, {"ladder": "KERNELS INT8_KERNELS"})
