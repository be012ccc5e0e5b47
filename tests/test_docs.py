"""README and documentation: every command runs, every link leads somewhere, nothing is left out."""

import ast
import re
import shlex
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jaxtyping
import pytest

from bharateo.chips.store import Dataset
from bharateo.verbs.cli import VERBS, app, arguments_of
from documented import ROOT, RUN, Reader, blocks, pages, small_world, split_at

DOCS = ROOT / "docs"
PAGES = pages()
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.fixture(scope="module")
def written_from_code():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        import written_from_code

        yield written_from_code


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_and_snippet_of_the_readme_and_the_pages_runs(
    tmp_path, monkeypatch, capsys, subtests
):
    """In one folder, in the pages' order: later pages go on from what earlier ones made."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # ONNX sizes are no ints
    with small_world(tmp_path, monkeypatch) as folder:
        reader = Reader(capsys)
        for page in PAGES:
            with subtests.test(page=str(page.relative_to(ROOT))):
                reader.read(page)
        for made in (
            "runs/demo/run/report.html", "runs/demo/explore/index.html", "runs/v0/jaipur.json",
            "runs/v0/probes.json", "runs/ablation/ablation.md", "district-map.qml",
            "district-vectors.tif", "alike/found.geojson", "my-map/map.png",
            "my-hectares/hectares.html", "pune-areas.html", "my-map/polygons.gpkg",
            "hub/v0/README.md", "timm/v0/config.json", "v0.onnx", "runs/ndvi/evaluation.json",
        ):  # fmt: skip
            assert (folder / made).exists(), made
        assert Dataset.open("datasets/pune").sensor.name == "sentinel2-l2a"
        assert Dataset.open("datasets/radar").sensor.unit == "backscatter, dB"
        assert Dataset.open("datasets/chips").num_chips == 36


@every_page
def test_a_block_of_commands_or_code_runs_or_says_why_not(page):
    """Languages other than these are data; a fence that is misspelt would escape both."""
    for block in blocks(page):
        assert block.language in {*RUN, "yaml", "text", ""} or block.language.startswith("{"), block
        if block.mark:
            assert block.not_run or block.file or block.mark.startswith("rooms:"), block


@every_page
def test_code_that_does_not_run_is_python_all_the_same(page):
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, block.place, "exec")


# The site


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The site, built as ``make docs`` does."""
    out = tmp_path_factory.mktemp("site")
    dry = subprocess.run(
        ["make", "--dry-run", "docs"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (command,) = re.findall(r"^.* -m sphinx .*$", dry.stdout, re.M)  # make says where it is, too
    options = re.findall(r"--[a-z-]+", command)
    assert "--fail-on-warning" in options
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, "-d", out / "doctrees", DOCS, out / "html"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "html"


class _Page(HTMLParser):
    """Where the links and pictures of a page lead, and the anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors = {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("href", "src") and value is not None:
                self.targets.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_no_link_of_it_is_dead(site):
    found = {path: _Page(path.read_text()) for path in site.rglob("*.html")}
    assert len(found) > len(PAGES) - 1
    for path, page in found.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert there.exists(), f"{path.relative_to(site)}: {target}"
            if there in found and parts.fragment:
                anchors = found[there].anchors
                assert unquote(parts.fragment) in anchors, f"{path.relative_to(site)}: {target}"


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings on a code-hosting site."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    return {
        re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, flags=re.M)
    }


@every_page
def test_relative_links_lead_to_files_and_headings(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\((?![a-z]+:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if there.parent == ROOT / "docs" / "reference" / "api":
            continue  # written when the site is built, which follows its own links
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


# The reference


def test_every_key_of_the_configuration_has_a_meaning(written_from_code):
    text = written_from_code.configuration()
    for section, cls in written_from_code.sections():
        meanings = written_from_code.meanings(cls)
        for key in written_from_code.get_type_hints(cls):
            assert f"`{section}.{key}`" in text
            hint = written_from_code.get_type_hints(cls)[key]
            assert meanings.get(key) or list(written_from_code.inner_classes(hint)), key


def test_every_example_of_the_help_can_be_parsed(written_from_code):
    for name in VERBS:
        found = list(written_from_code.examples(name))
        assert found, name
        for example in found:
            words = split_at(shlex.split(example)[1:], ">")[0]
            app.parse_args(words, exit_on_error=False, print_error=False)


def test_every_option_of_every_verb_is_in_the_reference(written_from_code):
    text = written_from_code.command_line()
    for name in VERBS:
        part = text.partition(f"## bharateo {name}\n")[2].partition("\n## bharateo ")[0]
        for argument in arguments_of(name):
            for option in argument.names if argument.show else ():
                assert option in part, f"{name} {option}"


def test_every_word_of_the_glossary_has_its_hindi():
    rows = re.findall(r"^\| (.*?) \| (.*?) \| (.*?) \|$", (DOCS / "glossary.md").read_text(), re.M)
    assert len(rows) > 50
    for word, _, hindi in rows[1:]:
        assert re.search(r"[\u0900-\u097f]", hindi), word


def test_every_place_of_the_walk_is_in_the_code():
    """``path``: ``name`` or ``Class.name``, as the page writes them."""
    text = (ROOT / "docs" / "explanation" / "walk.md").read_text()
    places = re.findall(r"`([\w/]+\.py)`: `([\w.]+)`", text)
    assert len(places) > 20
    for file, name in places:
        body = ast.parse((ROOT / "src" / "bharateo" / file).read_text()).body
        for part in name.split("."):
            found = [each for each in body if getattr(each, "name", None) == part]
            assert found, f"{file} has no {name}"
            body = found[0].body
