from types import SimpleNamespace

import pytest
import torch

from bharateo.training import engine, speed
from bharateo.training.engine import Engine
from bharateo.training.speed import durations, gemm_peak, generated, measure, measure_step
from small_datasets import small_config

CPU = torch.device("cpu")


def test_a_job_is_done_three_times_at_least_and_as_long_as_asked():
    done = []
    assert len(durations(lambda: done.append(1), 0.0, warm_up=2)) == 3
    assert len(done) == 5
    assert sum(durations(lambda: done.append(1), 0.01)) >= 0.01


def test_the_peak_is_that_of_the_fastest_product(monkeypatch):
    """Products that take size / 256 milliseconds: the first of 30 ms or more ends the search."""
    monkeypatch.setattr(speed, "square_product", lambda size, *_: size)
    monkeypatch.setattr(speed, "durations", lambda size, *_, **__: [size / 256e3, size / 200e3])
    assert gemm_peak(CPU, torch.float32) == pytest.approx(2 * 8192**3 / (8192 / 256e3))
    monkeypatch.setattr(speed, "durations", lambda size, *_, **__: [size / 16e3])
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
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
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
    monkeypatch.setattr(speed, "measure_step", lambda *_: 10.0)
    monkeypatch.setattr(speed, "gemm_peak", lambda device, dtype, seconds: (str(device), dtype))
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        found = measure(small_config(), 2, Engine(precision=precision))
        assert (found.precision, found.peak) == (precision, ("cpu", dtype))
        assert (found.chips_per_s, found.gpu) == (10.0, None)
        assert found.num_cores >= 1
