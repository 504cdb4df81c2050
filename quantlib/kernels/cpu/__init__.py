"""The products of a CPU, a ladder from naive to this package's own C++. Start from ladder.py."""

from quantlib.names import offered

__getattr__, __dir__, __all__ = offered(__name__, {"ladder": "KERNELS INT8_KERNELS INT8_LAYOUTS"})
