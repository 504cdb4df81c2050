"""A Llama that writes: the whole model in one file, its layers quantized or not. Start from :class:`Decoder`.

What transformers' generate does between two products is Python for every model there is. This is one model: RMSNorm,
rotary positions, grouped queries, SwiGLU. Keys and values have their place before the first token comes, tables of
angles are made once, queries, keys and values are one product, and so are gate and up: codes laid below each other,
each with the scale it had.

It reads Llama, Mistral and Qwen2 as transformers has them. :class:`~quantlib.models.compiled_decoder.CompiledDecoder`
takes a step in C++.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlib.layers.weight_only import Int4Linear, Int8Linear, QuantizedLinear
from quantlib.models.convert import RTN
from quantlib.numerics.grid import Grid
from quantlib.numerics.quantize import QuantizedTensor

FAMILIES = ("llama", "mistral", "qwen2")
FIXED_ANGLES = ("default", "linear", "llama3", "yarn")  # others follow the length of the text


@dataclass(frozen=True, eq=False)
class Block:
    """One of the model's blocks. keys and values [batch, kv_heads, context, head_dim] are the cache."""

    attention_norm: Tensor  # [hidden]
    qkv: nn.Module  # hidden -> (heads + 2 kv_heads) · head_dim
    out: nn.Module  # heads · head_dim -> hidden
    mlp_norm: Tensor  # [hidden]
    gate_up: nn.Module  # hidden -> 2 · intermediate
    down: nn.Module  # intermediate -> hidden
    keys: Tensor
    values: Tensor


