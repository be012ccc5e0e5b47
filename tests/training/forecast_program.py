"""One rank that forecasts the same run again and again, each rank at a pace of its own.

``python forecast_program.py TIMES PARALLEL`` under torchrun; prints what each forecast came to.
"""

import os
import random
import sys
import time
from dataclasses import replace

from bharateo.training import forecast, speed
from bharateo.training.engine import open_engine
from bharateo.training.forecast import Forecast
from small_datasets import small_config

MOMENTS = random.Random(int(os.environ["RANK"]))


def dawdle(device):
    """What a busy machine does between a step's end and the clock's reading."""
    time.sleep(MOMENTS.random() / 500)


def main() -> None:
    measure = speed.measure
    forecast.measure = lambda *told, seconds: measure(*told, seconds=seconds / 100)
    speed.wait_for = dawdle
    speed.gemm_peak = lambda *_: 1e11  # no rank waits in it for another
    config = small_config()
    machine = replace(config.machine, parallel=sys.argv[2], device="cpu")
    with open_engine(replace(config, machine=machine)) as engine:
        for number in range(int(sys.argv[1])):
            planned = Forecast.of(config, 2, 64, engine).planned()
            if engine.first:
                print(number, planned, flush=True)


if __name__ == "__main__":
    main()
