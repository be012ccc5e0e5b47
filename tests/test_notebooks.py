"""Both notebooks run from start to end, say what their pairs say, and call nothing but the API."""

import ast
import re
import shutil
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

import bharateo
from documented import write_tiles

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = ("bharateo_v0", "sentinel2_v0")
ALLOWED = {"bharateo", "pathlib", "numpy"}
FEWEST_PICTURES = {"bharateo_v0": 50, "sentinel2_v0": 50}

each = pytest.mark.parametrize("name", NAMES)


def text_pair(name):
    return jupytext.read(FOLDER / f"{name}.py")


def markdown(name):
    return [cell.source for cell in text_pair(name).cells if cell.cell_type == "markdown"]


def code(name):
    return [cell.source for cell in text_pair(name).cells if cell.cell_type == "code"]


def contents(notebook):
    return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]


@each
def test_the_pairs_agree(name):
    pair = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert contents(pair) == contents(text_pair(name)), (
        f"run `jupytext --sync notebooks/{name}.py` after an edit"
    )


@each
def test_nothing_that_was_made_is_kept_in_a_notebook(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)


@each
def test_a_notebook_calls_public_names_alone(name):
    tree = ast.parse("\n".join(code(name)))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
                for alias in node.names}  # fmt: skip
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    used = {
        node.attr for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "bharateo"
    }  # fmt: skip
    assert imported <= ALLOWED
    assert used and used <= set(bharateo.__all__)
    assert not any(attribute.startswith("_") for attribute in attributes(tree))


def attributes(tree):
    return [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]


@each
def test_a_notebook_has_no_logic_beyond_a_loop(name):
    tree = ast.parse("\n".join(code(name)))
    logic = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.While, ast.Try, ast.If, ast.With)
    assert not [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, logic)]


@each
def test_every_question_is_followed_by_its_answer(name):
    text = "\n".join(markdown(name))
    questions = re.split(r"\*\*Question \d+\.\*\*", text)[1:]
    assert len(questions) >= 5
    for question in questions:
        answer = re.search(r"<details><summary>Answer</summary>\n\n(.+?)\n\n</details>", question,
                           re.DOTALL)  # fmt: skip
        assert answer and len(answer[1]) > 100, question


@pytest.fixture
def surroundings(tmp_path, monkeypatch):
    """No network, one thread of arithmetic (tests run side by side), nothing kept at home."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


@pytest.mark.slow
@each
@pytest.mark.long
def test_a_notebook_runs_offline_and_shows_its_pictures(name, tmp_path, surroundings):
    made = run_shortened(name, tmp_path)
    assert num_pictures(made) >= FEWEST_PICTURES[name]
    assert "run:" in said(made) and "\x1b" not in said(made)
    assert {each.name for each in (tmp_path / "runs").iterdir()} == {f"notebook-{name}"}


@pytest.mark.slow
@pytest.mark.long
def test_the_first_notebook_runs_on_worldcover_where_it_is_reached(
    tmp_path, surroundings, monkeypatch
):
    monkeypatch.setenv("BHARATEO_WORLDCOVER_ROOT", str(write_tiles(tmp_path / "mirror")))
    made = run_shortened("bharateo_v0", tmp_path)
    assert "Pixels: ESA WorldCover" in said(made)
    assert num_pictures(made) >= FEWEST_PICTURES["bharateo_v0"]


def said(notebook):
    return "".join(output.get("text", "") for output in outputs(notebook))


def num_pictures(notebook):
    pages = [output.data.get("text/html", "") for output in outputs(notebook) if "data" in output]
    return sum(
        page.count("<svg class") - page.count('"defs"') + page.count("<img") for page in pages
    )


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code"
            for output in cell.outputs]  # fmt: skip


def run_shortened(name, folder):
    """A copy run in ``folder/notebooks``: one epoch, and nothing else is different."""
    shutil.copytree(FOLDER, folder / "notebooks")
    notebook = nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4)
    (parameters,) = [
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    ]
    parameters.source, changed = re.subn(r"epochs = \d+", "epochs = 1", parameters.source)
    assert changed == 1
    resources = {"metadata": {"path": str(folder / "notebooks")}}
    return NotebookClient(notebook, kernel_name="python3", resources=resources).execute()
