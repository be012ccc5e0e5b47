"""The learning rate of every step, the optimisers, AdamW and Muon for matrices beside it, and the
moving average of what they move.

Muon is momentum whose matrices are made orthogonal before they move the weights: the mathematics of
``torch.optim.Muon(adjust_lr_fn="match_rms_adamw")``, with the iteration in the precision a device
is fast in, matrices of one shape iterated together, and sharded parameters. ``benchmarks/muon.py``
times the two.

Sources: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks" (iteration
and coefficients); Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2 (decay and
step size).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bharateo.config import Config
from bharateo.machine import has_native_bf16
from bharateo.models.vit import TransformerBlock


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step: linear warm-up, then cosine to zero over the run."""
    training = config.training
    if training.schedule == "cosine_epoch":
        epoch = step // steps_per_epoch
        return training.lr * 0.5 * (1 + math.cos(math.pi * epoch / training.epochs))
    warmup = training.warmup_epochs * steps_per_epoch
    return warm_cosine(training.lr, step, training.epochs * steps_per_epoch, warmup)


def warm_cosine(highest: float, step: int, num_steps: int, warmup: float) -> float:
    """The learning rate of a step: linear warm-up over some steps, then cosine to zero."""
    if step < warmup:
        return highest * (step + 1) / warmup
    share = (step - warmup) / max(num_steps - warmup, 1)
    return highest * 0.5 * (1 + math.cos(math.pi * share))


def newest_in_average(average: float, step: int) -> float:
    """Share of the newest weights in the moving average after a step, counted from 0.

    In the average after t steps those after s of them count as ``s ** (1 / average - 2)``, and lie
    back by ``average * t`` in the mean. So there is no decay to be fitted to the length of a run,
    and the weights before the first step leave no trace to be corrected for. Source: Karras et al.
    2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3.1, whose
    gamma is that exponent.
    """
    return 1 - (1 - 1 / (step + 1)) ** (1 / average - 1)


def build_optimisers(module: nn.Module, config: Config) -> list[torch.optim.Optimizer]:
    """AdamW for every parameter, or Muon for the matrices of transformer blocks beside it.

    ``decay: matrices`` spares biases, norms and single vectors from weight decay. Muon's steps
    are scaled to AdamW's size, so one learning rate serves both. Source: Liu et al. 2025, "Muon
    is Scalable for LLM Training", section 2.2.
    """
    training = config.training
    in_blocks = {
        id(parameter)
        for block in module.modules()
        if isinstance(block, TransformerBlock) and training.optimiser == "muon"
        for parameter in block.parameters()
        if parameter.ndim == 2
    }
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in module.parameters():
        if id(parameter) not in in_blocks:
            groups[training.decay == "all" or parameter.ndim > 1].append(parameter)
    adamw = torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": training.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=training.lr,
        betas=(0.9, training.beta2),
        fused=True,
    )
    if not in_blocks:
        return [adamw]
    matrices = [parameter for parameter in module.parameters() if id(parameter) in in_blocks]
    dtype = torch.float32 if training.precision == "fp32" else None  # None: what is fast here
    muon = Muon(matrices, training.lr, weight_decay=training.weight_decay, ns_dtype=dtype)
    return [adamw, muon]


# Muon.

A, B, C = 3.4445, -4.7750, 2.0315
EPS = 1e-7
BATCH_ELEMENTS = 2**24
"""Most elements iterated together: bounds what is gathered and copied at a time."""


