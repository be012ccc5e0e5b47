"""The page on which a person answers the points of a survey: ``POINTS-label.html``.

It lies beside ``POINTS.gpkg`` and shows the pictures in ``POINTS-pictures/``. What it saves is
``POINTS.geojson``, which ``bharateo areas`` takes in place of the GeoPackage. Nothing on it says
what the map has at a point.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from jaxtyping import Float
from markupsafe import Markup
from numpy import ndarray

from bharateo.files import write_text
from bharateo.outputs import beginning_with, check_outputs
from bharateo.report.html import templates
from bharateo.report.point_pictures import picture_files
from bharateo.survey.sample import SampleRecord
from bharateo.version import __version__

_MARK = "BharatEO points</title>"


def write_points_page(
    points: Path,
    record: SampleRecord,
    lonlat: Float[ndarray, "2 point"],
    inputs: Sequence[str | Path],
) -> Path:
    """Write the page of a file of points; its path. ``lonlat`` are the points by their id, and
    ``inputs`` what it must not replace.

    Raises:
        ConfigError: what is there is somebody else's.
        StorageError: the disk is full or refuses.
    """
    page = points.with_name(f"{points.stem}-label.html")
    check_outputs("sample", {page: beginning_with(_MARK)}, inputs)
    own = files("bharateo.explorer").joinpath("page")
    style, *scripts = (
        own.joinpath(name).read_text(encoding="utf-8")
        for name in ("style.css", "data.js", "points.js")
    )
    pictures = picture_files(points, len(record.points))
    survey = {
        "sample": record.fingerprint[:16],
        "file": points.with_suffix(".geojson").name,
        "plan": points.with_suffix(".json").name,
        "map": record.map,
        "classes": [each.name for each in record.classes],
        "points": [
            [lon, lat, quote(picture.relative_to(points.parent).as_posix())]
            for lon, lat, picture in zip(*lonlat.tolist(), pictures, strict=True)
        ],
    }
    # no name in it can end the script that it stands in
    safe = json.dumps(survey).replace("<", "\\u003c")
    template = templates("explorer/page").get_template("points.html.j2")
    text = template.render(
        title=points.stem,
        survey=Markup(safe),
        num=len(record.points),
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        version=__version__,
    )
    write_text(page, text)
    return page
