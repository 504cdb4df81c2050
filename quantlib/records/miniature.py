"""A model so small that all rows take seconds, and so made that it notices. Start from :func:`miniature`.

Noticed are changes of arithmetic that a random model would hide. Every matrix has heavy tails, a group of zeros, a
group too small for float16, and weights that lie exactly between two codes of one of the lessons' grids, so that a tie
rounded the other way shows. The inputs of the first layer are exact, and reach the lessons' thresholds exactly. One
token is a sink. Numbers are drawn as integers and computed in float64, down to the norms and rotations, so that CPUs
agree to twelve digits and a code flips on none of them.

Changing this file makes every record stale: what a miniature gave is compared with what it gives.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from quantlib.zoo.zoo import LoadedModel

HIDDEN, INNER, VOCABULARY = 192, 384, 256  # divided by every group of the lessons: 32, 64, 96
OUTLIERS = (64.0, 16.0, 48.0, 24.0, 12.0, 6.0, 3.0, 1.0)  # of the first layer's input: the sink's two, and thresholds
SINK = ord("=")  # the second letter of WikiText's test set that is not a space
# (highest, lowest, step): what a group reaches on a grid, in steps. 8, 6, 4, 3 bits; the full range of 4; 4 asymmetric
REACHES = (
    (127, -127, 2**-8), (31, -31, 2**-6), (7, -7, 2**-4), (3, -3, 2**-3), (7.5, -7.5, 2**-4), (7, -8, 2**-4)
)  # fmt: skip


@functools.cache
def miniature() -> LoadedModel:
    """A Llama of two layers in float64, and a tokenizer whose words are bytes. It is shared: copy it to change it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double().eval().requires_grad_(False)
    model.model.rotary_emb = Rotation(HIDDEN // 4)
    generator = torch.Generator().manual_seed(0)
    linears = [layer for layer in model.model.layers.modules() if isinstance(layer, nn.Linear)]
    for number, layer in enumerate(linears):
        layer.weight.copy_(_weight(*layer.weight.shape, *REACHES[number % len(REACHES)], generator))
    for block in model.model.layers:
        block.input_layernorm, block.post_attention_layernorm = (_norm(generator, 16.0) for _ in range(2))
    model.model.norm = _norm(generator, 1.0)
    model.model.layers[0].input_layernorm.weight[: len(OUTLIERS)] = torch.tensor(OUTLIERS)
    embedding = 2.0 * torch.randint(2, (VOCABULARY, HIDDEN), generator=generator) - 1  # the mean square is 1, exactly
    embedding[SINK] = torch.randint(-99, 100, (HIDDEN,), generator=generator) / 2**16
    embedding[SINK, :2] = torch.tensor([64.0, 48.0])  # one massive activation, and one that almost is
    model.model.embed_tokens.weight.copy_(embedding)
    model.lm_head.weight.copy_(torch.randint(-64, 65, (VOCABULARY, HIDDEN), generator=generator) / 128)
    return LoadedModel(model, Bytes(), "miniature", "0" * 64)


class Rotation(nn.Module):
    """Rotary positions in the dtype of x; transformers' own are float32."""

    def __init__(self, size: int):
        super().__init__()
        self.frequencies = 100.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)  # [size / 2]

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = (position_ids[..., None] * self.frequencies).repeat(1, 1, 2).to(x.dtype)  # [batch, tokens, size]
        return angles.cos(), angles.sin()


class Bytes:
    """A tokenizer whose words are bytes."""

    all_special_ids = ()

    def encode(self, text: str, **options: object) -> list[int]:
        return list(text.encode())

    def __call__(self, text: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=self.encode(text))


def _norm(generator: torch.Generator, outlier: float) -> nn.RMSNorm:
    norm = nn.RMSNorm(HIDDEN, eps=0.0, dtype=torch.float64).requires_grad_(False)
    norm.weight.copy_(torch.randint(64, 256, (HIDDEN,), generator=generator) / 256)
    norm.weight[7] *= outlier
    return norm


def _weight(rows: int, columns: int, high: float, low: float, step: float, generator: torch.Generator) -> Tensor:
    """float64 [rows, columns]: heavy tails; every 32 columns reach from low to high in steps of a power of two."""
    shape = rows, columns // 32, 32

    def draw(start: int, end: int, size: tuple[int, ...] = shape) -> Tensor:
        return torch.randint(start, end, size, generator=generator).double()

    w = (draw(-255, 256) / 256) ** 3 * high  # in steps
    ties = (draw(-8, 8).clamp(low, high - 1) + 0.5).clamp(low, high)
    w = torch.where(draw(0, 8) == 0, ties, w)
    w[..., 5] = high
    w[..., 11] = torch.where(draw(0, 2, shape[:2]) == 0, low, w[..., 11])  # else the zero point is a rounded one
    w *= step / 2 ** draw(0, 3, (*shape[:2], 1))
    w[0, 0], w[1], w[2, 0] = 0.0, 0.0, w[2, 0] * 2**-40
    return w.flatten(1)
