from dataclasses import asdict, replace

import pytest
import yaml

from bharateo.config import (
    SIZES,
    Config,
    HeadConfig,
    MachineConfig,
    differences,
    json_schema,
    load_config,
    parse_config,
    preset_path,
    to_yaml,
    with_settings,
)
from bharateo.errors import ConfigError

PRESETS = ["v0", "seed", "sample"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_being_written_and_read(name):
    config = load_config(preset_path(name))
    again = parse_config(yaml.safe_load(to_yaml(config)))
    assert asdict(again) == asdict(config)
    assert differences(yaml.safe_load(to_yaml(config)), config) == []


def test_nothing_given_is_the_default():
    assert asdict(parse_config({})) == asdict(Config())


def test_the_seed_preset_is_the_published_experiment():
    """N. Batra, "Building a Foundational EO Model for BharatEO", 2026-05-05."""
    config = load_config(preset_path("seed"))
    model, training, plan = config.model, config.training, config.data.plan
    assert (model.name, model.chip_px, model.patch_px, model.mask_ratio) == ("seed", 128, 16, 0.75)
    assert (model.width, model.depth, model.num_heads, model.mlp_ratio) == (128, 3, 4, 4)
    assert config.heads == {
        "pixels": HeadConfig(1.0, {"beta": 0.1}),
        "landcover": HeadConfig(0.2, {"target": "mode"}),
    }
    assert (training.epochs, training.batch_size, training.lr) == (20, 16, 4e-4)
    assert (training.optimiser, training.weight_decay, training.beta2) == ("adamw", 0.05, 0.999)
    assert (training.decay, training.schedule, training.grad_clip) == ("all", "cosine_epoch", None)
    assert (training.augment, training.seed, config.data.seed) == ("none", 42, 42)
    assert (plan.strategy, plan.size_px, plan.chips_per_roi) == ("random", 128, 128)
    assert (plan.min_classes, plan.split) == (2, None)
    assert config.data.rois == ("delhi_ncr", "shekhawati", "mathura_belt")


@pytest.mark.parametrize("name", ["v0", "sample"])
def test_our_own_presets_hold_ground_out(name):
    split = load_config(preset_path(name)).data.plan.split
    assert split.test > 0
    assert split.val > 0
    assert split.buffer_px > 0


# Overrides.


def test_overrides_go_on_top_of_the_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("training: {epochs: 3, lr: 0.5}\n")
    config = load_config(
        file,
        [
            "training.epochs=7",
            'data.rois=["a=1,2", "b=3,4"]',
            "data.plan.split=null",
            "heads.landcover.weight=0.5",
            "training.grad_clip=null",
            "model.name = seed",
        ],
    )
    assert (config.training.epochs, config.training.lr) == (7, 0.5)
    assert config.data.plan.split is None
    assert config.data.rois == ("a=1,2", "b=3,4")
    assert config.heads["landcover"].weight == 0.5
    assert config.training.grad_clip is None
    assert config.model.name == "seed"


def test_overrides_may_be_a_mapping(tmp_path):
    (tmp_path / "c.yaml").write_text("training: {epochs: 3, lr: 0.5}\n")
    overrides = {"training.epochs": 7, "data.rois": ("a=1,2", "b=3,4"), "model.size": "tiny"}
    config = load_config(str(tmp_path / "c.yaml"), overrides)
    assert (config.training.epochs, config.training.lr) == (7, 0.5)
    assert config.data.rois == ("a=1,2", "b=3,4")
    assert config.model.width == SIZES["tiny"]["width"]


def test_a_packaged_configuration_is_found_by_its_name(tmp_path, monkeypatch):
    assert load_config("sample") == load_config(preset_path("sample"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample").write_text("training: {epochs: 3}\n")  # a file of that name comes first
    assert load_config("sample").training.epochs == 3


@pytest.mark.parametrize("name", ["smaple", "configs/smaple.yaml"])
def test_a_misspelt_configuration_is_answered_with_the_nearest(name):
    with pytest.raises(ConfigError, match="No such file; did you mean 'sample'"):
        load_config(name)


def test_a_later_override_wins(tmp_path):
    (tmp_path / "c.yaml").write_text("")
    overrides = ["training.epochs=1", "training.epochs=2"]
    assert load_config(tmp_path / "c.yaml", overrides).training.epochs == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.epochs", r"--set 'training\.epochs' is not KEY=VALUE"),
        ("training.epoch=5", r"unknown key 'epoch' in section 'training': did you mean 'epochs'"),
        ("training.lerning_rate=5", r"section 'training': did you mean 'training\.lr'"),
        ("training.mask_ratio=5", r"section 'training': did you mean 'model\.mask_ratio'"),
        ("model.batch_sise=5", r"section 'model': did you mean 'training\.batch_size'"),
        ("model.zebra=5", r"section 'model': known are"),
        ("training.epochs.x=5", r"training\.epochs\.x: epochs is a value, not a section"),
        ("training.epochs=[", r"--set .*training\.epochs=\["),
        ("training.epochs=many", "epochs"),
        ("training=5", "training is a section with keys .*, not the value 5"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path, override, said):
    (tmp_path / "c.yaml").write_text("training: {epochs: 3}\n")
    with pytest.raises(ConfigError, match=said):
        load_config(tmp_path / "c.yaml", [override])


# What is refused.


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"trainin": {}}, r"unknown key 'trainin' in the top level: did you mean 'training'"),
        (
            {"training": {"learning_rate": 1}},
            r"unknown key 'learning_rate' in section 'training': .*known are epochs, ",
        ),
        (
            {"data": {"plan": {"chips_per_region": 1}}},
            r"'chips_per_region' in section 'data\.plan': did you mean 'chips_per_roi'",
        ),
        (
            {"data": {"plan": {"split": {"tset": 0.1}}}},
            r"unknown key 'tset' in section 'data\.plan\.split': did you mean 'test'",
        ),
        (
            {"heads": {"pixels": {"wieght": 2}}},
            r"unknown key 'wieght' in section 'heads\.pixels': did you mean 'weight'",
        ),
        ({"training": {"epochs": "many"}}, r"training\.epochs.*many"),
        ({"training": {"epochs": 1.5}}, r"training\.epochs.*1\.5"),
        ({"training": {"schedule": "linear"}}, r"training\.schedule.*linear"),
        ({"model": {"name": "v1"}}, r"model\.name.*v1"),
        ({"data": {"worldcover_year": 2022}}, r"data\.worldcover_year.*2022"),
        (
            {"training": [1, 2]},
            r"training is a section with keys \(epochs, .*not the value \[1, 2\]",
        ),
        ({"training": None}, "training is a section"),
        ({"data": {"plan": {"unit_blocks": [2]}}}, r"data\.plan\.unit_blocks\.1 is missing"),
        ({"data": {"rois": "delhi"}}, r"data\.rois: .*'delhi': give a list"),
        ({"data": {"geotiff": {"title": 5}}}, r"title: .*not 5: in quotes it is a text"),
        ({"machine": {"compile": "yes"}}, r"compile: .*'yes': give true or false"),
        ({"training": {"epochs": "5"}}, r"training\.epochs: .*valid integer, not '5'"),
        ({"training": {"lr": "1e-3"}}, r"training\.lr: .*valid number, not '1e-3'"),
        ({"data": {"sentinel2": {"dates": "0001-01-01/2021-01-01"}}}, "give FIRST/LAST"),
        ({"heads": {"pixels": 1.0}}, r"heads\.pixels is a section with keys \(weight, options\)"),
    ],
)
def test_a_wrong_key_or_value_is_named(record, said):
    with pytest.raises(ConfigError, match=rf"^here: .*{said}"):
        parse_config(record, "here")


