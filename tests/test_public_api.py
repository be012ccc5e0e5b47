import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bharateo

ROOT = Path(__file__).parents[1]

FROZEN = """
    Config choose_pixels load_config with_settings
    Dataset Display Run
    ablate areas build change demo doctor embed evaluate explore export finetune hectares map_raster
    polygons pretrain probe probe_task sample score_search schema search teach tokens
    write_composite write_report
    Accounting Reading
    BHARATEO_CLASSES ClassScheme Roi Sensor WORLDCOVER parse_roi write_sample
    Batch BharatEOEncoder ChipDataset FrozenEncoder Mask fixed_batches mask_from_noise num_masked
    patchify unpatchify
    Example Panel class_panels class_rgb composite_rgb error_panels error_top label_panels
    reconstruct reconstruction_panels token_panels
    Figure show_account show_chips show_confusion show_curves show_map show_patch_classes
    show_picture show_probes show_reconstructions show_regions show_scores show_tokens
    BharatEOError
"""
PUBLIC = FROZEN.split()

HEAVY = ("torch", "rasterio", "matplotlib", "geopandas", "sklearn", "pandas", "numpy", "rich")


def test_the_public_api_is_frozen():
    assert sorted(bharateo.__all__) == sorted(PUBLIC)
    assert len({*bharateo.__all__}) == len(bharateo.__all__)


def test_every_public_name_is_there_and_says_what_it_is():
    assert [name for name in PUBLIC if not inspect.getdoc(getattr(bharateo, name))] == []
    assert {*PUBLIC} <= {*dir(bharateo)}


@pytest.mark.slow
@pytest.mark.long
def test_type_checkers_and_programs_see_the_same_names(tmp_path):
    """mypy reads the list of names, and so does the package when it runs."""
    program = tmp_path / "program.py"
    lines = [f"reveal_type(bharateo.{name})\n" for name in PUBLIC]
    program.write_text("import bharateo\n" + "".join(lines))
    call = [sys.executable, "-m", "mypy", "--follow-imports=silent", program]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    told = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert len(told) == len(PUBLIC), done.stdout
    assert "Any" not in told


def test_a_name_of_before_says_what_has_taken_its_place():
    with pytest.raises(AttributeError, match=r"'probe_points'; use bharateo\.teach"):
        bharateo.probe_points  # noqa: B018


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'bharateo' has no attribute 'pretrian'"):
        bharateo.pretrian  # noqa: B018


def test_no_public_name_hides_a_module():
    modules = {path.stem for path in Path(bharateo.__file__).parent.iterdir()}
    assert not modules & {*bharateo.__all__}


def test_importing_it_loads_nothing_heavy():
    program = f"import sys, bharateo; print(*({{*{HEAVY}}} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b""


def test_the_documentation_lists_every_public_name():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        from written_from_code import public_names
    listed = re.findall(r"^- .*?`bharateo\.(\w+)`", public_names(), re.M)
    assert sorted(listed) == sorted(PUBLIC)


def test_type_information_is_part_of_the_package():
    assert (Path(bharateo.__file__).parent / "py.typed").exists()


def test_every_verb_is_a_function_of_the_public_api_by_its_own_name():
    from bharateo.verbs.cli import VERBS

    other = {"map": "map_raster", "report": "write_report", "composite": "write_composite"}
    for verb, (function, words) in VERBS.items():
        if verb == "completion":
            continue
        assert getattr(bharateo, other.get(verb, verb.replace("-", "_"))) is function
        parameters = inspect.signature(function).parameters
        assert {*words} <= {*parameters}
        assert parameters["display"].default is None
