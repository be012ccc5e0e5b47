"""A run that somebody else may have written: opened as it was, or refused, and nothing executed."""

import io
import json
import os
import pickle
import shutil
import struct
import sys

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bharateo.config import parse_config
from bharateo.errors import BharatEOError, ConfigError, ContractError, RunError
from bharateo.files import write_json
from bharateo.models.heads import build_heads
from bharateo.models.mae import build_model
from bharateo.training.contract import CONTRACT_FILE, MODEL_FILE
from bharateo.training.loop import pretrain
from bharateo.training.run import Run
from small_datasets import many_bands, small_config, small_dataset


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody has touched."""
    folder = tmp_path_factory.mktemp("whole")
    return pretrain(
        small_dataset(folder / "d", many_bands(2)), small_config(epochs=1), folder / "r"
    )


@pytest.fixture
def run(whole, tmp_path):
    """A folder with a run, to be tampered with."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (CONTRACT_FILE, MODEL_FILE):
        shutil.copyfile(whole.path / name, folder / name)
    return folder


@pytest.fixture
def old(run):
    """The same, written before contracts held a checksum of the weights."""
    contract = json.loads((run / CONTRACT_FILE).read_text())
    del contract["weights"]
    write_json(run / CONTRACT_FILE, contract)
    return run


def weights(run):
    return {**run.model.state_dict(), **run.heads.state_dict()}


def same(run, other):
    ours, theirs = weights(run), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def change(run, **changes):
    """Change keys of a contract; ``__`` stands for a dot, ... for taking the key away."""
    contract = json.loads((run / CONTRACT_FILE).read_text())
    for path, value in changes.items():
        *way, last = path.split("__")
        place = contract
        for key in way:
            place = place[key]
        place[last] = value
        if value is ...:
            del place[last]
    write_json(run / CONTRACT_FILE, contract)


def refused(run, said):
    with pytest.raises(RunError, match=said) as refusal:
        Run.open(run)
    assert str(run) in str(refusal.value)


# Weights


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("form", ["torch", "legacy", "bare"])
def test_a_pickle_in_place_of_the_weights_is_refused_and_not_executed(
    old, tmp_path, form, protocol
):
    mark, file = tmp_path / "executed", old / MODEL_FILE
    if form == "bare":
        file.write_bytes(pickle.dumps(Bomb(mark), protocol))
    else:
        torch.save({"w": Bomb(mark)}, file, pickle_protocol=protocol,
                   _use_new_zipfile_serialization=form == "torch")  # fmt: skip
    refused(old, r"is a pickle, .* nothing in it was executed: restore the file")
    assert not mark.exists()
    content = file.read_bytes()
    if form == "bare":
        pickle.loads(content)
    else:
        torch.load(io.BytesIO(content), weights_only=False)
    assert mark.exists()  # it would have been


def header(length, record):
    return struct.pack("<Q", length) + (
        record if isinstance(record, bytes) else json.dumps(record).encode()
    )


def with_header(run, edit):
    """Rewrite the header of a run's weights, keeping the bytes of the tensors."""
    content = (run / MODEL_FILE).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    record = json.loads(content[8 : 8 + length])
    edit(record)
    text = json.dumps(record).encode()
    (run / MODEL_FILE).write_bytes(header(len(text), text) + content[8 + length :])


def overlap(record):
    first, second = [name for name in record if name != "__metadata__"][:2]
    record[second]["data_offsets"][0] = record[first]["data_offsets"][0]


def retype(record):
    next(one for name, one in record.items() if name != "__metadata__")["dtype"] = "I32"


def reshape(record):
    one = next(one for one in record.values() if len(one.get("shape", ())) == 2)
    one["shape"].reverse()


def outside(record):
    name = [name for name in record if name != "__metadata__"][-1]
    record[name]["data_offsets"][1] += 10**12


