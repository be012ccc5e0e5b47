"""A run on somebody's ground: vectors, maps, places alike, a page; and for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from bharateo.errors import ConfigError, ContractError
from bharateo.verbs.arguments import (
    Colours,
    DatasetLike,
    Location,
    MaybeDevice,
    MaybeDisplay,
    MaybeReading,
    Output,
    Outputs,
    PathLike,
    Paths,
    Points,
    Precision,
    Readout,
    RunLike,
    Stride,
    list_of_paths,
    open_dataset,
    open_run,
)

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

    from bharateo.chips.store import Dataset
    from bharateo.display import Display
    from bharateo.evaluation.own_classes import OwnClasses
    from bharateo.inference.domain import Domain
    from bharateo.inference.inputs import RasterInput
    from bharateo.inference.map import MapRecord
    from bharateo.training.run import Run


def embed(
    run: RunLike,
    location: Annotated[Location, Parameter(name="INPUT")],
    outputs: Outputs,
    *,
    dtype: Literal["float16", "float32", "int8"] = "float16",
    stride_px: Stride = None,
    step: Annotated[int | None, Parameter(metavar="TOKENS")] = None,
    precision: Precision = "fp32",
    level: Literal["patch", "chip"] = "patch",
    readout: Readout = "token",
    reading: MaybeReading = None,
    device: MaybeDevice = None,
    display: MaybeDisplay = None,
) -> list[Path]:
    """A run's vectors of a raster of any size, or of a dataset.

    Asks a run's frozen encoder for the vector of every patch of a raster (path or URL), tiles, a
    Sentinel-2 product, a STAC item or a dataset. Windows overlap by half a chip and are blended: no
    seams. Memory does not grow with the raster. Killed and run again, it goes on where it stopped.

      bharateo embed runs/v0 district.tif --output district-vectors.tif
      bharateo embed runs/v0 district.tif -o vectors.tif -o vectors.parquet
      bharateo embed runs/v0 district.tif --output fine.tif --stride 4 --dtype int8
      bharateo embed runs/v0 datasets/v0 --output v0.parquet --level chip

    .tif is a cloud-optimised GeoTIFF in the raster's own reference system: a band for each
    dimension, a pixel for each patch, overviews. .parquet is GeoParquet: a row for each patch with
    its outline, its centre (lon, lat) and its vector. A patch without a valid pixel is nodata in
    the one and has no row in the other.

    Args:
        run: a folder made by pretrain
        location: a raster, a folder of tiles or a list of them (.txt), a Sentinel-2 product (.SAFE,
            .zip), a STAC item (.json), or a dataset folder
        outputs: what to write, .tif or .parquet; repeat for both
        dtype: of a vector's numbers (a .tif keeps float16 in Float32, rounded to half floats,
            which compresses to the same size and which every GDAL and QGIS opens); int8: .tif
            only, each band with its own GDAL scale and offset
        stride_px: distance of vectors in pixels, a divisor of the patch size such as 8 or 4
            (default: the patch size). Each is of the whole patch around its pixel's centre; time
            grows by (patch / PX) squared, and the grid begins (patch - PX) / 2 pixels inside the
            raster
        step: distance of windows in patches (default: half a chip's); smaller is smoother and
            slower, a whole chip's leaves seams
        precision: of the model's arithmetic; auto: bf16 where the processor has it
        level: of a dataset: one row a patch, or a chip with the mean of its patches
        readout: views: the mean over a chip's eight flips and turns, each a quarter of a patch
            aside, which is worth more to probes and takes eight times as long; views+energies:
            beside it the same mean of the energies that the encoder was given, worth more yet

    Returns:
        The files.

    Raises:
        ConfigError: an output or an option does not fit.
        ContractError: the input breaks the run's contract.
        SourceError: the input cannot be read.
    """
    from bharateo.chips.store import DATASET_FILE, Dataset
    from bharateo.display import Display
    from bharateo.inference.embed import (
        Embedding,
        embed_dataset,
        embed_raster,
        embedding_products,
    )
    from bharateo.memory import return_freed_memory
    from bharateo.outputs import check_ending, check_outputs

    return_freed_memory()
    outputs = list_of_paths(outputs)
    how = Embedding(dtype, stride_px, step, precision, level, readout)
    for output in outputs:
        check_ending(output, "vectors are a GeoTIFF or GeoParquet", ".tif", ".parquet")
    check_outputs("embed", embedding_products(outputs), [location])
    opened, display = open_run(run, device), display or Display()
    is_dataset = (Path(location) / DATASET_FILE).exists()
    with display.bar("embed") as bar:
        if is_dataset:
            dataset = Dataset.open(location)
            embed_dataset(opened, dataset, outputs, how, bar.update, display.say)
        else:
            opened, source = _open_raster(opened, location, reading, display)
            embed_raster(opened, source, outputs, how, bar.update, display.say)
    for output in outputs:
        display.say(f"embedding: {output}")
    return outputs


def map_raster(
    run: RunLike,
    location: Annotated[Location, Parameter(name="RASTER")],
    output: Output,
    *,
    probe: PathLike | None = None,
    against: Annotated[Location | None, Parameter(metavar="LABELS")] = None,
    colours: Colours = (),
    stride_px: Stride = None,
    precision: Precision = "fp32",
    reading: MaybeReading = None,
    device: MaybeDevice = None,
    display: MaybeDisplay = None,
) -> MapRecord:
    """A land-cover map of a raster of any size.

    Maps the classes of a raster (path or URL) or a STAC item, by the run's land-cover head, a probe
    on its features, or the dense head of a run that finetune made, which maps every pixel. Memory
    does not grow with the raster. Killed and run again, it goes on where it stopped.

      bharateo map runs/v0 district.tif --output district-map.tif
      bharateo map runs/v0 district.tif --output fine.tif --stride 4
      bharateo map runs/v0 district.tif -o map.tif --probe wells/probe.safetensors
      bharateo map runs/v0 district.tif --output map.tif --against worldcover
      bharateo map crops district.tif --output crops.tif

    MAP.tif holds the classes, with their colours and names. Beside it lie MAP-probabilities.tif,
    MAP-uncertainty.tif (entropy, and what is out of the domain: ground or numbers unlike all the
    run was trained on) and, with --against, MAP-suspect.tif; a style for each, which QGIS takes
    by itself, and MAP.qlr with all bands as layers; MAP.png, a picture with a legend; MAP.json
    (areas, agreement, provenance). `bharateo hectares` says what a district has of each class.

    Args:
        run: a folder made by pretrain or finetune
        location: a raster (path or URL), a folder of tiles or a list of them (.txt), a Sentinel-2
            product (.SAFE, .zip) or a STAC item (.json)
        output: the map to write, MAP.tif; its other files get their names
        probe: a probe (.safetensors) to map with (default: the dense head, if there is one, else
            the run's land-cover head)
        against: labels to compare with, of which those that the map finds hard to believe are
            mapped as suspect: a raster of WorldCover codes, `worldcover` for the product itself,
            or where WorldCover tiles lie: a folder, an http(s) URL or an s3 URL that holds
            v200/2021/map/...
        colours: a class's colour, such as water=#0064c8; repeat for others (default: those that
            people know for what a class is called, in English or Hindi)
        stride_px: side of a cell of the map in pixels, a divisor of the patch size such as 8 or 4
            (default: the patch size); time grows by (patch / PX) squared. A dense head's cells are
            pixels
        precision: of the model's arithmetic; auto: bf16 where the processor has it

    Returns:
        The map's record, as MAP.json holds it.

    Raises:
        ConfigError: an option does not fit.
        ContractError: the raster breaks the run's contract.
        RunError: the run has no land-cover head, or the probe is not of this run.
        SourceError: the raster or the labels cannot be read.
    """
    from dataclasses import replace

    from bharateo.display import Display
    from bharateo.evaluation.own_classes import probe_classifier
    from bharateo.inference.dense import dense_classifier
    from bharateo.inference.labels import open_labels
    from bharateo.inference.legend import parse_colours, recoloured
    from bharateo.inference.map import MapRequest, head_classifier, own_products, write_map
    from bharateo.memory import return_freed_memory
    from bharateo.outputs import check_ending, check_outputs

    return_freed_memory()
    output, inputs = Path(output), [each for each in (location, probe, against) if each]
    check_ending(output, "a map is a GeoTIFF", ".tif")
    check_outputs("map", own_products(output), inputs)
    opened, display = open_run(run, device), display or Display()
    chosen = parse_colours(colours)
    labels = None if against is None else open_labels(str(against))
    opened, source = _open_raster(opened, location, reading, display)
    if probe is not None:
        classifier = probe_classifier(opened, Path(probe))
    else:
        classifier = dense_classifier(opened) or head_classifier(opened)
    classifier = replace(classifier, classes=recoloured(classifier.classes, chosen))
    domain = _domain(opened, display)
    request = MapRequest(classifier, domain, labels, stride_px, precision)
    with display.bar("map") as bar:
        record = write_map(opened, source, output, request, bar.update, display.say)
    for line in record.lines():
        display.say(line)
    display.say(f"map: {output}")
    return record


def teach(
    source: Annotated[PathLike, Parameter(name="INPUT")],
    points: Paths,
    output: Output,
    *,
    location: Annotated[Location | None, Parameter(name="RASTER")] = None,
    class_field: str | None = None,
    colours: Colours = (),
    stride_px: Annotated[int, Parameter(name="--stride", metavar="PX")] = 1,
    precision: Precision = "fp32",
    reading: MaybeReading = None,
    device: MaybeDevice = None,
    display: MaybeDisplay = None,
) -> OwnClasses:
    """Your points or polygons into a map of your raster.

    Finds what tells your classes apart best, says how well that will do on other ground, maps the
    raster with your classes, a cell a pixel, and names 20 places to label next. Five points a class
    are a start; spread them out, 1.3 km apart (128 px at 10 m) where you can.

      bharateo teach district.tif --points wells.gpkg --output wells
      bharateo teach district.tif --points crops.csv --class-field crop --output c
      bharateo teach runs/v0 district.tif --points wells.gpkg --output wells-2
      bharateo teach district.tif --points wells.gpkg \\
          --points wells/label-next.geojson --output wells-3

    Tried are the raster's bands with the indices they allow, energies (how much of every pattern
    lies around a pixel), in the third form the vectors of a run, and their sums, each with logistic
    regression, a random forest and gradient boosting. The best by cross-validation makes the map: a
    run that does not help is not used. Places near each other are held out together, and the score
    that is told is that of choosing, which the best one's own score flatters.

    Points and polygons are a GeoPackage, GeoJSON, Shapefile or FlatGeobuf in any reference system;
    points a .csv with lon and lat, too. Open label-next.geojson in QGIS, fill in the field `class`
    of the places you know, and give it as one more --points.

    Args:
        source: a raster (path or URL), a folder of tiles or a list of them (.txt), a Sentinel-2
            product (.SAFE, .zip) or a STAC item (.json); or a run, if RASTER follows
        points: points or polygons with their classes; repeat for several files
        output: gets map.tif with its other files, probe.json, label-next.geojson, and of a run
            probe.safetensors
        location: a raster or STAC item, after a run
        class_field: the field that holds the classes (default: class, label, name or the like)
        colours: a class's colour, such as wells=#0064c8; repeat for others (default: those that
            people know for what a class is called, in English or Hindi)
        stride_px: side of a cell of the map in pixels
        precision: of the model's arithmetic; auto: bf16 where the processor has it

    Returns:
        What was chosen, with all scores, as probe.json holds it, with the record of the map.

    Raises:
        ConfigError: the points cannot be used.
        ContractError: the raster breaks the run's contract.
        SourceError: the raster cannot be read.
    """
    from bharateo.display import Display
    from bharateo.evaluation.own_classes import (
        NEXT_FILE,
        OfRun,
        map_own_classes,
        own_class_products,
    )
    from bharateo.inference.contract import grid_resolution
    from bharateo.inference.inputs import open_alone
    from bharateo.inference.legend import parse_colours
    from bharateo.inference.points import read_all_points
    from bharateo.outputs import check_outputs

    output, points, display = Path(output), list_of_paths(points), display or Display()
    raster = source if location is None else location
    check_outputs("teach", own_class_products(output), [str(raster), *points])
    of_run = None
    if location is not None:
        opened, seen = _open_raster(open_run(source, device), location, reading, display)
        of_run = OfRun(opened, seen, _domain(opened, display), precision)
    chosen = parse_colours(colours)
    labelled = read_all_points(points, class_field)
    if of_run is None:
        whole = open_alone(str(raster), reading)
        for note in whole.notes:
            display.say(note)
    else:  # on the run's grid
        whole = open_alone(str(raster), reading, grid_resolution(of_run.run.sensor))
    with display.bar("teach") as bar:
        record = map_own_classes(
            whole, labelled, output, bar.update, display.say, of_run, stride_px, chosen
        )
    for line in (*record.lines(), *record.map.lines()):
        display.say(line)
    display.say(f"map: {output / 'map.tif'}; to label next: {output / NEXT_FILE}")
    return record


def _open_raster(
    run: Run, location: Location, reading: MaybeReading, display: Display
) -> tuple[Run, RasterInput]:
    """A raster as a run's input, and the run as it takes the raster's bands; which set of them that
    is, and what was allowed to differ, is said.
    """
    from bharateo.inference.inputs import open_input

    source = open_input(str(location), run.contract, reading)
    run = run.of_set(source.band_set)
    if run.band_set is not None:
        display.say(f"bands: {location} is read in {run.bands_read}")
    for note in source.notes:
        display.say(note)
    for field, differs in source.overridden.items():
        display.say(f"allowed: {field}: {differs}")
    return run, source


def _domain(run: Run, display: Display) -> Domain | None:
    """The run's domain, None where its dataset has gone before it was known."""
    from bharateo.errors import DatasetError
    from bharateo.inference.domain import domain_of

    try:
        with display.bar("domain") as bar:
            return domain_of(run, bar.update)
    except DatasetError as error:
        display.say(f"warning: what is out of the run's domain stays unknown: {error}")
        return None