OUT_OF_BOUNDS = {
    "data.seed": (-1, 2**63), "data.worldcover_year": (2019,), "data.plan.size_px": (0, 10**6),
    "data.plan.chips_per_roi": (0,), "data.plan.min_classes": (-1, 9), "data.plan.num_chips": (0,),
    "data.plan.min_valid_fraction": (-0.1, 1.1, 50), "data.plan.chips_per_block": (0,),
    "data.plan.unit_blocks": ([0, 1], [1, 2, 3]), "data.plan.class_balance": (-1,),
    "data.plan.max_failed": (-0.1, 2), "data.plan.split.block_px": (0,),
    "data.plan.split.buffer_px": (-1,), "data.plan.split.val": (-0.1, 1),
    "data.plan.split.test": (-0.1, 1), "data.sentinel2.max_cloud": (-1, 101),
    "data.sentinel2.timeout_s": (0, 1e9), "data.sentinel2.retries": (-1,),
    "data.geotiff.scale": (0, -1), "data.geotiff.nodata": ("nan",),
    "data.geotiff.label_classes": ({1: 8}, {1: -1}, {"a": 1}),
    "data.geotiff.bands": ({"red": {"band": 0}}, {"red": {"resolution_m": 0}}),
    "model.chip_px": (0,), "model.patch_px": (0,), "model.mask_ratio": (-0.1, 1, 7),
    "model.width": (0, -128, 10**12), "model.depth": (0, 10**9), "model.num_heads": (0, -4),
    "model.decoder_width": (0,), "model.decoder_depth": (-1,), "model.decoder_num_heads": (0,),
    "model.mlp_ratio": (0, 10**6), "model.num_filters": (0, 5_000),
    "heads.pixels.weight": (-1,), "training.epochs": (0, -3, 2**40),
    "training.chips_per_epoch": (0,), "training.batch_size": (0,), "training.lr": (0, -1),
    "training.weight_decay": (-1,), "training.beta2": (-0.1, 1), "training.warmup_epochs": (-1,),
    "training.grad_clip": (0, -1), "training.masks_per_chip": (0,), "training.shuffle_window": (0,),
    "training.lanes": (0,), "training.checkpoint_seconds": (-1,), "training.seed": (-1, 2**64),
    "machine.micro_batch": (0,), "machine.threads": (0, 10**6), "machine.prefetch": (-1,),
}  # fmt: skip