@pytest.mark.parametrize(
    "edit", [overlap, retype, reshape, outside, lambda record: record.popitem()]
)
def test_a_tampered_header_is_refused(old, edit):
    with_header(old, edit)
    refused(old, r"does not hold the weights its contract names \(.*; restore the file")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", header(2**63, {}), header(10**8, b"{"), header(5, b"[" * 5), header(2, {})],
    ids=["empty", "a byte", "longest header", "long header", "no JSON", "no tensor"],
)
def test_what_is_no_safetensors_is_refused(old, content):
    (old / MODEL_FILE).write_bytes(content)
    refused(old, r"does not hold the weights its contract names")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(old, bad):
    state = load_file(old / MODEL_FILE)
    name = next(name for name, values in state.items() if values.ndim == 2)
    state[name][0, 0] = bad
    save_file(state, old / MODEL_FILE)
    refused(old, rf"{name} holds values that are no numbers")


def test_other_weights_of_the_same_shape_are_refused_by_their_checksum(run):
    state = load_file(run / MODEL_FILE)
    save_file({name: values + 1 for name, values in state.items()}, run / MODEL_FILE)
    refused(run, r"its SHA-256 is another")


def test_a_run_from_before_there_were_checksums_still_opens(old, whole):
    assert same(Run.open(old), whole)


@pytest.mark.parametrize("name", [CONTRACT_FILE, MODEL_FILE])
def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_not(run, tmp_path, whole, name):
    (run / name).rename(tmp_path / name)
    (run / name).symlink_to(tmp_path / name)
    refused(run, r"is a link out of the folder, to .*; put the file itself there")
    (run / name).unlink()
    (tmp_path / name).rename(run / f"own-{name}")
    (run / name).symlink_to(f"own-{name}")
    assert same(Run.open(run), whole)


def test_a_run_in_the_cache_of_the_hub_links_to_its_blobs(run, tmp_path, whole):
    snapshot, blobs = tmp_path / "models--x/snapshots/1a", tmp_path / "models--x/blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for name in (CONTRACT_FILE, MODEL_FILE):
        (run / name).rename(blobs / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert same(Run.open(snapshot), whole)


def test_a_folder_in_place_of_the_weights_is_refused(run):
    (run / MODEL_FILE).unlink()
    (run / MODEL_FILE).mkdir()
    refused(run, r"does not hold the weights")


# The contract


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "3", "{", "[" * 100_000, '{"schema_version": 1}']
)
def test_what_is_no_contract_is_refused(run, text):
    (run / CONTRACT_FILE).write_text(text)
    refused(run, r"contract\.json.*(restore it|restore the file|reads 1)")


