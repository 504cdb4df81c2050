"""The ways in which the tests build the C++: for this CPU, and as older and other ones would."""

import pytest

from quantlib.kernels.cpu import compiled
from quantlib.measure.machine import _cpu

PATHS = {"this CPU": compiled.FLAGS, "any CPU": (*compiled.FLAGS, "-DQUANTLIB_PORTABLE")}
if "avx512f" in _cpu()[1]:
    PATHS["without AVX-512"] = (*compiled.FLAGS, "-mno-avx512f")
needs_compiler = pytest.mark.skipif(
    compiled._compiler() is None, reason="no C++ compiler: neither $CXX, g++ nor clang++"
)
