"""Muon against its papers, against PyTorch's, and sharded over processes against whole."""

import copy
import itertools
import os
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.nn import functional as F

from bharateo.training import optimisers
from bharateo.training.optimisers import Muon, batches, fast_dtype, newton_schulz, orthogonal

SHAPES = [(12, 8), (8, 12), (32, 8), (8, 32), (8, 8), (8, 32), (1, 5)]
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def matrices(seed=0, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def walk(parameters, *optimisers, steps=4, first=0):
    """Step with gradients that depend on the step alone."""
    for step in range(first, first + steps):
        grads = matrices(100 + step, [p.shape for p in parameters])
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad.detach()
        for optimiser in optimisers:
            optimiser.step()
    return parameters


def as_in_the_papers(weight, grads, lr, decay, momentum, nesterov, steps):
    """One matrix, one step after the other, in fp64.

    Jordan et al. 2024 for the iteration; Liu et al. 2025, equation 4, for decay and step size.
    """
    weight, moment = weight.double(), torch.zeros_like(weight, dtype=torch.float64)
    for grad in grads:
        moment = momentum * moment + (1 - momentum) * grad.double()
        x = (1 - momentum) * grad.double() + momentum * moment if nesterov else moment
        x = x.T if x.shape[0] > x.shape[1] else x
        x = x / x.norm()
        for _ in range(steps):
            gram = x @ x.T
            x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
        x = x.T if weight.shape[0] > weight.shape[1] else x
        weight = weight - lr * (0.2 * max(weight.shape) ** 0.5 * x + decay * weight)
    return weight


@pytest.fixture(autouse=True)
def one_thread():
    """Small matrices gain nothing from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# The mathematics.


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.95])
@pytest.mark.parametrize(("decay", "steps"), [(0.0, 5), (0.5, 3)])
def test_steps_are_those_of_the_papers(nesterov, momentum, decay, steps):
    settings = {"momentum": momentum, "nesterov": nesterov, "ns_steps": steps}
    parameters = matrices()
    ours = Muon(parameters, 0.02, decay, ns_dtype=torch.float32, **settings)
    walk(parameters, ours)
    for index, (start, parameter) in enumerate(zip(matrices(), parameters, strict=True)):
        grads = [matrices(100 + step)[index].detach() for step in range(4)]
        wanted = as_in_the_papers(start.detach(), grads, 0.02, decay, momentum, nesterov, steps)
        torch.testing.assert_close(parameter.detach().double(), wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_steps_are_torchs_within_bf16_rounding(dtype):
    ours, theirs = matrices(), matrices()
    walk(ours, Muon(ours, 0.02, 0.1, ns_dtype=dtype), steps=6)
    walk(theirs, torch.optim.Muon(theirs, 0.02, 0.1, adjust_lr_fn="match_rms_adamw"), steps=6)
    for start, one, other in zip(matrices(), ours, theirs, strict=True):
        assert (one - other).norm() < 0.02 * (other - start).norm()


def test_defaults_are_torchs():
    ours, theirs = Muon(matrices()).defaults, torch.optim.Muon(matrices()).defaults
    assert ours == {name: theirs[name] for name in ours}
    assert theirs["ns_coefficients"] == (optimisers.A, optimisers.B, optimisers.C)
    assert theirs["eps"] == optimisers.EPS


@pytest.mark.parametrize("shape", [(48, 48), (48, 144), (192, 48), (48, 192)])
@pytest.mark.parametrize(("dtype", "slack"), [(torch.bfloat16, 0.05), (torch.float32, 1e-3)])
def test_a_direction_is_nearly_orthogonal(shape, dtype, slack):
    """Singular values from 0.01 to 1 of the norm end in the band of the five iterations."""
    (matrix,) = matrices(shapes=[shape])
    left, _, right = torch.linalg.svd(matrix.detach(), full_matrices=False)
    spread = (left * torch.logspace(0, -1.3, 48)) @ right
    direction = orthogonal([spread], 5, dtype)[0]
    singular = torch.linalg.svdvals(direction.float())
    assert direction.shape == shape
    assert singular.min() > 0.68 - slack
    assert singular.max() < 1.135 + slack


def test_a_step_has_the_size_of_adamws():
    weight = nn.Parameter(torch.randn(64, 256))
    start = weight.detach().clone()
    walk([weight], Muon([weight], 0.01, 0.0), steps=1)
    rms = (weight - start).square().mean().sqrt().item() / 0.01
    assert rms == pytest.approx(0.2, rel=0.15)


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_small_products_lose_nothing_on_matrices_of_low_rank(rank):
    x = torch.randn(3, 16, rank) @ torch.randn(3, rank, 64)
    exact = newton_schulz(x.double(), 5)
    assert (newton_schulz(x, 5) - exact).norm() < 1e-3 * exact.norm()


def test_bf16_products_stay_on_the_whole_matrix(monkeypatch):
    monkeypatch.setattr(optimisers, "newton_schulz_by_gram", None)
    newton_schulz(torch.randn(2, 8, 32, dtype=torch.bfloat16), 5)


def test_no_gradient_direction_no_movement():
    weight = nn.Parameter(torch.ones(4, 16))
    weight.grad = torch.zeros(4, 16)
    Muon([weight], 0.1, 0.0).step()
    assert (weight == 1).all()


# Which matrices move, and together or not.


def test_matrices_of_one_shape_go_together_tall_or_wide():
    sizes = [[tuple(p.shape) for p in alike] for alike in batches(matrices())]
    assert sizes == [[(12, 8), (8, 12)], [(32, 8), (8, 32), (8, 32)], [(8, 8)], [(1, 5)]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_together_is_one_by_one(monkeypatch, dtype):
    together, alone = matrices(), matrices()
    walk(together, Muon(together, 0.02, ns_dtype=dtype))
    monkeypatch.setattr(optimisers, "BATCH_ELEMENTS", 1)
    assert all(len(alike) == 1 for alike in batches(alone))
    walk(alone, Muon(alone, 0.02, ns_dtype=dtype))
    tolerance = 1e-6 if dtype == torch.float32 else 2e-3
    torch.testing.assert_close(together, alone, rtol=0, atol=tolerance)


def test_what_has_no_gradient_stays():
    parameters = matrices()
    optimiser = Muon(parameters)
    for parameter in parameters[1:]:
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    assert torch.equal(parameters[0], matrices()[0])
    assert parameters[0] not in optimiser.state
    assert not torch.equal(parameters[1], matrices()[1])


def test_groups_keep_their_own_rates():
    parameters = matrices()
    still = {"params": parameters[:3], "lr": 0.0}
    shrinking = {"params": parameters[3:], "lr": 0.1, "weight_decay": 10.0}
    walk(parameters, Muon([still, shrinking]), steps=1)
    assert all(map(torch.equal, parameters[:3], matrices()[:3]))
    bound = 1.3 * 0.1 * 0.2  # of a step, decay having removed all else
    for parameter in parameters[3:]:
        assert torch.linalg.matrix_norm(parameter, 2) < bound * max(parameter.shape) ** 0.5


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), ()])
def test_what_is_no_matrix_is_refused(shape):
    optimiser = Muon(matrices())
    with pytest.raises(ValueError, match=r"not a parameter \(" + ", ".join(map(str, shape))):
        optimiser.add_param_group({"params": [nn.Parameter(torch.ones(shape))]})
    assert len(optimiser.param_groups) == 1
    with pytest.raises(ValueError, match="not a parameter"):
        Muon([*matrices(), nn.Parameter(torch.ones(shape))])


def test_a_closure_is_evaluated_with_gradients():
    weight = nn.Parameter(torch.ones(2, 3))

    def closure():
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert Muon([weight]).step(closure).item() == 6
    assert not torch.equal(weight, torch.ones(2, 3))


@pytest.mark.parametrize("native", [True, False])
def test_processors_iterate_in_what_they_are_fast_in(monkeypatch, native):
    monkeypatch.setattr(optimisers, "has_native_bf16", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    wanted = torch.bfloat16 if native else torch.float32
    assert fast_dtype.__wrapped__(torch.device("cpu")) == wanted
    assert fast_dtype.__wrapped__(torch.device("cuda")) == wanted
    assert fast_dtype.__wrapped__(torch.device("mps")) == torch.float32


# Going on from a state.


def test_a_resumed_walk_is_bit_for_bit_the_same(tmp_path):
    straight = matrices()
    walk(straight, Muon(straight))
    resumed = matrices()
    first = Muon(resumed)
    walk(resumed, first, steps=2)
    assert all(set(state) == {"momentum_buffer"} for state in first.state.values())
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = Muon(resumed, lr=1.0)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    walk(resumed, second, steps=2, first=2)
    assert all(map(torch.equal, straight, resumed))


def test_a_copied_optimiser_keeps_its_precision():
    ours = Muon(matrices(), ns_dtype=torch.float32)
    assert copy.deepcopy(ours).ns_dtype == torch.float32
    assert "ns_dtype" not in ours.state_dict()["param_groups"][0]


# Over processes. Rows are split unevenly over three; of the four rows of the last matrix the third
# process holds none.


def network():
    """In fp64, so that the order of sums is lost in the tolerance of the comparisons."""
    torch.manual_seed(0)
    linear = partial(nn.Linear, bias=False, dtype=torch.float64)
    sizes = [24, 16, 64, 16]
    hidden = [layer for size in itertools.pairwise(sizes) for layer in (linear(*size), nn.GELU())]
    return nn.Sequential(*hidden, linear(16, 4))


def optimiser_of(model):
    return Muon(model.parameters(), 0.02, ns_dtype=torch.float64)


def train(model, optimiser, steps, rank=0, world=1):
    """Each process takes its share of twelve rows a step; returns the weights, whole."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x, y = (torch.randn(12, n, generator=generator).double() for n in (24, 4))
        optimiser.zero_grad()
        F.mse_loss(model(x[rank::world]), y[rank::world]).backward()
        optimiser.step()
    return full_state(model, optimiser)[0]


def full_state(model, optimiser):
    return get_state_dict(model, optimiser, options=FULL)


def restore(model, optimiser, state):
    weights, moments = state
    set_state_dict(
        model, optimiser, model_state_dict=weights, optim_state_dict=moments, options=FULL
    )


def process(rank, world, folder):
    """Train sharded from the start and from a whole state, and replicated; keep what comes out."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world
    )
    from torch.distributed.fsdp import fully_shard

    mesh = torch.distributed.init_device_mesh("cpu", (world,))
    own = {"rank": rank, "world": world}

    model = fully_shard(network(), mesh=mesh)
    optimiser = optimiser_of(model)
    train(model, optimiser, range(3), **own)
    rows = [len(state["momentum_buffer"].to_local()) for state in optimiser.state.values()]
    state = full_state(model, optimiser)
    ends = {"sharded": train(model, optimiser, range(3, 6), **own)}

    model = fully_shard(network(), mesh=mesh)
    optimiser = optimiser_of(model)
    restore(model, optimiser, torch.load(folder / "whole.pt", weights_only=True))
    ends["from whole"] = train(model, optimiser, range(3, 6), **own)

    model = nn.parallel.DistributedDataParallel(network())
    ends["replicated"] = train(model, optimiser_of(model), range(6), **own)
    torch.save((rows, state, ends), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


ROWS = {2: [[8, 32, 8, 2]] * 2, 3: [[6, 22, 6, 2], [6, 22, 6, 2], [4, 20, 4, 0]]}


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_processes_come_to_the_weights_of_one(tmp_path, world):
    model = network()
    optimiser = optimiser_of(model)
    train(model, optimiser, range(3))
    torch.save(full_state(model, optimiser), tmp_path / "whole.pt")
    torch.multiprocessing.spawn(process, (world, tmp_path), world)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(world)]
    assert [rows for rows, _, _ in ranks] == ROWS[world]
    _, state, ends = ranks[0]

    wanted = train(model, optimiser, range(3, 6))
    model = network()
    optimiser = optimiser_of(model)
    restore(model, optimiser, state)
    ends["one process from sharded"] = train(model, optimiser, range(3, 6))
    for end in ends.values():
        torch.testing.assert_close(end, wanted, rtol=0, atol=1e-9)
    start = network().state_dict()
    assert all((start[name] - weight).norm() > 0.01 for name, weight in wanted.items())