class Decoder:
    """Token ids in, logits of the next token out, for `batch` texts at a time.

    >>> decoder = Decoder(model, context=256)                    # doctest: +SKIP
    >>> decoder.generate([504, 2470], 20)                        # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        context: int,
        *,
        batch: int = 1,
        head: Grid | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Of a model of transformers, which stays as it is; layers that need no joining are shared with it.

        context  the most tokens a text may have, prompt and answer together: so much cache is allocated now
        head     rounds the last product's weight, which is not exact; None leaves it as it is
        dtype    of activations and cache; by default the model's

        Raises ValueError for a family it does not know, a context beyond the model's or its sliding window.
        """
        config = model.config
        _check(config, context, batch)
        body, weight = model.model, model.get_input_embeddings().weight
        self.dtype, self.device = dtype or weight.dtype, weight.device
        self.context, self.batch = context, batch
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.epsilon, self.embedding = config.rms_norm_eps, weight.detach()  # [vocabulary, hidden]
        with torch.no_grad():
            angles = body.rotary_emb(weight.new_empty(1, dtype=torch.float32), torch.arange(context, device=self.device)[None])
            self.cos, sin = (t[0].float() for t in angles)  # [context, head_dim]
            half = self.head_dim // 2
            self.sin = torch.cat((-sin[:, :half], sin[:, half:]), 1)  # as the halves of x are swapped, not negated
            self.blocks = [self._block(layer) for layer in body.layers]
            self.norm, self.head = self._floats(body.norm.weight), self._joined([model.lm_head])
            if head is not None:
                self.head = _rounded(model.lm_head, head)
        self.lengths = [0] * batch  # tokens in the cache
        self._make_ready()

    def read(self, tokens: Sequence[int] | Tensor, row: int = 0) -> Tensor:
        """Logits [vocabulary] of what comes after these tokens, which are added to a row's text in one call."""
        tokens = torch.as_tensor(tokens, device=self.device).view(1, -1)  # [1, tokens]
        start = self._room(row, tokens.shape[1])
        place = slice(start, start + tokens.shape[1])
        at = torch.arange(place.start, place.stop, device=self.device)[None]  # [1, tokens]
        with torch.no_grad():
            x = self._hidden(tokens, at, slice(row, row + 1), place.stop, place)[:, -1]  # [1, hidden]
            self.lengths[row] = place.stop
            return self._logits(x)[0]

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [batch, vocabulary] after one more token in each row: tokens int64 [batch]."""
        starts = [self._room(row, 1) for row in range(self.batch)]
        logits = self._step(tokens, starts)
        self.lengths = [start + 1 for start in starts]
        return logits

    def generate(self, prompt: Sequence[int] | Sequence[Sequence[int]], count: int) -> Tensor:
        """The `count` likeliest next tokens, one after another: int64 [count], of several prompts [batch, count].

        Starts anew: what was read before is forgotten. ValueError for an empty prompt, one more or fewer than batch,
        and for more tokens than the context has.
        """
        prompts, alone = [torch.as_tensor(prompt).tolist()] if _flat(prompt) else list(prompt), _flat(prompt)
        if len(prompts) != self.batch or not all(map(len, prompts)) or count < 1:
            raise ValueError(
                f"prompt must be {self.batch} texts of at least a token and count at least 1, got "
                f"{len(prompts)} of {[len(p) for p in prompts]} tokens and count={count}"
            )
        if max(map(len, prompts)) + count - 1 > self.context:
            raise ValueError(f"{max(map(len, prompts))} + {count} tokens need a longer cache than context={self.context}")
        self.lengths = [0] * self.batch
        token = torch.stack([self.read(tokens, row) for row, tokens in enumerate(prompts)]).argmax(-1)  # [batch]
        written = [token]
        for _ in range(count - 1):
            token = self.step(token).argmax(-1)
            written.append(token)
        text = torch.stack(written, 1)  # [batch, count]
        return text[0] if alone else text

    @property
    def cache_bytes(self) -> int:
        """2 · layers · batch · context · kv_heads · head_dim numbers."""
        return sum(block.keys.nbytes + block.values.nbytes for block in self.blocks)

    # --- one pass

    def _make_ready(self) -> None:
        """What another way to take a step needs beforehand."""

    def _step(self, tokens: Tensor, starts: list[int]) -> Tensor:
        at = torch.tensor(starts, device=self.device)[:, None]  # [batch, 1]
        length = max(starts) + 1
        place = slice(length - 1, length) if self.batch == 1 else None
        with torch.no_grad():
            return self._logits(self._hidden(tokens.view(-1, 1), at, slice(None), length, place)[:, 0])

    def _hidden(self, tokens: Tensor, at: Tensor, rows: slice, length: int, place: slice | None) -> Tensor:
        """tokens and their places in the text, both [rows, tokens] -> [rows, tokens, hidden]

        length  how much of the cache is read;  place  what of it these tokens fill, None where each row has its own
        """
        x = self.embedding[tokens].to(self.dtype)
        cos, sin = (table[at].to(self.dtype).unsqueeze(1) for table in (self.cos, self.sin))  # [rows, 1, tokens, head_dim]
        mask = None
        if at.numel() > 1 or place is None:  # what stands later is not read
            mask = torch.arange(length, device=at.device) <= at[:, None, :, None]  # [rows, 1, tokens, length]
        for block in self.blocks:
            x = x + self._attention(block, self._normalised(x, block.attention_norm), cos, sin, at, rows, length, place, mask)
            gate, up = block.gate_up(self._normalised(x, block.mlp_norm)).chunk(2, -1)  # [rows, tokens, intermediate]
            x = x + block.down(F.silu(gate) * up)
        return x

    def _attention(self, block, x, cos, sin, at, rows, length, place, mask) -> Tensor:
        count, tokens = at.shape
        turned = self.heads + self.kv_heads
        qkv = block.qkv(x).view(count, tokens, turned + self.kv_heads, self.head_dim).transpose(1, 2)
        qk, v = qkv[:, :turned], qkv[:, turned:]  # [rows, heads + kv_heads, tokens, head_dim], [rows, kv_heads, …]
        qk = torch.addcmul(qk * cos, qk.roll(self.head_dim // 2, -1), sin)
        for cache, new in ((block.keys, qk[:, self.heads :]), (block.values, v)):
            if place is not None:
                cache[rows, :, place] = new
            else:  # each row of the batch goes on at a place of its own
                cache[torch.arange(count, device=at.device), :, at[:, 0]] = new[:, :, 0]
        keys, values = block.keys[rows, :, :length], block.values[rows, :, :length]  # [rows, kv_heads, length, head_dim]
        # the queries that share keys are as good as so many tokens: [rows, kv_heads, heads / kv_heads · tokens, head_dim]
        q = qk[:, : self.heads].reshape(count, self.kv_heads, -1, self.head_dim)
        if mask is not None:
            mask = mask.repeat(1, 1, self.heads // self.kv_heads, 1)
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        y = y.view(count, self.heads, tokens, self.head_dim).transpose(1, 2)  # [rows, tokens, heads, head_dim]
        return block.out(y.reshape(count, tokens, -1))

    def _normalised(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.epsilon)

    def _logits(self, x: Tensor) -> Tensor:
        return self.head(self._normalised(x, self.norm)).float()

    def _room(self, row: int, tokens: int) -> int:
        start = self.lengths[row]
        if not tokens or start + tokens > self.context:
            raise ValueError(
                f"{tokens} tokens after {start} do not fit context={self.context}: make a Decoder with a longer one"
            )
        return start

    # --- what it is made of

    def _block(self, layer: nn.Module) -> Block:
        attention, mlp = layer.self_attn, layer.mlp
        shape = (self.batch, self.kv_heads, self.context, self.head_dim)
        return Block(
            self._floats(layer.input_layernorm.weight),
            self._joined([attention.q_proj, attention.k_proj, attention.v_proj]),
            self._joined([attention.o_proj]),
            self._floats(layer.post_attention_layernorm.weight),
            self._joined([mlp.gate_proj, mlp.up_proj]),
            self._joined([mlp.down_proj]),
            *(torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2)),
        )

    def _floats(self, t: Tensor) -> Tensor:
        return t.detach().to(self.dtype)

    def _joined(self, layers: list[nn.Module]) -> nn.Module:
        """Layers that read the same x as one; beside each other where their codes do not fit under one grid."""
        if all(type(layer) is nn.Linear for layer in layers):
            weight, bias = torch.cat([self._floats(layer.weight) for layer in layers]), _biases(layers)
            joined = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
            joined.weight = nn.Parameter(weight if len(layers) > 1 else self._floats(layers[0].weight), False)
            joined.bias = None if bias is None else nn.Parameter(self._floats(bias), False)
            return joined
        if len(layers) == 1:
            return layers[0]
        if all(type(layer) in (Int4Linear, Int8Linear) for layer in layers):
            q = _below([layer.quantized() for layer in layers])
            if q is not None:
                return type(layers[0]).from_quantized(q, _biases(layers))
        return _Beside(layers)


def _flat(prompt: Sequence) -> bool:
    return len(prompt) == 0 or not isinstance(prompt[0], list | tuple) and torch.as_tensor(prompt[0]).ndim == 0


class _Beside(nn.Module):
    """Layers one after another on the same x."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self.layers], -1)


