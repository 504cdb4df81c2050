import pytest
import torch

from quantlib.measure.graphs import graphed


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it works: tests/kernels/test_cuda.py")
def test_without_a_gpu_it_says_so():
    with pytest.raises(RuntimeError, match="needs a CUDA device, and PyTorch finds none: time the call itself"):
        graphed(lambda: None)
