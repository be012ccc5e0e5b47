"""The page of a survey: areas by class with their intervals, and how accurate the map is."""

from __future__ import annotations

from pathlib import Path

from bharateo.files import write_text
from bharateo.outputs import Own, beginning_with
from bharateo.report.html import templates
from bharateo.survey.areas import AreasRecord, shown

PAGE_MARK = "BharatEO areas</title>"


def page_path(output: Path) -> Path:
    """Where the page of a table lies."""
    return output.with_suffix(".html")


def page_products(output: Path) -> dict[Path, Own]:
    """The page, and how it is known to be one."""
    return {page_path(output): beginning_with(PAGE_MARK)}


def write_page(output: Path, record: AreasRecord) -> None:
    """Write the page beside the table ``output``.

    Raises:
        StorageError: the disk is full or refuses.
    """
    template = templates("report").get_template("areas.html.j2")
    text = template.render(record=record, shown=shown, title=f"{record.map}, signed")
    write_text(page_path(output), text)
