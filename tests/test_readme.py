"""What README and CONTRIBUTING promise beside their commands, which ``test_docs`` runs."""

import os
import re
import subprocess
import tomllib

import pytest

from bharateo.errors import ContractError
from bharateo.sources.sentinel2 import VALID_SCL
from documented import ROOT, blocks, commands
from handover.tiny_run import tiny_run
from small_datasets import many_bands, small_dataset

README = (ROOT / "README.md").read_text()


def test_the_make_targets_the_readme_names_call_what_it_says():
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    alone.pop("ARGS", None)  # of a `make test ARGS=...` that this runs under
    called = {
        words[1]: subprocess.run(
            ["make", "--dry-run", "--no-print-directory", *words[1:]],
            cwd=ROOT,
            env=alone,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for block in blocks(ROOT / "README.md")
        for words in commands(block)
        if block.language == "bash" and words[0] == "make"
    }
    assert called["demo"].rstrip().endswith("bharateo demo")
    assert "-m pytest" in called["test"]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_targets_and_files_that_a_page_names_exist(page):
    text, makefile = (ROOT / page).read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`", text):
        assert f"\n{target}:" in makefile, target
    for path in re.findall(r"`(?:python )?((?:\.ci|benchmarks|docs|src|tests)/[\w./-]*)", text):
        assert (ROOT / path).exists(), path


def test_its_badges_say_what_the_package_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    licence, python = re.findall(r"img\.shields\.io/badge/[a-z]+-(.+)-blue\)", README)
    assert licence.replace("--", "-") == project["license"].split()[0]
    assert python.replace("_or_later", "") == project["requires-python"].removeprefix(">=")


def test_the_readme_prints_the_attribution_of_its_data():
    for line in ("ESA WorldCover project 2021", "10.5281/zenodo.7254221", "OpenStreetMap", "ODbL"):
        assert line in README


PROMISES = {
    "Splits are geographic blocks with a buffer; no pixel is shared.": (
        "chips/test_ground.py::test_sites_of_different_splits_are_a_buffer_apart",
        (
            "chips/test_layouts.py::"
            "test_no_chip_lies_within_the_buffer_of_another_splits_in_10_000_random_plans"
        ),
    ),
    "Beside every figure stands what copying the nearest visible patch, inpainting, the mean "
    "colour and the majority class reach, with 95 % intervals over blocks of ground; fewer than "
    "five blocks have none, and it is said.": (
        "evaluation/test_evaluate.py::test_the_file_is_laid_out_as_documented",
        (
            "evaluation/test_intervals.py::"
            "test_too_few_blocks_have_no_interval_and_the_record_says_why"
        ),
        "report/test_report_scores.py::test_metrics_without_an_interval_are_named_with_the_reason",
    ),
    "Where the model loses, the report says so.": (
        "report/test_report_scores.py::test_a_model_that_loses_is_said_to_lose",
    ),
    "Reflectance is harmonised by one function, with its evidence beside every chip, and checked "
    "against the darkest pixels;": (
        "test_sentinel2_build.py::test_every_chip_says_what_its_offset_was_and_why",
        (
            "test_pixels_decide.py::"
            "test_a_flag_that_the_pixels_contradict_stops_the_build_with_the_setting_to_give"
        ),
    ),
    "a model refuses a dataset or raster of another unit.": (
        "inference/test_contract.py::test_the_refusal_names_the_unit_and_the_options_that_say_it",
        "test_readme.py::test_a_model_refuses_a_dataset_of_another_unit",
    ),
    "Nodata, and cloud where the product has a cloud mask, are no class, no target and no "
    "statistic, and what they hold cannot change a result.": (
        "models/test_mae.py::test_invalid_pixels_change_no_token_loss_metric_or_gradient",
        "evaluation/test_evaluate.py::test_invalid_pixels_do_not_matter",
        "test_readme.py::test_cloud_is_missing_where_the_product_has_a_cloud_mask",
    ),
    "The packaged scene came without a mask; ours leaves its clouds out.": (
        "sources/test_sample.py::test_clouds_are_left_out_and_bright_ground_is_kept",
    ),
    "Every verb can be killed at any moment and run again; datasets, runs, scores, vectors, "
    "maps and explorers end in the same bytes.": (
        "test_kill.py::test_ended_again_and_again_and_run_again_everything_ends_in_the_same_bytes",
        "chips/test_build.py::test_killed_at_any_moment_a_rerun_ends_in_the_same_bytes",
        "training/test_loop.py::test_killed_at_any_step_and_resumed_it_ends_in_the_same_bytes",
        (
            "evaluation/test_probing.py::"
            "test_killed_and_run_again_it_goes_on_and_writes_the_same_bytes"
        ),
        "inference/test_embed.py::test_killed_and_run_again_it_gives_the_same_bytes",
        "inference/test_map.py::test_a_map_killed_at_any_moment_and_rerun_is_the_same",
        "explorer/test_write.py::test_a_killed_page_is_not_there_and_is_written_again",
    ),
}
"""Every sentence of *What you may rely on*, and the tests that hold it."""


def relied_on():
    section = README.split("## What you may rely on")[1].split("**Read on.**")[0]
    return " ".join(section.split())


def test_every_promise_of_the_readme_is_held_by_tests():
    left = re.sub(r"- \*\*[^*]+\*\*", "", relied_on())
    for sentence, tests in PROMISES.items():
        assert sentence in left, f"the README no longer says {sentence!r}"
        left = left.replace(sentence, "")
        for test in tests:
            file, name = test.split("::")
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(), test
    assert not left.strip(), f"no test holds {left.strip()!r}"


def test_every_figure_of_how_good_stands_in_the_table_it_names():
    section = README.split("## How good, against what")[1].split("And where it is not ahead")[0]
    bullets = section.split("- **")[1:]
    assert len(bullets) == 3
    for bullet in bullets:
        (page,) = re.findall(r"\]\(([^)]+)\)", bullet)
        figures, there = re.findall(r"\b0\.\d+\b", bullet), (ROOT / page).read_text()
        assert len(figures) >= 2
        for figure in figures:
            assert re.search(rf"\b{re.escape(figure)}\b", there), (figure, page)


def test_a_model_refuses_a_dataset_of_another_unit(tmp_path):
    run = tiny_run(tmp_path / "run", small_dataset(tmp_path / "own", many_bands(3)))
    other = small_dataset(tmp_path / "other", many_bands(3, unit="radiance"))
    with pytest.raises(ContractError, match=r"unit: the run .* 'reflectance'.* 'radiance'"):
        run.check(other)


def test_cloud_is_missing_where_the_product_has_a_cloud_mask():
    """The classes of the scene classification of Sentinel-2: Level-2A product specification."""
    nodata, saturated, shadow, medium_cloud, high_cloud, cirrus = 0, 1, 3, 8, 9, 10
    vegetation, bare, water = 4, 5, 6
    assert not {nodata, saturated, shadow, medium_cloud, high_cloud, cirrus} & {*VALID_SCL}
    assert {vegetation, bare, water} <= {*VALID_SCL}