def search(
    embedding: Annotated[PathLike, Parameter(name="EMBEDDING")],
    like: Points,
    output: Output,
    *,
    location: Annotated[Location | None, Parameter(name="INPUT")] = None,
    count: int = 20,
    away_m: Annotated[float | None, Parameter(name="--away", metavar="METRES")] = None,
    reading: MaybeReading = None,
    device: MaybeDevice = None,
    display: MaybeDisplay = None,
) -> GeoDataFrame:
    """Places like a given one: GeoJSON and a contact sheet.

    Finds the patches of an embedded area that are most like the one at a point, by the angle
    between their vectors. Every vector is compared; memory does not grow with their size. Writes
    OUTPUT/found.geojson (rank 0 is the place asked for), and OUTPUT/sheet.png where the area's
    pixels are still where they were.

      bharateo search district.tif --like 77.2536,28.6607 --output yamuna
      bharateo search runs/v0 district.tif --like 77.25,28.66 --like 77.3,28.55 -o r
      bharateo search vectors.parquet --like 77.2536,28.6607 --output yamuna

    The first form needs no model: cells of 16 pixels are compared by their bands and textures
    (log-energies of whitened filters). The second takes a run and embeds a dataset or raster first,
    into OUTPUT; the third what `bharateo embed` wrote (.parquet or .tif). How good a search is says
    `bharateo score-search`.

    Args:
        embedding: a raster; a run, if INPUT follows; or vectors made by embed
        like: a point in degrees, such as 77.2536,28.6607; repeat for the mean of several
        output: the folder to write into
        location: a dataset or raster to embed first
        count: places to find
        away_m: least distance of every place found from those asked for and from better ones
            (default: two sides of a patch)

    Returns:
        The places, best first.

    Raises:
        ConfigError: a point lies outside the area.
        SourceError: the file is missing or holds no vectors.
    """
    from bharateo.chips.store import DATASET_FILE
    from bharateo.display import Display
    from bharateo.files import write_json
    from bharateo.inference.area import holds_pixels, open_area
    from bharateo.inference.embed import embed_features, embedding_products
    from bharateo.inference.inputs import open_alone
    from bharateo.inference.search import dataset_of, with_classes
    from bharateo.inference.search import search as find
    from bharateo.outputs import beginning_with, check_outputs, json_of
    from bharateo.report.contact_sheet import SHEET_MARK, write_contact_sheet

    if count < 1:
        raise ConfigError(f"--count {count}: ask for one place at least")
    places = [_lonlat(point) if isinstance(point, str) else point for point in like]
    folder, display = Path(output), display or Display()
    if location is not None:
        ending = "parquet" if (Path(location) / DATASET_FILE).exists() else "tif"
        file = folder / f"embedding.{ending}"
        embed(embedding, location, file, reading=reading, device=device, display=display)
        embedding = file
    elif holds_pixels(str(embedding)):
        file = folder / "embedding.tif"
        check_outputs("search", embedding_products([file]), [embedding])
        source = open_alone(str(embedding), reading)
        with display.bar("features") as bar:
            embed_features(source, file, bar.update, display.say)
        embedding = file
    found_file, sheet = folder / "found.geojson", folder / "sheet.png"
    products = {found_file: json_of("search"), sheet: beginning_with(SHEET_MARK)}
    check_outputs("search", products, [embedding])
    area = open_area(Path(embedding))
    with display.bar("search") as bar:
        found = find(area, places, count, away_m, bar.update)
    if dataset := dataset_of(area):
        found = with_classes(found, dataset)
        counts = found["class"][found["rank"] > 0].value_counts()
        display.say("found: " + ", ".join(f"{num} {name}" for name, num in counts.items()))
    about = {"product": "search", "embedding": dict(area.provenance)}
    write_json(found_file, found.to_geo_dict(drop_id=True) | about)
    display.say(f"places: {found_file}")
    if write_contact_sheet(sheet, found, area):
        display.say(f"contact sheet: {sheet}")
    else:
        display.say("no contact sheet: the pixels the vectors are of are not where they were")
    return found


