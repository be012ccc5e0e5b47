"""What heads cost: counted while each of them works on one chip, whatever it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bharateo.config import HeadConfig, ModelConfig
from bharateo.landcover import NUM_CLASSES
from bharateo.models.heads import Batch, Head, build_heads
from bharateo.models.mae import build_model
from bharateo.models.patches import Mask, num_masked


class HeadCost(NamedTuple):
    """FLOPs of a head's matrix products for one chip, forward and with the backward pass, and
    the lengths of its parameters.
    """

    forward: int
    training: int
    parameters: tuple[int, ...]


class _Products(TorchDispatchMode):
    """Adds up the FLOPs of matrix products while it is entered, by PyTorch's own formulas.

    ``FlopCounterMode`` does the same and loads the compiler for it, which takes seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def head_costs(
    config: ModelConfig, num_bands: int, heads: Mapping[str, HeadConfig]
) -> tuple[HeadCost, ...]:
    """The costs of configured heads on a model for chips of so many bands, in their order.

    The model they are tried on has one block at most: heads see its widths and its tokens alone.

    Raises:
        ConfigError: a head or one of its options does not exist.
    """
    shallow = replace(config, depth=1, decoder_depth=min(config.decoder_depth, 1))
    with torch.random.fork_rng(devices=()), torch.enable_grad():
        model = build_model(shallow, [0.5] * num_bands, [0.25] * num_bands)
        built = build_heads(heads, model)
        num_tokens, px = model.num_tokens, config.chip_px
        counts = torch.zeros(1, num_tokens, NUM_CLASSES, dtype=torch.int64)
        counts[..., 0] = config.patch_px**2
        valid = torch.ones(1, px, px, dtype=torch.bool)
        batch = Batch(torch.rand(1, num_bands, px, px), valid, counts, torch.zeros(1).long())
        visible = num_tokens - num_masked(num_tokens, config.mask_ratio)
        tokens = model(batch.image, valid, Mask(torch.arange(num_tokens)[None], visible))
        costs = []
        for head in built.values():
            with _Products() as products:
                decoded = replace(tokens, values=tokens.values.detach().requires_grad_())
                sums = cast(Head, head)(decoded, batch, model)
                forward = products.flops
                sums[cast(Head, head).loss_metric][0].backward()
            parameters = tuple(each.numel() for each in head.parameters())
            costs.append(HeadCost(forward, products.flops, parameters))
        return tuple(costs)
