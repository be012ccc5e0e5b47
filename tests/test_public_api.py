import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import bharateo

ROOT = Path(__file__).parents[1]

FROZEN = """
    Config choose_pixels load_config with_settings
    Dataset Display Run
    ablate build embed evaluate evaluate_task explore export map_raster pretrain probe probe_points
    search tokens write_report
    Accounting Embedding PlanRequest Reading
    BHARATEO_CLASSES ClassScheme Roi Sensor WORLDCOVER parse_roi write_sample
    Batch BharatEOEncoder FrozenEncoder Mask fixed_batches mask_from_noise num_masked patchify
    unpatchify
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


def test_type_checkers_see_every_public_name_where_it_is():
    """The imports that only type checkers run, compared with what a program gets."""
    tree = ast.parse(Path(bharateo.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in block.body
        for alias in node.names
    }
    assert told == bharateo._FOUND
    assert {*told} == {*bharateo.__all__}


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
    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    missing = [n for n in PUBLIC if f"bharateo.{n}\n" not in page and f"`{n}`" not in page]
    assert missing == []


def test_type_information_is_part_of_the_package():
    assert (Path(bharateo.__file__).parent / "py.typed").exists()


def test_every_verb_takes_paths_as_text_and_shows_progress_by_itself():
    from bharateo import stages

    public = [getattr(bharateo, name) for name in PUBLIC]
    verbs = [
        value for value in public if getattr(value, "__module__", "").startswith(stages.__name__)
    ]
    assert len(verbs) > 10
    for verb in verbs:
        parameters = inspect.signature(verb).parameters
        assert parameters["display"].default is None
        texts = [parameter.annotation for parameter in parameters.values()]
        assert not [
            text for text in texts if "Path" in text and text != "Paths" and "str" not in text
        ]