def _lonlat(text: str) -> tuple[float, float]:
    try:
        lon, lat = (float(part) for part in text.split(","))
    except ValueError:
        lon = lat = float("nan")
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        swapped = f"; the other way round: --like {lat:.10g},{lon:.10g}"
        raise ConfigError(
            f"--like {text!r} is no longitude, latitude in degrees, such as 77.2536,28.6607"
            f"{swapped if abs(lon) <= 90 < abs(lat) <= 180 else ''}"
        )
    return lon, lat


def explore(
    run: RunLike,
    output: Output,
    *,
    dataset: DatasetLike | None = None,
    raster: Location | None = None,
    megabytes: float | None = None,
    reading: MaybeReading = None,
    device: MaybeDevice = None,
    display: MaybeDisplay = None,
) -> Path:
    """A page to explore a run in a browser, from disk or any web server.

    Writes a static page: the area with layers to switch and blend (true and false colour, labels,
    predicted class, uncertainty, suspect labels, out of domain, reconstruction error); the patches
    most like those you click and least like those you click as unlike, saved as GeoJSON; labels
    that you click and paint, saved as `teach --points` takes them; and chips on which you paint a
    mask and see the model rebuild them at once. The model runs in the browser; nothing is fetched
    from elsewhere. The page's address holds its state.

      bharateo explore runs/v0 --output explorers/v0
      bharateo explore runs/v0 --dataset datasets/jaipur --output explorers/jaipur
      bharateo explore runs/pune-s2 --raster district.tif -o explorers/district

    Open OUTPUT/index.html, or put the folder on any web server. It shows the dataset the run was
    trained on unless told otherwise; of large ground it shows a part, and says so. Killed and run
    again, it goes on where it stopped; the page is there once it is whole.

    Args:
        run: a folder made by pretrain
        output: the folder to write; a page that is there is replaced
        dataset: a dataset other than the run's own
        raster: a raster (path or URL), tiles, a Sentinel-2 product or a STAC item of the run's
            bands, instead of a dataset
        megabytes: largest size of the folder (default: 25); a model too big for it stays out, and
            with it the painting

    Returns:
        The path of the page.

    Raises:
        ConfigError: the runtime or onnx is not installed, or ``output`` holds something else.
        ContractError: the ground breaks the run's contract.
        DatasetError: the run's own dataset has gone.
        SourceError: the raster cannot be read.
    """
    from bharateo.display import Display
    from bharateo.explorer.write import MOST_MEGABYTES, write_explorer
    from bharateo.memory import return_freed_memory

    if raster is not None and dataset is not None:
        raise ConfigError("--raster and --dataset: show the one or the other")
    return_freed_memory()
    opened, output, display = open_run(run, device), Path(output), display or Display()
    ground: Dataset | RasterInput
    if raster is not None:
        opened, ground = _open_raster(opened, raster, reading, display)
        if opened.band_set is not None:
            raise ContractError(
                f"bands: {raster} is read in {opened.bands_read}, and a page to explore needs all: "
                "give a raster that holds them"
            )
    else:
        ground = opened.own_dataset() if dataset is None else open_dataset(dataset)
    domain = _domain(opened, display)
    with display.bar("explore") as bar:
        page = write_explorer(
            opened, ground, output, bar.update, display.say, megabytes or MOST_MEGABYTES, domain
        )
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    display.say(f"explorer: {page} ({size / 1e6:.1f} MB); open it in a browser")
    return page