def test_every_key_of_a_contract_is_needed(run, whole):
    keys = [*set(whole.contract.to_json()) - {"weights"}]
    for key in keys:
        kept = (run / CONTRACT_FILE).read_bytes()
        change(run, **{key: ...})
        refused(
            run, r"schema version None" if key == "schema_version" else rf"json: {key} is missing"
        )
        (run / CONTRACT_FILE).write_bytes(kept)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sensor__bands": []}, "sensor.bands: tuple should have at least 1 item"),
        ({"sensor__bands": "B04"}, "sensor.bands: input should be a valid array, not 'B04'"),
        ({"sensor__scale": "1"}, "sensor.scale: input should be a valid number, not '1'"),
        ({"sensor__scale": 0}, "scale is 0"),
        ({"sensor__standardised": 1}, "sensor.standardised: .* not 1"),
        ({"statistics__mean": [0.1]}, "statistics.mean has 1 values for 2 bands"),
        (
            {"statistics__std": [0.1, -1]},
            r"statistics\.std\.1: .* greater than or equal to 0, not -1",
        ),
        ({"statistics__std": [0.1, 0.1]}, "statistics.std is not what the weights normalise with"),
        ({"statistics__std": [0.1, float("nan")]}, r"statistics\.std\.1: .* not nan"),
        ({"statistics__mean": [10**400, 0]}, r"statistics\.mean\.0: .* finite number, not "),
        ({"chip_px": 64}, "chip_px is 64, model.chip_px 32"),
        ({"chip_px": True}, "chip_px: input should be a valid integer, not True"),
        ({"model__width": 10**9}, r"model\.width: .* less than or equal to 65536, not 1000000000"),
        ({"model__width": 2**16}, r"\d values of \d+,\d+,\d+,\d+ or more"),
        ({"model__depth": 10**9}, r"model\.depth: .* less than or equal to 1000, not 1000000000"),
        ({"model__depth": -1}, r"model\.depth: .* not -1"),
        ({"model__decoder_width": 10**9}, r"model\.decoder_width: .* not 1000000000"),
        ({"model__chip_px": 2**20, "chip_px": 2**20}, r"chip_px: .* not 1048576"),
        ({"model__num_heads": 0}, r"model\.num_heads: .* not 0"),
        ({"model__num_heads": -2}, r"model\.num_heads: .* not -2"),
        ({"model__decoder_num_heads": -2}, r"model\.decoder_num_heads: .* not -2"),
        ({"model__num_heads": 3}, "model.num_heads 3 does not divide width 16"),
        ({"model__patch_px": 0, "patch_px": 0}, r"patch_px: .* not 0"),
        ({"model__patch_px": 7, "patch_px": 7}, "patch_px 7 does not divide chip_px 32"),
        ({"model__mlp_ratio": -4}, r"model\.mlp_ratio: .* not -4"),
        ({"presented__epochs": -1}, r"presented\.epochs: .* not -1"),
        ({"num_parameters": "many"}, r"num_parameters: .* not 'many'"),
        ({"dataset__path": "d\0"}, r"dataset\.path"),
        ({"dataset__path": 3}, "dataset.path: input should be a valid string, not 3"),
        ({"weights": {"bytes": 1}}, "weights.sha256 is missing"),
        ({"heads": []}, "heads: input should be an object"),
    ],
)
def test_a_contract_that_cannot_be_is_refused_with_the_key(run, changes, said):
    change(run, **changes)
    refused(run, said)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"class_path": "planted.Bomb", "init_args": {}}},
        {"model__name": {"class_path": "planted.Bomb"}},
        {"heads": {"pixels": {"class_path": "planted.Bomb"}}},
        {"heads__pixels__options": {"class_path": "planted.Bomb", "init_args": {}}},
        {"heads__pixels__options__beta": {"class_path": "planted.Bomb", "init_args": {}}},
        {"heads__planted.Bomb": {"weight": 1.0, "options": {}}},
        {"heads__pixels": "planted.yaml"},
    ],
)
def test_no_class_that_a_contract_names_is_imported(run, tmp_path, monkeypatch, changes):
    mark = tmp_path / "executed"
    (tmp_path / "planted.py").write_text(f"open({str(mark)!r}, 'w')\nclass Bomb: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    change(run, **changes)
    with pytest.raises(BharatEOError):
        Run.open(run)
    assert not mark.exists()
    assert "planted" not in sys.modules


@pytest.mark.parametrize(
    "value", [{"class_path": "planted.Bomb"}, [{"class_path": "planted.Bomb"}]]
)
def test_no_class_that_a_configuration_names_is_imported(tmp_path, monkeypatch, value):
    (tmp_path / "planted.py").write_text("class Bomb: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = parse_config({"heads": {"pixels": {"options": {"beta": value}}}})
    assert config.heads["pixels"].options == {"beta": value}  # data, which the head refuses
    model = build_model(config.model, [0.0], [1.0])
    with pytest.raises(ConfigError, match=r"heads\.pixels\.options: beta: .*valid number"):
        build_heads(config.heads, model)
    assert "planted" not in sys.modules


# Anything


damage = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
    st.tuples(st.just("flip"), st.floats(0, 1, exclude_max=True), st.integers(1, 255)),
)


def damaged(content, damages):
    content = bytearray(content)
    for kind, place, mask in damages:
        where = int(place * len(content))
        if kind == "cut":
            del content[where:]
        elif content:
            content[where] ^= mask
    return bytes(content)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from([CONTRACT_FILE, MODEL_FILE]),
    damages=st.lists(damage, min_size=1, max_size=3),
)
@example(name=MODEL_FILE, damages=[("flip", 0.999, 1)])
def test_whatever_befalls_its_files_a_run_is_refused_or_is_what_it_was(run, whole, name, damages):
    kept = (whole.path / name).read_bytes()
    (run / name).write_bytes(damaged(kept, damages))
    try:
        assert same(Run.open(run), whole)
    except BharatEOError as error:
        assert str(error)
    finally:
        (run / name).write_bytes(kept)


# Datasets


def test_a_dataset_of_other_statistics_is_refused_unless_allowed(whole, tmp_path):
    dataset = small_dataset(tmp_path / "d", many_bands(2))
    info = json.loads((dataset.path / "dataset.json").read_text())
    info["statistics"]["mean"] = [mean + 1 for mean in info["statistics"]["mean"]]
    bright = type(dataset)(dataset.path, info)
    with pytest.raises(ContractError, match=r"^statistics: the dataset .* standard deviations"):
        whole.check(bright)
    assert [*whole.check(bright, ["statistics"])] == ["statistics"]
    assert whole.check(dataset) == {}


def test_a_dataset_of_another_unit_is_taken_if_allowed_and_the_rest_is_still_checked(
    whole, tmp_path
):
    other = small_dataset(tmp_path / "d", many_bands(2, "DN"))
    assert [*whole.check(other, ["unit"])] == ["unit"]
    with pytest.raises(ContractError, match=r"^bands: "):
        whole.check(small_dataset(tmp_path / "e", many_bands(3)), ["unit", "bands"])