@pytest.mark.parametrize("key", OUT_OF_BOUNDS)
def test_a_number_out_of_its_bounds_is_refused_where_it_is_read(key):
    values = OUT_OF_BOUNDS[key]
    numbers = values[0] is None or not isinstance(values[0], (list, dict, str))
    for value in (*values, *((float("nan"), float("inf"), -float("inf"), True) if numbers else ())):
        with pytest.raises(ConfigError, match=key.replace(".", r"\.")) as refused:
            load_config("v0", {key: value})
        assert len(str(refused.value)) < 300


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*none\.yaml: No such"):
        load_config(tmp_path / "none.yaml")


def test_a_record_is_not_changed_by_parsing_it():
    record = {"training": {"epochs": 2}, "heads": {"pixels": {"options": {"beta": 0.5}}}}
    parse_config(record)
    assert record == {"training": {"epochs": 2}, "heads": {"pixels": {"options": {"beta": 0.5}}}}


# Comparing.


def test_every_differing_key_is_named_with_both_values():
    config = Config()
    there = yaml.safe_load(to_yaml(config))
    assert differences(there, config) == []
    wanted = replace(
        config,
        training=replace(config.training, epochs=7),
        heads={"pixels": config.heads["pixels"]},
    )
    said = differences(there, wanted)
    assert "training.epochs: 20 there, 7 wanted" in said
    assert "heads.landcover.weight: 0.2 there, None wanted" in said
    assert len(said) == 3


def test_keys_that_an_earlier_version_lacked_count_as_their_defaults():
    stored = yaml.safe_load(to_yaml(Config()))
    del stored["training"]["jitter"], stored["model"]["embedding"]
    assert differences(stored, Config()) == []
    wanted = parse_config({"training": {"jitter": 0.1}})
    assert differences(stored, wanted) == ["training.jitter: 0.0 there, 0.1 wanted"]
    del stored["heads"]["pixels"]
    assert all(each.startswith("heads.pixels") for each in differences(stored, Config()))
    assert differences(stored, Config())


