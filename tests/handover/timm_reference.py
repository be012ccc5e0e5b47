"""The forward pass of timm's VisionTransformer, written out (timm 1.0.31, vision_transformer.py).

Names and shapes of the parameters are timm's, for ``class_token=False, num_classes=0,
global_pool=""``: PatchEmbed, Attention (qkv reshaped to (batch, token, 3, head, dim)), Mlp, Block.
"""

import torch
from torch import nn
from torch.nn import functional as F


class PatchEmbed(nn.Module):
    def __init__(self, patch_size, in_chans, embed_dim):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        batch, num, dim = x.shape
        qkv = self.qkv(x).reshape(batch, num, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q * self.head_dim**-0.5 @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(batch, num, dim))


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim, num_heads, mlp_ratio, norm_layer):
        super().__init__()
        self.norm1, self.norm2 = norm_layer(dim), norm_layer(dim)
        self.attn, self.mlp = Attention(dim, num_heads), Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(
        self, img_size, patch_size, in_chans, num_classes, global_pool, embed_dim, depth,
        num_heads, mlp_ratio, class_token, pre_norm, final_norm, norm_layer,
    ):  # fmt: skip
        super().__init__()
        assert (num_classes, global_pool, class_token, pre_norm) == (0, "", False, False)
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.pos_embed = nn.Parameter(torch.empty(1, (img_size // patch_size) ** 2, embed_dim))
        self.blocks = nn.Sequential(
            *(Block(embed_dim, num_heads, mlp_ratio, norm_layer) for _ in range(depth))
        )
        self.norm = norm_layer(embed_dim) if final_norm else nn.Identity()

    def forward(self, x):
        return self.norm(self.blocks(self.patch_embed(x) + self.pos_embed))
