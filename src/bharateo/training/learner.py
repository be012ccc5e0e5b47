"""Model, heads and optimisers on one rank, and the step they take together.

The loop takes it on what the loader brings, the forecast on generated numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bharateo.config import Config
from bharateo.models.heads import Batch, build_heads
from bharateo.models.mae import build_model
from bharateo.models.objective import Objective
from bharateo.models.patches import Mask, num_masked
from bharateo.sensor import Sensor
from bharateo.training.engine import Engine
from bharateo.training.optimisers import build_optimisers
from bharateo.training.prepare import RawBatch, prepare


@dataclass
class Launched:
    """A step on its way: its totals over all ranks and the gradient's norm, still on the device."""

    step: int
    lr: float
    totals: Tensor
    metrics: tuple[str, ...]
    grad_norm: Tensor


class Learner:
    """What learns, on one rank of an engine; ``mean`` and ``std`` are what the model normalises
    with, by band.
    """

    def __init__(
        self,
        config: Config,
        sensor: Sensor,
        mean: Sequence[float],
        std: Sequence[float],
        engine: Engine,
    ) -> None:
        self.config, self.sensor, self.engine = config, sensor, engine
        model = build_model(config.model, mean, std)
        self.objective = Objective(model, build_heads(config.heads, model), config.heads)
        self.module = engine.wrap(self.objective)
        self.optimisers = build_optimisers(self.objective, config)
        self.num_masked = num_masked(model.num_tokens, config.model.mask_ratio)

    def prepare(self, raw: RawBatch) -> tuple[Batch, Mask]:
        """Chips in physical units and their masks, on the device."""
        return prepare(raw, self.sensor, self.config.model.patch_px, self.num_masked)

    def differentiate(self, step: int, lr: float, raw: RawBatch) -> Launched:
        """Loss and gradients of a step, those of all ranks; the gradients are clipped."""
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr
        self.objective.zero_grad(set_to_none=True)
        parts = self.parts(raw, self.config.machine.micro_batch)
        ready = [self.prepare(parts[0])] if len(parts) == 1 else None
        counts = sum(
            (self.objective.counts(*pair) for pair in ready or map(self.prepare, parts)),
            torch.zeros(len(self.config.heads), dtype=torch.float64, device=self.engine.device),
        )
        counts = self.engine.total(counts)
        totals, names = torch.zeros((), dtype=torch.float64, device=self.engine.device), ()
        for number, part in enumerate(parts):
            batch, mask = ready[0] if ready else self.prepare(part)
            with self.engine.part(self.module, last=number + 1 == len(parts)):
                with self.engine.autocast():
                    loss, sums = self.module(batch, mask, counts)
                (loss * self.engine.num_ranks).backward()  # ranks average their gradients
            numbers = [loss.detach(), *(each for pair in sums.values() for each in pair)]
            totals = totals + torch.stack([each.double() for each in numbers])
            names = tuple(sums)
        return Launched(step, lr, self.engine.total(totals), names, self.clip())

    def parts(self, raw: RawBatch, size: int | None) -> list[RawBatch]:
        """What goes through the model at once, as many parts on every rank; the last of a smaller
        share are empty. A shard's weights are gathered by all ranks for each part.
        """
        parts = raw.parts(size)
        most = int(self.engine.largest(len(parts))) if size else len(parts)
        return parts + [raw.part(len(raw), len(raw))] * (most - len(parts))

    def clip(self) -> Tensor:
        """Clip the gradients if so configured; their norm before."""
        parameters = [each for each in self.objective.parameters() if each.grad is not None]
        norm = nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
        if self.config.training.grad_clip:
            nn.utils.clip_grads_with_norm_(parameters, self.config.training.grad_clip, norm)
        whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return whole

    def update(self) -> None:
        """Move the weights along the gradients."""
        for optimiser in self.optimisers:
            optimiser.step()

    def broken(self) -> list[str]:
        """Weights, and what an optimiser keeps of them, that hold values which are no numbers: of
        all ranks, by name.
        """
        names = {id(each): name for name, each in self.objective.named_parameters()}
        held = {name: each.detach() for name, each in self.objective.named_parameters()}
        for optimiser in self.optimisers:
            for parameter, state in optimiser.state.items():
                held |= {f"optimiser.{slot}.{names[id(parameter)]}": state[slot] for slot in state}
        local = {n: each.to_local() if isinstance(each, DTensor) else each
                 for n, each in held.items()}  # fmt: skip
        whole = torch.stack([each.isfinite().all().cpu() for each in local.values()])
        if not self.engine.largest(not whole.all()):
            return []
        found = [name for name, good in zip(local, whole.tolist(), strict=True) if not good]
        return list(dict.fromkeys(name for some in self.engine.gathered(found) for name in some))
