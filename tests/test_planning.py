"""FLOPs, parameters and bytes are compared with what PyTorch and the disk say, to the last one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bharateo.accounting import Accounting, published
from bharateo.config import SIZES, Config, HeadConfig, ModelConfig, TrainingConfig
from bharateo.errors import ConfigError
from bharateo.landcover import NUM_CLASSES
from bharateo.machine import num_cores
from bharateo.models.embedding import EMBEDDINGS
from bharateo.models.heads import HEADS as known_heads
from bharateo.models.heads import Batch, LandCoverHead, build_heads
from bharateo.models.mae import build_model, num_parameters
from bharateo.models.objective import Objective
from bharateo.models.patches import mask_from_noise
from bharateo.models.vit import TransformerBlock
from bharateo.sensor import WORLDCOVER_PALETTE
from bharateo.training import optimisers
from bharateo.training.loop import Trainer
from bharateo.training.optimisers import build_optimisers
from bharateo.training.planning import (
    INDIA_KG_PER_KWH,
    MACHINES,
    Cost,
    Machine,
    Plan,
    PlanRequest,
    Timing,
    measured_machine,
)
from bharateo.training.run import training_state
from small_datasets import many_bands, small_config, small_dataset

SMALL = ModelConfig(
    "v0", 32, 8, 0.6, width=16, depth=2, num_heads=2,
    decoder_width=24, decoder_depth=3, decoder_num_heads=3, mlp_ratio=2,
)  # fmt: skip
MODELS = {
    "v0 small": (SMALL, 2),
    "seed small": (replace(SMALL, name="seed"), 2),
    "v0 without a decoder": (replace(SMALL, decoder_depth=0), 5),
    "v0 default": (ModelConfig(), 3),
    "seed default": (ModelConfig(name="seed", depth=3), 3),
    **{size: (ModelConfig(**numbers), 10) for size, numbers in SIZES.items()},
}
HEADS = Config().heads
LARGE = published()["1 M Sentinel-2 chips"]


def built(model, num_bands, heads=HEADS):
    """The modules that training optimises."""
    network = build_model(model, [0.5] * num_bands, [0.25] * num_bands)
    return nn.ModuleDict({"model": network, "heads": build_heads(heads, network)})


def loss_of(module, model, num_bands, heads=HEADS, chips=2):
    """The sum of what the heads minimise, on noise."""
    num_tokens = (model.chip_px // model.patch_px) ** 2
    batch = Batch(
        torch.rand(chips, num_bands, model.chip_px, model.chip_px),
        torch.rand(chips, model.chip_px, model.chip_px) > 0.1,
        torch.randint(0, 9, (chips, num_tokens, NUM_CLASSES)),
        torch.arange(chips),
    )
    mask = mask_from_noise(torch.rand(chips, num_tokens), int(num_tokens * model.mask_ratio))
    tokens = module["model"](batch.image, batch.valid, mask)
    each = {name: module["heads"][name](tokens, batch, module["model"]) for name in heads}
    return sum(sums[module["heads"][name].loss_metric][0] for name, sums in each.items())


def counted(model, num_bands, heads=HEADS, chips=2):
    """PyTorch's own count, a chip: forward, and forward with backward.

    Its CPU kernel of fused attention is not in that count, so attention runs as two products.
    """
    module = built(model, num_bands, heads)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = loss_of(module, model, num_bands, heads, chips)
        forward = counter.get_total_flops()
        loss.backward()
    assert forward % chips == counter.get_total_flops() % chips == 0
    return forward // chips, counter.get_total_flops() // chips


# What is computed.


def cost(model, num_bands, heads=HEADS):
    return Cost.of(Config(model=model, heads=heads), num_bands)


def flops(*of):
    return cost(*of).forward, cost(*of).training


def worked_out(model, num_bands):
    """By hand: 2 x rows x inputs x outputs of every linear layer, and two products of attention.

    Each has two gradients, the first layer one: nobody asks for the pixels'.
    """
    tokens = (model.chip_px // model.patch_px) ** 2
    visible, values = tokens - int(tokens * model.mask_ratio), num_bands * model.patch_px**2

    def stack(depth, width, rows):
        linears = (3 + 1 + 2 * model.mlp_ratio) * width**2
        return depth * (2 * rows * linears + 4 * rows**2 * width)

    first = 2 * visible * values * model.width
    if model.name == "seed":
        decoded, rest = model.width, stack(model.depth, model.width, tokens)
    else:
        decoded = model.decoder_width
        rest = stack(model.depth, model.width, visible) + 2 * visible * model.width * decoded
        rest += stack(model.decoder_depth, decoded, tokens)
    rest += 2 * (tokens - visible) * decoded * values + 2 * tokens * decoded * NUM_CLASSES
    return first + rest, 2 * first + 3 * rest


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_flops_are_those_of_every_layer_to_the_last(name):
    assert flops(*MODELS[name]) == worked_out(*MODELS[name])


@pytest.mark.parametrize("name", ["v0 small", "seed small", "v0 without a decoder", "nano"])
def test_flops_are_those_pytorch_counts_at_work(name):
    assert flops(*MODELS[name]) == counted(*MODELS[name])


@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
def test_shapes_alone_tell_what_a_step_on_numbers_does(optimiser, embedding, monkeypatch):
    # A processor without bf16 iterates wide matrices by smaller products, which is less work.
    monkeypatch.setattr(optimisers, "fast_dtype", lambda device: torch.bfloat16)
    model = replace(SMALL, embedding=embedding)
    config = Config(model=model, training=TrainingConfig(optimiser=optimiser))
    by_shapes, at_work = (Cost.counted_on(device, config, 2) for device in ("meta", "cpu"))
    assert by_shapes == at_work


@pytest.mark.parametrize("head", HEADS)
def test_a_head_left_out_is_not_counted(head):
    heads = {head: HEADS[head]}
    assert flops(SMALL, 2, heads) == counted(SMALL, 2, heads)


def test_a_head_that_needs_numbers_is_counted_on_numbers(monkeypatch):
    class Picky(LandCoverHead):
        """Its logits are those of some tokens, chosen by their values."""

        def predict(self, decoded):
            return super().predict(decoded[decoded.isfinite().all(2)][None])

    monkeypatch.setitem(known_heads, "landcover", Picky)
    assert flops(SMALL, 2) == worked_out(SMALL, 2)


def test_flops_are_the_same_in_bf16_as_it_runs():
    """There the model itself takes two products for attention."""
    with torch.autocast("cpu", dtype=torch.bfloat16), FlopCounterMode(display=False) as counter:
        loss_of(built(SMALL, 2), SMALL, 2).backward()
    assert counter.get_total_flops() == 2 * cost(SMALL, 2).training


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_modules(name):
    model, num_bands = MODELS[name]
    assert cost(model, num_bands).num_parameters == num_parameters(built(model, num_bands))


def test_a_head_that_does_not_exist_is_refused():
    with pytest.raises(
        ConfigError, match=r"heads\.depth is not a head; known are pixels, features, land"
    ):
        cost(SMALL, 2, {"depth": HeadConfig()})


def stepped(config, num_bands):
    """Objective and optimisers after a step, as a checkpoint is made of them."""
    network = build_model(config.model, [0.5] * num_bands, [0.25] * num_bands)
    objective = Objective(network, build_heads(config.heads, network), config.heads)
    optimisers = build_optimisers(objective, config)
    loss_of({"model": objective.model, "heads": objective.heads}, config.model, 2).backward()
    for optimiser in optimisers:
        optimiser.step()
    return objective, optimisers


@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
@pytest.mark.parametrize("name", ["v0", "seed"])
def test_weights_and_checkpoint_have_the_bytes_that_are_saved(name, optimiser):
    model, training = replace(SMALL, name=name), TrainingConfig(optimiser=optimiser)
    config = Config(model=model, heads=HEADS, training=training)
    objective, optimisers = stepped(config, 2)
    saved = [
        sum(tensor.nbytes for tensor in training_state(objective, some).values())
        for some in ([], optimisers)
    ]
    values = values_of(Plan(config, 100, 2))
    assert [values["weights"], values["checkpoint"]] == saved
    assert ("optimiser per step" in values) == (optimiser == "muon")


def test_an_average_is_one_more_copy_of_the_trained_weights_in_a_checkpoint(tmp_path):
    dataset = small_dataset(tmp_path / "dataset", many_bands(2))
    trainer = Trainer(dataset, small_config(average=0.1), tmp_path / "run")
    trainer.step(0, trainer.loader.load(0))
    saved = training_state(trainer.objective, trainer.optimisers, trainer.average)
    rows = {row.name: row for row in Plan(trainer.config, 100, 2).rows()}
    assert rows["checkpoint"].value == sum(tensor.nbytes for tensor in saved.values())
    assert "weights, their average and optimiser state" in rows["checkpoint"].meaning


def test_muons_flops_are_those_pytorchs_own_takes():
    module = built(SMALL, 2)
    of_blocks = (
        block.parameters() for block in module.modules() if isinstance(block, TransformerBlock)
    )
    matrices = [each for some in of_blocks for each in some if each.ndim == 2]
    for matrix in matrices:
        matrix.grad = torch.ones_like(matrix)
    with FlopCounterMode(display=False) as counter:
        torch.optim.Muon(matrices).step()
    values = values_of(Plan(Config(model=SMALL), 100, 2))
    assert values["optimiser per step"] == counter.get_total_flops()


# What is read.


def values_of(plan):
    return {row.name: row.value for row in plan.rows()}


def meaning(plan, name):
    return next(row.meaning for row in plan.rows() if row.name == name)


def record_bytes(chip_px, num_bands, bytes_per_value):
    model = replace(SMALL, chip_px=chip_px, patch_px=4)
    return Plan(Config(model=model), 1, num_bands, bytes_per_value).record_bytes


def test_a_chips_record_is_its_image_its_land_cover_and_a_bit_a_pixel():
    assert record_bytes(128, 10, 2) == 346_112
    assert record_bytes(24, 3, 1) == 24 * 24 * 3 + 24 * 24 + 24 * 3
    assert record_bytes(20, 3, 1) == 20 * 20 * 3 + 20 * 20 + 20 * 3


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_record_is_as_large_as_a_stored_square(tmp_path, dtype):
    sensor = WORLDCOVER_PALETTE if dtype == "uint8" else many_bands(5)
    dataset = small_dataset(tmp_path, sensor)
    on_disk = sum(
        layer.nbytes for layer in (dataset.image(0), dataset.landcover(0), dataset.valid_packed(0))
    )
    assert record_bytes(48, sensor.num_bands, np.dtype(dtype).itemsize) == on_disk


def test_a_chip_with_several_masks_is_read_once():
    once = PlanRequest("nano").plan(Accounting(10, 3, 32, 8, 2, 0.5), 2)
    training = TrainingConfig(masks_per_chip=4)
    several = PlanRequest("nano", "h200", training=training).plan(once.account, 2)
    assert once.bytes_read == 30 * once.record_bytes
    assert several.bytes_read == 3 * 3 * several.record_bytes  # chips 0-3, 4-7, 8-9
    assert several.dataset_bytes == once.dataset_bytes == 10 * once.record_bytes
    assert several.training_flops == once.training_flops
    timing = Timing(several, several.machine)
    assert timing.reads_per_s == timing.chips_per_s / 4
    assert "with 4 masks" in meaning(several, "bytes read")


# How long it takes.


@pytest.mark.parametrize(
    ("size", "hours", "chips_per_s"),
    [("tiny", 0.1, 293e3), ("small", 0.3, 79e3), ("base", 1.3, 21e3)],
)
def test_a_million_chips_on_an_h200_take_the_hours_worked_out_before(size, hours, chips_per_s):
    """At 30 % of the peak; worked out for decoders a little different from ours."""
    plan = PlanRequest(size, "h200").plan(LARGE, 2)
    values = values_of(plan)
    assert values["time"] == pytest.approx(hours, rel=0.35)
    assert values["chips to deliver"] == pytest.approx(chips_per_s, rel=0.35)


def test_every_row_follows_from_the_ones_above_it():
    request = PlanRequest("base", "h200", num_machines=8, watts=500.0, grid=0.1)
    plan = request.plan(LARGE, 2)
    values = values_of(plan)
    assert values["token presentations"] == 6_400_000_000
    assert values["training FLOPs"] == 100_000_000 * values["training per chip"]
    assert values["steps"] == 100 * 15_625
    assert values["bytes read"] == 100 * values["dataset on disk"] == 34_611_200_000_000
    assert values["training speed"] == pytest.approx(
        8 * 0.3 * 989.4e12 / values["training per chip"]
    )
    assert values["time"] * 3600 * values["training speed"] == pytest.approx(100_000_000)
    assert values["data to deliver"] == pytest.approx(values["training speed"] * 0.346112)
    assert values["energy"] == pytest.approx(8 * 0.5 * values["time"])
    assert values["CO2"] == pytest.approx(0.1 * values["energy"])


def test_without_a_machine_there_is_no_time():
    names = [row.name for row in PlanRequest("nano").plan(LARGE, 2).rows()]
    assert names[-1] == "checkpoint"
    assert names[: len(LARGE.rows())] == [row.name for row in LARGE.rows()]


def test_rows_say_what_is_assumed_and_what_is_given():
    plan = PlanRequest("nano", "l4").plan(LARGE, 2)
    assert "NVIDIA L4 at 30 % (assumed) of its bf16 peak of 121 TFLOP/s" in meaning(
        plan, "training speed"
    )
    assert meaning(plan, "energy") == "72 W (data sheet) × time; no host, no cooling"
    assert meaning(plan, "CO2") == "0.727 kg a kWh: India, FY 2023-24 (CEA v20)"
    assert meaning(plan, "time") == "forward and backward alone, if the disks keep up"
    given = replace(plan, num_machines=4, watts=60.0, grid=0.05)
    assert meaning(given, "training speed").startswith("4 × NVIDIA L4")
    assert meaning(given, "energy").startswith("4 × 60 W (as given)")
    assert meaning(given, "CO2") == "0.05 kg a kWh: as given"


def test_precision_chooses_the_peak():
    speeds = {
        precision: values_of(PlanRequest("nano", "a100", training=training).plan(LARGE, 2))[
            "training speed"
        ]
        for precision in ("auto", "bf16", "fp32")
        for training in [TrainingConfig(precision=precision)]
    }
    assert speeds["auto"] == speeds["bf16"] == pytest.approx(16 * speeds["fp32"])


def test_a_measured_machine_takes_the_time_that_was_measured():
    plan = PlanRequest("nano").plan(Accounting(3600, 2, 128, 16, 3, 0.75), 2)
    machine = measured_machine(100.0, 200e9, "fp32", plan.cost.training)
    measured = replace(plan, machine=machine)
    values = values_of(measured)
    assert values["training speed"] == pytest.approx(100)
    assert values["time"] == pytest.approx(7200 / 100 / 3600)
    assert values["energy"] == pytest.approx(0.015 * num_cores() * values["time"])
    assert f"{15 * num_cores()} W (assumed, 15 W a core)" in meaning(measured, "energy")
    assert meaning(measured, "time").startswith("whole steps")
    assert "(measured) of its fp32 peak of 200 GFLOP/s" in meaning(measured, "training speed")


def test_the_power_of_a_measured_gpu_is_not_made_up():
    plan = PlanRequest("nano").plan(LARGE, 2)
    machine = measured_machine(1e5, 6e14, "bf16", plan.cost.training, "NVIDIA H100")
    assert [row.name for row in replace(plan, machine=machine).rows()][-1] == "time"
    given = replace(plan, machine=machine, watts=500.0)
    assert meaning(given, "energy").startswith("500 W (as given)")


def test_machines_and_the_grid_are_as_published():
    """NVIDIA's data sheets; CEA, CO2 Baseline Database v20 (FY 2023-24)."""
    known = {name: (machine.peak["bf16"], machine.watts) for name, machine in MACHINES.items()}
    assert known == {
        "h100": (989.4e12, 700),
        "h200": (989.4e12, 700),
        "a100": (312e12, 400),
        "l4": (121e12, 72),
        "rtx4090": (165.2e12, 450),
    }
    assert {machine.share for machine in MACHINES.values()} == {0.3}
    assert INDIA_KG_PER_KWH == 0.727


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_machines": 0}, "num_machines 0"),
        ({"watts": 0.0}, "watts 0.0: give the power"),
        ({"watts": float("nan")}, "watts nan"),
        ({"grid": -0.1}, "grid -0.1: give the kg CO2"),
        ({"training": TrainingConfig(batch_size=0)}, "batch_size 0"),
        ({"training": TrainingConfig(masks_per_chip=0)}, "masks_per_chip 0"),
        ({"training": TrainingConfig(masks_per_chip=3)}, "batch_size 64 is not a multiple of"),
    ],
)
def test_what_cannot_be_planned_is_refused_by_name(change, named):
    with pytest.raises(ConfigError, match=named):
        PlanRequest("nano", "h200", **change).plan(LARGE, 2)


def test_a_precision_the_machine_is_not_known_for_is_refused():
    machine = Machine("old", "an old machine", {"fp32": 1e12}, 100)
    config = Config(training=TrainingConfig(precision="bf16"))
    with pytest.raises(ConfigError, match=r"precision bf16: nothing is known .* choose fp32"):
        Plan(config, 10, 3, machine=machine)
