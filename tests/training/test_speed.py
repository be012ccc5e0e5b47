from types import SimpleNamespace

import pytest
import torch

from bharateo.training import engine, planning
from bharateo.training.engine import Engine
from bharateo.training.planning import Plan, durations, gemm_peak, generated, measure, measure_step
from small_datasets import small_config

CPU = torch.device("cpu")


def test_a_job_is_done_three_times_at_least_and_as_long_as_asked():
    done = []
    assert len(durations(lambda: done.append(1), 0.0, warm_up=2)) == 3
    assert len(done) == 5
    assert sum(durations(lambda: done.append(1), 0.01)) >= 0.01


def test_the_peak_is_that_of_the_fastest_product(monkeypatch):
    """Products that take size / 256 milliseconds: the first of 30 ms or more ends the search."""
    monkeypatch.setattr(planning, "square_product", lambda size, *_: size)
    monkeypatch.setattr(planning, "durations", lambda size, *_, **__: [size / 256e3, size / 200e3])
    assert gemm_peak(CPU, torch.float32) == pytest.approx(2 * 8192**3 / (8192 / 256e3))
    monkeypatch.setattr(planning, "durations", lambda size, *_, **__: [size / 16e3])
    assert gemm_peak(CPU, torch.float32) == pytest.approx(2 * 1024**3 / (1024 / 16e3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_of_this_machine_is_found(dtype):
    assert 1e6 < gemm_peak(CPU, dtype, seconds=0.05) < 1e15


@pytest.mark.parametrize("model", ["v0", "seed"])
def test_steps_are_timed_whole(model, monkeypatch):
    """The median of the steps' times; every step moves the weights."""
    config, moved = small_config(model), []

    def build(objective, config):
        weights = list(objective.parameters())
        optimiser = torch.optim.SGD(weights, 1e-3)
        step = optimiser.step
        optimiser.step = lambda: moved.append(all(w.grad is not None for w in weights)) or step()
        return [optimiser]

    monkeypatch.setattr(engine, "build_optimisers", build)
    clock = iter([0.0, 9.0, 10.0, 18.0, 20.0, 26.0])  # steps of 9, 8 and 6 seconds
    monkeypatch.setattr(planning, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert measure_step(config, 2, 8, seconds=0.0) == 8 / 8
    assert moved == [True] * 5


def test_a_batch_is_generated_as_it_is_loaded():
    config = small_config(masks_per_chip=2)
    raw = generated(config, 5, 7, CPU)
    assert (raw.image.shape, raw.image.dtype) == ((4, 5, 32, 32), torch.uint16)
    assert (raw.landcover.shape, raw.valid.shape) == ((4, 32, 32), (4, 32, 4))
    assert raw.shows.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert raw.draws.noise.shape == (7, 16)


def test_a_machine_is_measured_in_the_precision_it_trains_in(monkeypatch):
    peaks = {("cpu", torch.float32): 1e9, ("cpu", torch.bfloat16): 3e9}
    monkeypatch.setattr(planning, "measure_step", lambda *_: 10.0)
    monkeypatch.setattr(planning, "gemm_peak", lambda at, dtype, seconds: peaks[str(at), dtype])
    plan = Plan(small_config(), 64, 2)
    for precision, peak in (("fp32", 1e9), ("bf16", 3e9)):
        machine = measure(plan, Engine(precision=precision))
        assert machine.peak == {precision: peak}
        assert machine.share * peak == pytest.approx(10 * plan.cost.training)
        assert machine.watts >= 15