# Sizes and the machine.


def test_a_size_stands_for_its_numbers_and_given_keys_win():
    model = parse_config({"model": {"size": "tiny", "decoder_depth": 1, "patch_px": 8}}).model
    assert (model.width, model.depth, model.num_heads) == (192, 12, 3)
    assert (model.decoder_width, model.decoder_depth, model.patch_px) == (192, 1, 8)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_makes_a_model_configuration(size):
    model = parse_config({"model": {"size": size}}).model
    assert asdict(model).items() >= SIZES[size].items()
    assert model.width % model.num_heads == 0
    assert model.decoder_width % model.decoder_num_heads == 0


SHIPPED = sorted(preset_path("v0").parent.glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("size", SIZES)
def test_a_size_that_is_set_wins_over_the_sizes_in_the_file(path, size):
    by_list, by_mapping = load_config(path, [f"model.size={size}"]), {"model.size": size}
    for config in (
        by_list,
        load_config(path, by_mapping),
        with_settings(load_config(path), by_mapping),
    ):
        assert asdict(config.model).items() >= SIZES[size].items()
        others = {
            key: value for key, value in asdict(config.model).items() if key not in SIZES[size]
        }
        assert asdict(load_config(path).model).items() >= others.items()


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_set_beside_a_size_wins_in_any_order(order):
    overrides = [("model.size", "base"), ("model.depth", 2), ("model.decoder_width", 64)][::order]
    for config in (
        load_config("v0", [f"{key}={value}" for key, value in overrides]),
        load_config("v0", dict(overrides)),
        with_settings(load_config("v0"), dict(overrides)),
    ):
        model = config.model
        assert (model.width, model.num_heads, model.depth, model.decoder_width) == (768, 12, 2, 64)


def test_keys_that_are_set_win_over_a_size_in_the_file(tmp_path):
    (tmp_path / "c.yaml").write_text("model: {size: tiny, decoder_depth: 1}\n")
    config = load_config(tmp_path / "c.yaml", ["model.depth=2"])
    assert (config.model.width, config.model.depth, config.model.decoder_depth) == (192, 2, 1)
    config = load_config(tmp_path / "c.yaml", ["model.size=base"])
    assert (config.model.width, config.model.depth, config.model.decoder_depth) == (768, 12, 4)


@pytest.mark.parametrize("size", ["huge", 5, None, ["base"], {"base": 1}, "x" * 5000], ids=range(6))
def test_a_size_that_is_none_is_refused_in_one_line(size):
    for refused in (
        lambda: parse_config({"model": {"size": size}}),
        lambda: load_config("v0", {"model.size": size}),
        lambda: with_settings(Config(), {"model.size": size}),
    ):
        with pytest.raises(ConfigError, match="is not a size; known are nano, tiny") as error:
            refused()
        assert len(str(error.value)) < 300


def test_an_unknown_size_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="'huge' is not a size; known are nano, tiny, small"):
        parse_config({"model": {"size": "huge"}})


def test_another_machine_is_no_other_configuration():
    config = Config()
    there = yaml.safe_load(to_yaml(replace(config, machine=MachineConfig(prefetch=0))))
    assert differences(there, config) == []


def test_every_key_is_described_in_the_schema():
    schema = json_schema()
    sections = {"Config": schema, **schema["$defs"]}
    keys = {f"{name}.{key}": said for name, each in sections.items()
            for key, said in each["properties"].items()}  # fmt: skip
    assert {"Config.data", "GeotiffBand.wavelength_nm", "ModelConfig.size"} <= {*keys}
    assert [key for key, said in keys.items() if not said.get("description")] == []
    assert keys["PlanConfig.num_chips"]["description"].startswith("``blocks`` only: how many")
    assert keys["SplitConfig.val"]["exclusiveMaximum"] == 1
