"""What a run was planned to take, beside what it takes."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from bharateo.config import Config
from bharateo.planning import Plan, Timing, measured_machine
from bharateo.training.engine import Engine
from bharateo.training.speed import measure

AFTER_STEPS = 200
"""Steps after which plan and measurement are compared."""


@dataclass
class Forecast:
    """A plan from a few seconds of measuring on generated numbers, before the first step."""

    timing: Timing
    began: float

    @classmethod
    def of(cls, config: Config, num_bands: int, chips_per_epoch: int, engine: Engine) -> Forecast:
        """Measure this machine, all ranks at once, and plan the run with it."""
        share = config.training.batch_size // engine.num_ranks
        training = replace(config.training, batch_size=max(share, 1))
        speed = measure(replace(config, training=training), num_bands, engine, seconds=1.5)
        plan = Plan(config, chips_per_epoch, num_bands, num_machines=engine.num_ranks)
        machine = measured_machine(**vars(speed), flops=plan.layers.flops)
        return cls(Timing(plan, machine), time.monotonic())

    def planned(self) -> str:
        """The plan in one line."""
        timing = self.timing
        return (
            f"planned: {timing.hours:.2f} h for all {timing.plan.steps:,} steps at "
            f"{timing.chips_per_s:,.0f} chips/s, {timing.machine.share:.0%} of the "
            f"{timing.machine.peak[timing.precision] / 1e9:,.0f} GFLOP/s of a large product "
            f"({timing.precision})"
        )

    def compared(self, steps: int, data_wait: float) -> str:
        """Plan and measurement after so many steps, in one line."""
        timing = self.timing
        seconds = time.monotonic() - self.began
        chips_per_s = steps * timing.plan.config.training.batch_size / seconds
        peak = timing.machine.peak[timing.precision] * timing.plan.num_machines
        mfu = chips_per_s * timing.plan.layers.flops.training / peak
        of_planned = chips_per_s / timing.chips_per_s
        return (
            f"after {steps} steps: {chips_per_s:,.0f} chips/s, {of_planned:.2f} of what was "
            f"planned, so {timing.hours / of_planned:.2f} h in all; "
            f"model FLOPs utilisation {mfu:.0%}, {data_wait:.1%} of the time spent waiting for data"
        )
