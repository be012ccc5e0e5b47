import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import HEADS, random_batch, tiny_heads, tiny_model

from bharateo.config import HeadConfig
from bharateo.models.heads import declared_metrics
from bharateo.models.objective import Objective, weighted_loss, weights_of_losses

ENCODER_TOO = {**HEADS, "landcover": HeadConfig(0.2, {"target": "fraction", "encoder": 0.5})}


def objective_and_batch(name="v0", heads=HEADS):
    model = tiny_model(name)
    objective = Objective(model, tiny_heads(model, heads), heads)
    return objective, *random_batch(model, chips=5, all_valid=False, all_labelled=False)


def part(batch, mask, some):
    fields = (getattr(batch, name)[some] for name in batch.__dataclass_fields__)
    return type(batch)(*fields), replace(mask, order=mask.order[some])


def gradients(objective):
    return [parameter.grad.clone() for parameter in objective.parameters()]


@pytest.mark.parametrize("heads", [HEADS, ENCODER_TOO])
@pytest.mark.parametrize("name", ["v0", "seed"])
def test_shares_and_gradients_of_unequal_parts_add_up_to_the_whole(name, heads):
    objective, batch, mask = objective_and_batch(name, heads)
    counts = objective.counts(batch, mask)
    whole, sums = objective(batch, mask, counts)
    whole.backward()
    expected = gradients(objective)
    objective.zero_grad()
    pieces = [part(batch, mask, slice(*ends)) for ends in ((0, 1), (1, 5))]
    torch.testing.assert_close(sum(objective.counts(*each) for each in pieces), counts)
    shares = [objective(*each, counts) for each in pieces]
    torch.testing.assert_close(sum(loss for loss, _ in shares), whole)
    for loss, _ in shares:
        loss.backward()
    for found, wanted in zip(gradients(objective), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    for metric, (total, count) in sums.items():
        torch.testing.assert_close(sum(each[metric][0] for _, each in shares), total)
        assert sum(each[metric][1] for _, each in shares) == count


def test_the_loss_is_the_weighted_sum_of_the_heads_means():
    objective, batch, mask = objective_and_batch()
    loss, sums = objective(batch, mask, objective.counts(batch, mask))
    means = {name: (total / count).item() for name, (total, count) in sums.items()}
    assert loss.item() == pytest.approx(means["rec_smooth_l1"] + 0.2 * means["esa_ce"])
    assert weighted_loss(means, HEADS) == pytest.approx(loss.item())


def test_the_encoders_own_classes_are_added_to_the_loss_by_their_weight():
    objective, batch, mask = objective_and_batch(heads=ENCODER_TOO)
    loss, sums = objective(batch, mask, objective.counts(batch, mask))
    means = {name: (total / count).item() for name, (total, count) in sums.items()}
    classes = means["esa_ce"] + 0.5 * means["esa_ce_encoder"]
    assert loss.item() == pytest.approx(means["rec_smooth_l1"] + 0.2 * classes)
    assert weighted_loss(means, ENCODER_TOO) == pytest.approx(loss.item())


def test_its_state_has_the_names_of_a_runs_weights():
    objective, *_ = objective_and_batch()
    assert {name.split(".")[0] for name in objective.state_dict()} == {"model", "heads"}


ONE_GRAPH = """
import sys
import torch
from tiny_models import HEADS, random_batch, tiny_heads, tiny_model
from bharateo.models.objective import Objective

model = tiny_model(sys.argv[1], embedding=sys.argv[2])
objective = Objective(model, tiny_heads(model), HEADS)
batch, mask = random_batch(model, all_valid=False)
counts = objective.counts(batch, mask)
expected, sums = objective(batch, mask, counts)
compiled = torch.compile(objective, backend="eager", fullgraph=True)
loss, found = compiled(batch, mask, counts)
torch.testing.assert_close(loss, expected)
for metric, pair in sums.items():
    torch.testing.assert_close(found[metric], pair)
loss.backward()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "embedding"),
    [("v0", "linear"), ("seed", "linear"), ("v0", "energies"), ("v0", "stem")],
)
@pytest.mark.long
def test_it_is_one_graph_to_a_compiler_and_gives_the_same(name, embedding):
    """In a process without the tests' type checks, which no compiler can look into."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", ONE_GRAPH, name, embedding]
    subprocess.run(command, check=True, env=environment)


def test_what_heads_declare_to_be_minimised_is_what_the_loss_adds_up():
    heads = {
        "pixels": HeadConfig(2.0, {"target": "palette"}),
        "landcover": HeadConfig(0.2, {"encoder": 0.5}),
    }
    found = {each.name: each.weight for each in declared_metrics(heads) if each.weight is not None}
    assert found == weights_of_losses(heads)
    assert found == {"palette_ce": 2.0, "esa_ce": 0.2, "esa_ce_encoder": 0.1}
    plain = declared_metrics({"pixels": HeadConfig(2.0), "landcover": HeadConfig(0.2)})
    names = [each.name for each in plain]
    assert "palette_ce" not in names
    assert "esa_ce_encoder" not in names