def export(
    run: RunLike,
    to: Literal["hub", "timm", "onnx"],
    output: Output,
    *,
    what: Literal["encoder", "autoencoder"] | None = None,
    bands: Annotated[str | None, Parameter(metavar="SET")] = None,
    licence: Annotated[str | None, Parameter(name="--license", metavar="ID")] = None,
    display: MaybeDisplay = None,
) -> None:
    """A run for other programs: a Hub folder, timm weights, an ONNX file.

    Writes a run in a form that other programs load, and says what they may be fed.

      hub:  a folder with safetensors, contract and a model card written from
            the run; copy it, or upload it by `hf upload USER/NAME FOLDER`.
            BharatEOEncoder.from_pretrained reads both, and every verb takes the
            folder as RUN.
      timm: a folder for timm.create_model('local-dir:FOLDER', pretrained=True):
            the encoder, with the normalisation folded in. It knows no missing
            pixels.
      onnx: one file, compared with PyTorch before it is written.

      bharateo export runs/v0 --to hub --output hub/v0 --license cc-by-4.0
      bharateo export runs/v0 --to timm --output timm/v0
      bharateo export runs/v0 --to onnx --output v0.onnx
      bharateo export runs/v0 --to onnx --what autoencoder --output v0-mae.onnx
      bharateo export runs/any-bands --to onnx --bands rgb --output rgb.onnx

    Args:
        run: a folder made by pretrain
        to: what to write
        output: the folder (hub, timm) or file (onnx) to write
        what: onnx: the encoder, or the whole with its masked tokens and heads (default: encoder)
        bands: onnx (encoder) and timm: for images that hold one of the run's sets of bands alone
            (see `model.band_sets`; default: all bands; a Hub folder has all sets)
        licence: hub: the weights' licence on the card, as the Hub names it (default: cc-by-4.0
            where the labels are, else other)

    Raises:
        ConfigError: a package that the format needs is not installed, or ``output`` is a run.
        ContractError: the run was not trained on that set of bands.
        RunError: onnxruntime does not agree with PyTorch; nothing is written.
        StorageError: the disk is full.
    """
    from bharateo.display import Display
    from bharateo.outputs import check_ending

    for option, value, form in (("what", what, "onnx"), ("license", licence, "hub")):
        if value is not None and to != form:
            raise ConfigError(f"--{option} is for --to {form}: leave it out for {to}")
    if bands is not None and to == "hub":
        raise ConfigError("--bands is for --to onnx and timm: a Hub folder has all sets of bands")
    if to == "onnx":
        check_ending(Path(output), "this is an ONNX file", ".onnx")
    opened, output, display = open_run(run).of_set(bands), Path(output), display or Display()
    if to == "hub":
        from bharateo.handover.hub import save_folder

        save_folder(opened, output, licence)
    elif to == "timm":
        from bharateo.handover.timm_weights import write_timm

        write_timm(opened, output)
    else:
        from bharateo.handover.onnx_file import write_onnx

        what = what or "encoder"
        display.say(f"onnx: exporting the {what}; this takes a minute at most")
        difference = write_onnx(opened, output, what)
        display.say(f"onnxruntime differs from PyTorch by {difference:.1e} of the output at most")
    sensor = opened.sensor
    display.say(f"{to}: {output}, for {', '.join(sensor.band_names)} in {sensor.unit}")
