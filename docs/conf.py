"""The documentation site: ``make docs`` writes it to docs/_build/html."""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from written_from_code import WRITTEN, gather_notebooks, write_rooms  # noqa: E402

import bharateo  # noqa: E402

project = "BharatEO"
author = "the BharatEO authors"
project_copyright = "the BharatEO authors; Apache-2.0"
version = release = bharateo.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

smartquotes = False  # else --option becomes a dash and a word

html_theme = "furo"
html_title = "BharatEO"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # `make notebooks` has run them
nb_merge_streams = True  # lines of progress are one output
copybutton_exclude = ".linenos, .gp"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
nitpick_ignore = [("py:exc", "RasterioError")]  # rasterio's own
autodoc_typehints = "none"  # shapes such as Float[Tensor, "batch band"] are in the signatures' text
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Raises", "Raises")]


gather_notebooks()
write_rooms()


def fill(_app, _page: str, source: list[str]) -> None:
    """Put what is written from the code in the place of its mark."""
    for mark, write in WRITTEN.items():
        if mark in source[0]:
            source[0] = source[0].replace(mark, write())


written: list[str] = []


def keep_as_written(_app, _what: str, _name, _obj, _options, lines: list[str]) -> None:
    """Before napoleon: what stands in the code."""
    written[:] = lines


def take_back(_app, what: str, _name, _obj, _options, lines: list[str]) -> None:
    """Undo what napoleon made of properties and attributes: a colon there starts no type."""
    if what in ("property", "attribute"):
        lines[:] = written


def for_everyone(_app, _page: str, _template: str, context: dict, _doctree) -> None:
    """What scrolls takes the keyboard, and headings of the sidebar say their level."""
    scrolls = r'<(pre|table class="docutils[^"]*")'
    context["body"] = re.sub(scrolls, r'<\1 tabindex="0"', context.get("body") or "")
    tree = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = tree.replace(
        'role="heading"', 'role="heading" aria-level="2"'
    )


def setup(app) -> None:
    """Connect them to Sphinx."""
    app.connect("source-read", fill)
    app.connect("html-page-context", for_everyone, priority=900)
    app.connect("autodoc-process-docstring", keep_as_written, priority=100)
    app.connect("autodoc-process-docstring", take_back, priority=900)
