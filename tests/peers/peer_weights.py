"""What the tests of peers compare: logits, and the weights that layers multiply by."""

import torch
from checkpoint_cases import layers


def apart(got, expected):
    """Relative distance of two models' logits, in float32."""
    return ((got.float() - expected.float()).norm() / expected.float().norm()).item()


def logits(model, tokens):
    """[batch, tokens, vocabulary], without gradients."""
    with torch.no_grad():
        return model(tokens).logits


def weights(model, dtype=torch.float32):
    """Name -> dequantized weight [out, in] of each layer that we quantized or loaded."""
    return {name: layer.quantized().dequantize().to(dtype) for name, layer in layers(model).items()}