def _below(parts: list[QuantizedTensor]) -> QuantizedTensor | None:
    """The rows of all, every code and scale as it was; None where grids, dtypes of scales or orders of columns differ."""
    first = parts[0]
    for q in parts:
        if q.grid != first.grid or q.scale.dtype != first.scale.dtype or (q.g_idx is None) != (first.g_idx is None):
            return None
        if q.g_idx is not None and not q.g_idx.equal(first.g_idx):
            return None

    def rows(name: str) -> Tensor:
        return torch.cat([getattr(q, name).expand(q.shape[0], -1) for q in parts])  # the matrix's becomes its rows'

    grid = replace(first.grid, group_size="row") if first.grid.group_size == "tensor" else first.grid
    zeros = None if first.zero_point is None else rows("zero_point")
    return QuantizedTensor(rows("codes"), rows("scale"), zeros, first.g_idx, grid)


def _biases(layers: list[nn.Module]) -> Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    none = (torch.zeros(layer.out_features, device=layer.weight.device) for layer in layers)
    return torch.cat([zeros if layer.bias is None else layer.bias.detach() for layer, zeros in zip(layers, none, strict=True)])


def _rounded(layer: nn.Module, grid: Grid) -> nn.Module:
    if isinstance(layer, QuantizedLinear):
        raise ValueError(f"head={grid} would round a head that is quantized already: leave it None")
    return RTN(grid).layer_for("lm_head", layer.weight.detach(), layer.bias)[0]


def _check(config: object, context: int, batch: int) -> None:
    family = getattr(config, "model_type", None)
    if family not in FAMILIES:
        raise ValueError(f"model must be one of {', '.join(FAMILIES)}, got {family!r}: use its own generate()")
    if config.hidden_act != "silu":
        raise ValueError(f"model must have SwiGLU (hidden_act='silu'), got {config.hidden_act!r}")
    if not isinstance(context, int) or not isinstance(batch, int) or context < 1 or batch < 1:
        raise ValueError(f"context and batch must be whole numbers of at least 1, got {context!r} and {batch!r}")
    if context > config.max_position_embeddings:
        raise ValueError(f"context={context} is more than the model's {config.max_position_embeddings} positions")
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if kind not in FIXED_ANGLES:
        raise ValueError(f"rope_type={kind!r} is not known here, only {', '.join(FIXED_ANGLES)}: use generate()")
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and context > window:
        raise ValueError(f"context={context} is more than the sliding window of {window}, within which all is read")
