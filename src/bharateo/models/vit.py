"""The vision transformer both models are made of: pre-norm blocks and 2-D sine positions.

Sources: Dosovitskiy et al. 2021 (ViT), He et al. 2022 (MAE, appendix A.1).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bharateo.errors import ConfigError


class Attention(nn.Module):
    """Multi-head self-attention by ``scaled_dot_product_attention``."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ConfigError(f"width {width} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Tokens mixed by attention."""
        batch, tokens, width = x.shape
        heads = (batch, tokens, self.num_heads, width // self.num_heads)
        query, key, value = (
            part.view(heads).transpose(1, 2) for part in self.qkv(x).split(width, 2)
        )
        mixed = attend(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))


def attend(
    query: Float[Tensor, "batch head token dim"],
    key: Float[Tensor, "batch head token dim"],
    value: Float[Tensor, "batch head token dim"],
) -> Float[Tensor, "batch head token dim"]:
    """softmax(query key^T / sqrt(dim)) value.

    PyTorch's fused CPU kernel is about five times slower in bf16 than two matrix products at the
    few tokens of a chip (benchmarks/train_step.py), so it is used everywhere else.
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        return scores.softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value)


class TransformerBlock(nn.Module):
    """Pre-norm transformer block: attention, then a GELU MLP, each added to its input."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width)
        )

    def forward(self, x: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Tokens after both sub-layers."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def blocks(depth: int, width: int, num_heads: int, mlp_ratio: int) -> nn.Sequential:
    """``depth`` transformer blocks in a row."""
    return nn.Sequential(*(TransformerBlock(width, num_heads, mlp_ratio) for _ in range(depth)))


def start_as_torch(encoder: nn.Sequential) -> None:
    """Start blocks as ``nn.TransformerEncoder`` starts its layers: the first as one
    ``nn.TransformerEncoderLayer``, the others as copies of it.

    The three projections of attention are Xavier-uniform as one matrix, its biases are zero, and
    all else is as ``nn.Linear`` starts. Source: PyTorch's ``MultiheadAttention._reset_parameters``.
    """
    blocks: list[Any] = list(encoder)
    for first in blocks[:1]:
        nn.init.xavier_uniform_(first.attention.qkv.weight)
        nn.init.zeros_(first.attention.qkv.bias)
        nn.init.zeros_(first.attention.out.bias)
    for other in blocks[1:]:
        other.load_state_dict(blocks[0].state_dict())


def sincos_positions(rows: int, cols: int, width: int) -> Float[Tensor, "token dim"]:
    """Fixed 2-D sine-cosine positions: half of the width for the row, half for the column.

    Source: He et al. 2022 after Vaswani et al. 2017, frequencies 10000^(-i / (width / 4)).
    """
    if width % 4:
        raise ConfigError(f"2-D sine positions need a width that is a multiple of 4, got {width}")
    quarter = width // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)

    def encode(position: Tensor) -> Tensor:
        angle = position.double()[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], 1)

    row, col = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    return torch.cat([encode(row.flatten()), encode(col.flatten())], 1).float()


def init_transformer(module: nn.Module) -> None:
    """Xavier-uniform linear weights and zero biases, as in He et al. 2022."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
