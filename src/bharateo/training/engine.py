"""The machine a run uses: device, ranks, arithmetic, what ranks tell each other; and what learns.

Ranks are those of plain ``torchrun``; without it there is one. Every rank runs the same program,
and what it is told here is the same on all of them. ``Learner`` takes a step on what the loader
brings, the forecast on generated numbers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from bharateo.config import Config, MachineConfig
from bharateo.errors import BharatEOError, ConfigError, RankLostError
from bharateo.machine import has_native_bf16, num_cores
from bharateo.memory import keep_freed_memory
from bharateo.models.heads import Batch, build_heads
from bharateo.models.mae import build_model
from bharateo.models.objective import Objective
from bharateo.models.patches import Mask, num_masked
from bharateo.models.targets import Conditioning
from bharateo.models.vit import TransformerBlock
from bharateo.sensor import Sensor
from bharateo.training.data import RawBatch, drawn_band_set, prepare, relit, sent
from bharateo.training.optimisers import build_optimisers, newest_in_average

T = TypeVar("T")

PATIENCE = timedelta(minutes=10)
"""How long a rank waits for the others before it takes them for lost."""


@dataclass(frozen=True)
class Engine:
    """One rank of a run: which, of how many, and what it computes with."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    num_ranks: int = 1
    machine: MachineConfig = field(default_factory=MachineConfig)
    precision: str = "fp32"

    @property
    def first(self) -> bool:
        """Whether this rank writes files and speaks to the user."""
        return self.rank == 0

    @property
    def asynchronous(self) -> bool:
        """Whether looking at a number makes the program wait for the device."""
        return self.device.type != "cpu"

    @property
    def compiles(self) -> bool:
        """Whether forward passes are compiled, as they are on a GPU if nothing else is asked."""
        compiled = self.machine.compile
        return self.asynchronous if compiled is None else compiled

    @property
    def sharded(self) -> bool:
        """Whether every rank holds a shard of the model only, and forward passes are joint."""
        return self.num_ranks > 1 and self.machine.parallel == "fsdp"

    def autocast(self) -> AbstractContextManager[object]:
        """A context in which matrix products run in the run's precision."""
        return autocast(self.precision, self.device.type)()

    def wrap(self, objective: nn.Module) -> nn.Module:
        """The objective on the device, compiled where that pays, and shared by the ranks.

        The module itself is moved, compiled and sharded in place; call what is returned.
        """
        objective.to(self.device)
        if self.sharded:
            self._shard(objective, self.compiles)
            return objective
        if self.compiles:
            objective.compile(dynamic=False)
        if self.num_ranks == 1:
            return objective
        return DistributedDataParallel(
            objective,
            device_ids=[self.device] if self.asynchronous else None,
            broadcast_buffers=False,  # statistics and positions: the same everywhere, for ever
            gradient_as_bucket_view=True,
        )

    def _shard(self, objective: nn.Module, compiled: bool) -> None:
        """Shards by block, gathered in the run's precision; gradients are added up in fp32. Only
        tokens between blocks take that precision: it would round an image in physical units.

        A block's forward pass is a graph of its own, and what gathers and lets go of its weights
        is called outside: in a graph of the whole, every such call would break it.
        """
        mesh = init_device_mesh(self.device.type, (self.num_ranks,))
        low = torch.bfloat16 if self.precision == "bf16" else None
        sums = torch.float32 if low else None
        between, outside = (MixedPrecisionPolicy(low, sums, None, cast) for cast in (True, False))
        for block in [each for each in objective.modules() if isinstance(each, TransformerBlock)]:
            if compiled:
                block.forward = torch.compile(block.forward, dynamic=False)  # type: ignore[method-assign]
            fully_shard(block, mesh=mesh, mp_policy=between)
        fully_shard(objective, mesh=mesh, mp_policy=outside)

    @contextlib.contextmanager
    def part(self, module: nn.Module, last: bool) -> Iterator[None]:
        """One part of a batch: gradients go to the other ranks with the last one."""
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(last)
        if isinstance(module, DistributedDataParallel) and not last:
            with module.no_sync():
                yield
            return
        yield

    def reshard(self, module: nn.Module) -> None:
        """Let go of what was gathered for passes without a gradient: else it is taken for the
        weights of the next step, after they have moved.
        """
        if isinstance(module, FSDPModule):
            module.reshard()

    def total(self, values: Tensor) -> Tensor:
        """Sums over all ranks, in place."""
        if self.num_ranks > 1:
            dist.all_reduce(values)
        return values

    def most(self, values: Tensor) -> Tensor:
        """The largest over all ranks, in place."""
        if self.num_ranks > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def largest(self, number: float) -> float:
        """The largest of what the ranks say."""
        return self.most(torch.tensor(number, dtype=torch.float64)).item()

    def by_first(self, act: Callable[[], T]) -> T:
        """What the first rank's ``act()`` returns or raises, on every rank; others do not act."""
        if self.num_ranks == 1:
            return act()
        told: list[object] = [None, None]
        if self.first:
            try:
                told[0] = act()
            except BharatEOError as error:
                told[1] = error
        dist.broadcast_object_list(told, src=0)
        if isinstance(told[1], BharatEOError):
            raise told[1]
        return told[0]  # type: ignore[return-value]

    def gathered(self, value: T) -> list[T]:
        """Every rank's value, in the order of the ranks."""
        if self.num_ranks == 1:
            return [value]
        values: list[T | None] = [None] * self.num_ranks
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    @contextlib.contextmanager
    def noticing_lost_ranks(self) -> Iterator[None]:
        """Say in one line that another rank has gone, instead of what its socket says.

        Raises:
            RankLostError: another rank ended, or did not answer within ``PATIENCE``.
        """
        try:
            yield
        except RuntimeError as error:
            if self.num_ranks == 1 or not _is_of_the_network(error):
                raise
            reason = str(error).split(". ")[0].splitlines()[0]
            raise RankLostError(
                f"rank {self.rank} of {self.num_ranks} has lost another rank ({reason}): see that "
                "one's last lines. Run the same command again, on any number of ranks: it goes on "
                "from the last checkpoint"
            ) from error