class Muon(torch.optim.Optimizer):
    """Muon for matrices, steps scaled to the root mean square of AdamW's, decoupled decay.

    Every step a shard's matrix is gathered whole, and each process moves its own part of it; the
    momentum stays sharded (``torch.distributed.fsdp.fully_shard``). ``ns_dtype`` is the precision
    of the iteration; None takes ``fast_dtype``.

    Raises:
        ValueError: a parameter is no matrix.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        ns_dtype: torch.dtype | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
        }
        super().__init__(params, defaults)
        self.ns_dtype = ns_dtype  # of this machine, so no part of the state

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "ns_dtype": self.ns_dtype}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add matrices with settings of their own."""
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.ndim != 2:
                self.param_groups.pop()
                raise ValueError(f"Muon moves matrices, not a parameter {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every matrix that has a gradient; returns what ``closure`` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for alike in batches(p for p in group["params"] if p.grad is not None):
                self._move(alike, group)
        return loss

    def _move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        directions = orthogonal(
            [whole(self._momentum(parameter, group)) for parameter in parameters],
            group["ns_steps"],
            self.ns_dtype or fast_dtype(parameters[0].device),
        )
        for parameter, direction in zip(parameters, directions, strict=True):
            weight, change = own_parts(parameter, direction)
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(change, alpha=-group["lr"] * 0.2 * math.sqrt(max(parameter.shape)))

    def _momentum(self, parameter: Any, group: dict[str, Any]) -> Tensor:
        grad, state = parameter.grad, self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        buffer = state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
        return grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer


@cache
def fast_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the device multiplies it natively, fp32 elsewhere."""
    native = {
        "cpu": has_native_bf16,
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
    }
    return torch.bfloat16 if native.get(device.type, bool)() else torch.float32


def batches(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Matrices of one shape, tall or wide, at most ``BATCH_ELEMENTS`` elements together."""
    alike = defaultdict(list)
    for parameter in parameters:
        alike[parameter.device, *sorted(parameter.shape)].append(parameter)
    for same in alike.values():
        size = max(BATCH_ELEMENTS // same[0].numel(), 1)
        for first in range(0, len(same), size):
            yield same[first : first + size]


def orthogonal(matrices: list[Tensor], steps: int, dtype: torch.dtype) -> list[Tensor]:
    """Matrices of one shape, tall or wide, with singular values of about 1, in ``dtype``."""
    tall = [matrix.shape[0] > matrix.shape[1] for matrix in matrices]
    wide = [m.T if turn else m for m, turn in zip(matrices, tall, strict=True)]
    done = newton_schulz(torch.stack([matrix.to(dtype) for matrix in wide]), steps)
    return [m.T if turn else m for m, turn in zip(done, tall, strict=True)]


def newton_schulz(
    matrices: Float[Tensor, "matrix row col"], steps: int
) -> Float[Tensor, "matrix row col"]:
    """Singular values s of wide matrices to A s + B s^3 + C s^5, ``steps`` times, from norm 1."""
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    rows, cols = x.shape[1:]
    if cols >= 2 * rows and x.device.type == "cpu" and x.dtype != torch.bfloat16:
        return newton_schulz_by_gram(x, steps)
    for _ in range(steps):
        x = times(curve(torch.bmm(x, x.mT)), x)
    return x


def newton_schulz_by_gram(
    x: Float[Tensor, "matrix row col"], steps: int
) -> Float[Tensor, "matrix row col"]:
    """The same by small products: the factors are polynomials of x x^T, multiplied before x.

    Takes 0.6 of the time at four times as many columns as rows. Needs full fp32 products: in
    bf16 or TF32 the small singular values of a matrix near a lower rank would grow without bound.
    Source: Gram Newton-Schulz, https://tridao.me/blog/2026/gram-newton-schulz
    """
    gram = torch.bmm(x, x.mT)
    factor = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand_as(gram)
    for _ in range(steps - 1):
        bend = curve(gram)
        factor, gram = times(bend, factor), times(bend, times(bend, gram))
    return torch.bmm(times(curve(gram), factor), x)


def curve(gram: Float[Tensor, "matrix row row"]) -> Float[Tensor, "matrix row row"]:
    """B gram + C gram^2."""
    return torch.baddbmm(gram, gram, gram, beta=B, alpha=C)


def times(
    bend: Float[Tensor, "matrix row row"], x: Float[Tensor, "matrix row col"]
) -> Float[Tensor, "matrix row col"]:
    """(A + bend) x."""
    return torch.baddbmm(x, bend, x, beta=A)


def whole(matrix: Any) -> Tensor:
    """A sharded matrix gathered from all processes, a plain one as it is."""
    gathered: Tensor = matrix.full_tensor() if hasattr(matrix, "full_tensor") else matrix
    return gathered


def own_parts(parameter: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """What this process keeps of a parameter, and the same part of a whole matrix."""
    if not hasattr(parameter, "full_tensor"):
        return parameter, matrix
    from torch.distributed.tensor import distribute_tensor  # slow to import, so when it is needed

    mesh, placements = parameter.device_mesh, parameter.placements
    part = distribute_tensor(matrix, mesh, placements, src_data_rank=None)
    return parameter.to_local(), part.to_local()
