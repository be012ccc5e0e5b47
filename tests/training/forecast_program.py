"""One rank that forecasts the same run again and again, each rank by a clock of its own.

``python forecast_program.py TIMES PARALLEL`` under torchrun; prints what each forecast came to, and
fails where the ranks have not taken as many steps.
"""

import os
import sys
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

from bharateo.training import planning
from bharateo.training.engine import open_engine
from bharateo.training.planning import Forecast
from small_datasets import small_config

RANK = int(os.environ["RANK"])
STEPS = []


def main() -> None:
    measure = planning.measure
    planning.measure = lambda *of, seconds: measure(*of, seconds=seconds / 20)
    planning.wait_for = STEPS.append
    clock = count(step=0.01 * (1 + RANK / 5))  # seven or eight readings make the time asked for
    planning.time = SimpleNamespace(perf_counter=lambda: next(clock), monotonic=lambda: 0.0)
    planning.gemm_peak = lambda *_: 1e11  # no rank waits in it for another
    config = small_config()
    machine = replace(config.machine, parallel=sys.argv[2], device="cpu")
    with open_engine(replace(config, machine=machine)) as engine:
        for number in range(int(sys.argv[1])):
            planned = Forecast(config, 2, 64, engine).planned()
            if engine.first:
                print(number, planned, flush=True)
            if len({*engine.gathered(len(STEPS))}) > 1:
                sys.exit("ranks have taken unequal numbers of steps")


if __name__ == "__main__":
    main()