@contextlib.contextmanager
def open_engine(config: Config) -> Iterator[Engine]:
    """This process as a rank of the run, until the context ends.

    Raises:
        ConfigError: the device asked for is not there.
    """
    machine = config.machine
    rank, num_ranks = (int(os.environ.get(name, each)) for name, each in _RANK)
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = find_device(machine.device, local)
    use_cpu(machine, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    precision = resolve_precision(config.training.precision, device.type)
    started = num_ranks > 1 and not dist.is_initialized()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high" if precision == "bf16" else "highest")
    if started:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Engine(device, rank, num_ranks, machine, precision)
    finally:
        if started:
            dist.destroy_process_group()


_RANK = (("RANK", 0), ("WORLD_SIZE", 1))


def find_device(asked_for: str, local_rank: int = 0) -> torch.device:
    """The device of a rank; ``auto`` is the GPU where there is one.

    Raises:
        ConfigError: there is no GPU, or not one for this rank.
    """
    num_gpus = torch.cuda.device_count()
    if asked_for == "cpu" or (asked_for == "auto" and not num_gpus):
        return torch.device("cpu")
    if local_rank >= num_gpus:
        raise ConfigError(
            f"machine.device {asked_for!r}: PyTorch {torch.__version__} sees {num_gpus} GPUs here, "
            f"and rank {local_rank} wants one of its own; start fewer ranks, or go on with "
            "--device cpu"
        )
    return torch.device("cuda", local_rank)


def use_cpu(machine: MachineConfig, ranks_here: int = 1) -> None:
    """Set threads and allocator as the configuration says.

    ``torchrun`` gives every rank one thread; the cores are shared out instead.
    """
    if machine.threads is not None and machine.threads < 1:
        raise ConfigError(f"machine.threads {machine.threads}: give at least 1, or null")
    if machine.threads or ranks_here > 1:
        torch.set_num_threads(machine.threads or max(1, num_cores() // ranks_here))
    if machine.keep_freed_memory:
        keep_freed_memory()


def resolve_precision(precision: str, device: str = "cpu") -> str:
    """``auto`` becomes ``bf16`` where the device has it natively and ``fp32`` elsewhere."""
    if precision != "auto":
        return precision
    native = torch.cuda.is_bf16_supported() if device == "cuda" else has_native_bf16()
    return "bf16" if native else "fp32"


def autocast(precision: str, device: str = "cpu") -> Callable[[], AbstractContextManager[object]]:
    """A maker of contexts in which matrix products run in ``fp32`` or ``bf16``."""
    if precision == "bf16":
        return partial(torch.autocast, device, dtype=torch.bfloat16)
    return contextlib.nullcontext


def _is_of_the_network(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(
        word in str(error) for word in ("gloo", "NCCL", "Connection closed", "Connection reset")
    )


# What learns on one rank.


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
    with, by band. What training does not move is fitted to ``chips``, by the first rank for all;
    without any it stays as it is built.

    ``average`` holds the moving averages of all trained weights, by name, in shards where these
    are; nothing without ``training.average``. Of a model nothing else moves.
    """

    def __init__(
        self,
        config: Config,
        sensor: Sensor,
        mean: Sequence[float],
        std: Sequence[float],
        engine: Engine,
        chips: Batch | None = None,
    ) -> None:
        self.config, self.sensor, self.engine = config, sensor, engine
        model = build_model(config.model, mean, std, sensor.band_names)
        self.objective = Objective(model, build_heads(config.heads, model), config.heads)
        self.conditioning: dict[str, Conditioning] = {}
        if chips:
            fitted = engine.by_first(lambda: self.objective.fit(chips, config.training.seed))
            self.objective.load_state_dict(fitted, strict=False)
            self.conditioning = self.objective.conditioning(chips)
        if engine.compiles and model.band_sets:
            # A graph for each set of bands, for whole and for smaller batches, with gradients and
            # without: beyond the limit steps would go on uncompiled.
            limits = torch._dynamo.config
            limits.recompile_limit = max(limits.recompile_limit, 4 * (1 + len(model.band_sets)))
        self.module = engine.wrap(self.objective)
        self.optimisers = build_optimisers(self.objective, config)
        self.average: dict[str, Tensor] = {}
        if config.training.average:
            parameters = self.objective.named_parameters()
            self.average = {name: each.detach().clone() for name, each in parameters}
        self.num_masked = num_masked(model.num_tokens, config.model.mask_ratio)

    def prepare(self, raw: RawBatch) -> tuple[Batch, Mask]:
        """Chips in physical units, as the light is drawn, and their masks, on the device."""
        batch, mask = prepare(raw, self.sensor, self.config.model.patch_px, self.num_masked)
        if jitter := self.config.training.jitter:
            std = self.objective.model.normalise.std
            light = sent(raw.draws.light, std.device)
            batch = replace(batch, image=relit(batch.image, light, std, jitter))
        return batch, mask

    def band_set(self, step: int) -> str | None:
        """The set of bands that a step shows, None: all."""
        return drawn_band_set(self.config.model.band_sets, self.config.training.seed, step)

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
            torch.zeros((), dtype=torch.float64, device=self.engine.device),
        )
        counts = self.engine.total(counts)
        totals, names = torch.zeros((), dtype=torch.float64, device=self.engine.device), ()
        band_set = self.band_set(step)
        for number, part in enumerate(parts):
            batch, mask = ready[0] if ready else self.prepare(part)
            with self.engine.part(self.module, last=number + 1 == len(parts)):
                with self.engine.autocast():
                    loss, sums = self.module(batch, mask, counts, band_set)
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

    def update(self, step: int) -> None:
        """Move the weights along the gradients, and their average after them."""
        for optimiser in self.optimisers:
            optimiser.step()
        if self.average:
            newest = newest_in_average(self.config.training.average, step)
            torch._foreach_lerp_(*self._averages_and_weights(), newest)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """While entered, by all ranks at once, the weights are their moving average where there is
        one: in place, so that what was compiled, wrapped or sharded with them sees it.
        """

        def swap() -> None:
            for average, weight in zip(*self._averages_and_weights(), strict=True):
                kept = weight.clone()
                weight.copy_(average)
                average.copy_(kept)

        swap()
        try:
            yield
        finally:
            swap()

    def _averages_and_weights(self) -> tuple[list[Tensor], list[Tensor]]:
        """What this rank holds of the averages, and of the weights in the same order."""
        weights = dict(self.objective.named_parameters())
        return (
            [own_shard(each) for each in self.average.values()],
            [own_shard(weights[name].detach()) for name in self.average],
        )

    def broken(self) -> list[str]:
        """Weights, their averages, and what an optimiser keeps of them, that hold values which are
        no numbers: of all ranks, by name.
        """
        names = {id(each): name for name, each in self.objective.named_parameters()}
        held = {name: each.detach() for name, each in self.objective.named_parameters()}
        held |= {f"average.{name}": each for name, each in self.average.items()}
        for optimiser in self.optimisers:
            for parameter, state in optimiser.state.items():
                held |= {f"optimiser.{slot}.{names[id(parameter)]}": state[slot] for slot in state}
        local = {name: own_shard(each) for name, each in held.items()}
        whole = torch.stack([each.isfinite().all().cpu() for each in local.values()])
        if not self.engine.largest(not whole.all()):
            return []
        found = [name for name, good in zip(local, whole.tolist(), strict=True) if not good]
        return list(dict.fromkeys(name for some in self.engine.gathered(found) for name in some))


def own_shard(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, in the same memory; all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
