"""What a raster may make GDAL open: nothing but itself."""

import os
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from xml.sax.saxutils import escape

import numpy as np
import pytest
import rasterio
from affine import Affine

import bharateo
from bharateo.errors import BharatEOError, CorruptRasterError
from bharateo.pixels.cog import cog_tags
from bharateo.pixels.raster import open_raster
from bharateo.report.notebook import _thin
from range_server import RangeServer
from tiny_rasters import write_raster

SECRET = 77
"""What every pixel of the private file holds."""

TEXT = b"root:x:0:0:a private text file, 64 bytes and more of it, as they lie"

SIDE = 64


@pytest.fixture
def private(tmp_path):
    """A folder of files that no raster of a stranger may show."""
    folder = tmp_path / "private"
    folder.mkdir()
    (folder / "text").write_bytes(TEXT * SIDE)
    write_raster(folder / "secret.tif", np.full((1, SIDE, SIDE), SECRET, np.uint8))
    return folder


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@pytest.fixture
def outside():
    """A server that nobody should call: its address, and what was called."""
    calls = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            calls.append(self.path)
            self.send_error(404)

        do_HEAD = do_POST = do_GET

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", calls
    server.shutdown()
    server.server_close()


def vrt(*bands, side=SIDE, srs="EPSG:32643"):
    return (
        f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}"><SRS>{srs}</SRS>'
        f"<GeoTransform>500000,10,0,3000000,0,-10</GeoTransform>{''.join(bands)}</VRTDataset>"
    )


def sourced(file, extra="", relative=0):
    return (
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="{relative}">{escape(str(file))}</SourceFilename>'
        f"<SourceBand>1</SourceBand>{extra}</SimpleSource></VRTRasterBand>"
    )


def raw(file):
    return (
        '<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">'
        f'<SourceFilename relativeToVRT="0">{file}</SourceFilename></VRTRasterBand>'
    )


def wms(address):
    return (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{address}/${{z}}/${{x}}/${{y}}.png</ServerUrl>'
        "</Service><DataWindow><UpperLeftX>0</UpperLeftX><UpperLeftY>10</UpperLeftY>"
        "<LowerRightX>10</LowerRightX><LowerRightY>0</LowerRightY><TileLevel>2</TileLevel>"
        "<TileCountX>1</TileCountX><TileCountY>1</TileCountY></DataWindow><Projection>EPSG:4326"
        "</Projection><BandsCount>3</BandsCount></GDAL_WMS>"
    )


def innocent(path):
    return write_raster(path, np.ones((1, SIDE, SIDE), np.uint8))


def shown(location):
    """All that a reader could get of a raster, whole and thinned and masks; nothing if refused."""
    try:
        file = open_raster(str(location), vrt=True)
        if file is None:
            return b""
        with file:
            parts = [file.read_window(0, 0, *file.shape), file.read_thinned(2)]
            if hasattr(file, "read_known"):
                parts += file.read_known(0, 0, *file.shape)
            return b"".join(part.tobytes() for part in parts)
    except BharatEOError as error:
        assert "\n" not in str(error)
        return b""


def holds_private(content):
    return TEXT[:20] in content or bytes([SECRET]) * 16 in content


DISGUISES = {
    "a VRT with a raw band of a text file": lambda private, address: vrt(raw(private / "text")),
    "a VRT of a private GeoTIFF": lambda private, address: vrt(sourced(private / "secret.tif")),
    "a VRT of an address": lambda private, address: vrt(sourced(f"/vsicurl/{address}/a.tif")),
    "a WMS description": lambda private, address: wms(address),
}


@pytest.mark.parametrize("served", [False, True])
@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_text_that_names_other_files_is_no_raster_whatever_it_is_called(
    private, place, outside, disguise, served
):
    address, calls = outside
    (place / "x.tif").write_text(DISGUISES[disguise](private, address))
    with RangeServer(place) as server:
        where = f"{server.url}/x.tif" if served else str(place / "x.tif")
        assert not holds_private(shown(where))
        with pytest.raises(CorruptRasterError, match=r"x\.tif cannot be read \(it is no raster"):
            open_raster(where)
        if not served:
            assert cog_tags(place / "x.tif") == {}
            with pytest.raises(CorruptRasterError):
                _thin(where, 1)
    assert calls == []


@pytest.mark.parametrize("served", [False, True])
def test_a_raster_that_names_its_overviews_is_refused(private, place, outside, served):
    address, calls = outside
    for named in (vrt(sourced(private / "secret.tif"), side=32), f"/vsicurl/{address}/a.tif"):
        path = innocent(place / "x.tif")
        with rasterio.open(path, "r+") as file:
            file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=named)
        with RangeServer(place) as server:
            where = f"{server.url}/x.tif" if served else str(path)
            assert not holds_private(shown(where))
            with pytest.raises(CorruptRasterError, match="names another file as its overviews"):
                open_raster(where)
        path.unlink()
    assert calls == []


@pytest.mark.parametrize("ending", [".msk", ".ovr", ".aux.xml", ".MSK", ".OVR", ".AUX.XML"])
@pytest.mark.parametrize("served", [False, True])
def test_files_beside_a_raster_show_no_other_file(private, place, outside, ending, served):
    address, calls = outside
    path = innocent(place / "x.tif")
    for source in (private / "secret.tif", f"/vsicurl/{address}/a.tif"):
        text = vrt(sourced(source), side=SIDE // 2 if ending.lower() == ".ovr" else SIDE)
        if ending.lower() == ".aux.xml":
            named = vrt(sourced(source), side=SIDE // 2)
            text = (
                '<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">'
                f"{escape(named)}</MDI></Metadata></PAMDataset>"
            )
        path.with_name(f"x.tif{ending}").write_text(text)
        with RangeServer(place) as server:
            assert not holds_private(shown(f"{server.url}/x.tif" if served else path))
    assert calls == []


def test_overviews_beside_a_raster_name_no_overviews_of_their_own(private, place):
    path = innocent(place / "x.tif")
    half = np.ones((1, SIDE // 2, SIDE // 2), np.uint8)
    overviews = write_raster(place / "o.tif", half).rename(place / "x.tif.ovr")
    with rasterio.open(overviews, "r+") as file:
        named = vrt(sourced(private / "secret.tif"), side=16)
        file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=named)
    with pytest.raises(CorruptRasterError, match="names another file as its overviews"):
        open_raster(str(path))


@pytest.mark.parametrize(
    "text",
    [
        "<PAMDataset><SRS>{address}/srs</SRS></PAMDataset>",
        '<!DOCTYPE a [<!ENTITY b SYSTEM "{private}/text">]><PAMDataset><SRS>&b;</SRS></PAMDataset>',
    ],
)
def test_a_reference_system_beside_a_raster_is_not_fetched(private, place, outside, text):
    address, calls = outside
    path = innocent(place / "x.tif")
    path.with_name("x.tif.aux.xml").write_text(text.format(address=address, private=private))
    assert not holds_private(shown(path))
    assert calls == []


def test_what_lies_beside_a_raster_is_read_as_gdal_reads_it(place):
    values = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(1, SIDE, SIDE)
    path = write_raster(place / "x.tif", values, nodata=None)
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as file:
        file.build_overviews([2], rasterio.enums.Resampling.average)
    Path(f"{path}.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><Description>red</Description><Scale>0.5</Scale>'
        "</PAMRasterBand></PAMDataset>"
    )
    with rasterio.open(path) as gdal, open_raster(str(path)) as file:
        assert file.band_names == gdal.descriptions == ("red",)
        assert file.units == ((0.5, 0.0),)
        np.testing.assert_array_equal(file.read_window(0, 0, SIDE, SIDE), values)
        halved = gdal.read(out_shape=(1, SIDE // 2, SIDE // 2))
        np.testing.assert_array_equal(file.read_thinned(2), halved)
        assert (halved != values[:, ::2, ::2]).any()
        assert set(file.identity["beside"]) == {"x.tif.aux.xml", "x.tif.ovr"}


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_world_file_says_where_a_raster_lies(place):
    path = place / "x.tif"
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": 8, "width": 8}
    with rasterio.open(path, "w", crs="EPSG:32643", **profile) as file:
        file.write(np.ones((1, 8, 8), np.uint8))
    (place / "x.tfw").write_text("10\n0\n0\n-10\n500005\n2999995\n")
    assert open_raster(str(path)).geobox.affine == Affine(10, 0, 500000, 0, -10, 3000000)


# Things that are no files


def special(path, kind):
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
@pytest.mark.parametrize("name", ["x.tif", "x.vrt", "x.tif.msk", "x.tif.ovr", "x.tif.aux.xml"])
def test_what_is_no_file_is_refused_at_once(place, kind, name):
    path = innocent(place / "x.tif")
    special(place / name, kind)
    start = time.monotonic()
    with pytest.raises(CorruptRasterError, match=f"{name} cannot be read"):
        open_raster(str(place / name if name == "x.vrt" else path), vrt=True)
    assert cog_tags(path) == ({} if name != "x.vrt" else cog_tags(path))
    assert time.monotonic() - start < 5


def test_a_source_of_a_vrt_may_be_no_pipe(place):
    os.mkfifo(place / "a.tif")
    (place / "x.vrt").write_text(vrt(sourced("a.tif", relative=1)))
    with pytest.raises(CorruptRasterError, match=r"a\.tif cannot be read"):
        open_raster(str(place / "x.vrt"), vrt=True)


# VRT


def test_a_vrt_that_a_person_names_is_read(place):
    (place / "parts").mkdir()
    left = np.full((1, SIDE, SIDE), 1, np.uint8)
    write_raster(place / "parts" / "left.tif", left)
    source = (
        "<SourceFilename relativeToVRT='{}'>{}</SourceFilename><SourceBand>1</SourceBand>"
        "<SrcRect xOff='0' yOff='0' xSize='32' ySize='64'/>"
        "<DstRect xOff='{}' yOff='0' xSize='32' ySize='64'/>"
    )
    right = write_raster(place / "parts" / "right.tif", left + 1)
    (place / "x.vrt").write_text(
        vrt(
            "<VRTRasterBand dataType='Byte' band='1'><Metadata><MDI key='a'>b</MDI></Metadata>"
            "<NoDataValue>0</NoDataValue><Description>red</Description>"
            f"<SimpleSource>{source.format(1, 'parts/left.tif', 0)}</SimpleSource>"
            f"<ComplexSource>{source.format(0, right.absolute(), 32)}<NODATA>0</NODATA>"
            "</ComplexSource></VRTRasterBand>"
        )
    )
    file = open_raster(str(place / "x.vrt"), vrt=True)
    values = file.read_window(0, 0, SIDE, SIDE)[0]
    np.testing.assert_array_equal(values, np.repeat([[1] * 32 + [2] * 32], SIDE, 0))
    assert file.band_names == ("red",)
    assert file.nodata == (0,)
    before = file.identity
    write_raster(right, np.full((1, SIDE, SIDE), 3, np.uint16), nodata=9)
    assert open_raster(str(place / "x.vrt"), vrt=True).identity != before


def test_a_vrt_that_nobody_named_is_refused(place, private):
    innocent(place / "a.tif")
    (place / "x.vrt").write_text(vrt(sourced("a.tif", relative=1)))
    with pytest.raises(CorruptRasterError, match="neither GeoTIFF nor JPEG 2000"):
        open_raster(str(place / "x.vrt"))
    with RangeServer(place) as server, pytest.raises(CorruptRasterError, match="neither GeoTIFF"):
        open_raster(f"{server.url}/x.vrt", vrt=True)


DERIVED = (
    '<VRTRasterBand dataType="Byte" band="1" subClass="VRTDerivedRasterBand">'
    "<PixelFunctionLanguage>Python</PixelFunctionLanguage><PixelFunctionType>f</PixelFunctionType>"
    "<PixelFunctionCode>open('{place}/ran', 'w')</PixelFunctionCode></VRTRasterBand>"
)

BAD_VRTS = {
    "outside its folder": lambda p, a: vrt(sourced(p / "secret.tif")),
    "up and out of it": lambda p, a: vrt(sourced("../private/secret.tif", relative=1)),
    "by a link": lambda p, a: vrt(sourced("link.tif", relative=1)),
    "a raw band": lambda p, a: vrt(raw(p / "text")),
    "a raw band, spelt otherwise": lambda p, a: vrt(raw(p / "text").replace("subC", "subc")),
    "a raw band of a link": lambda p, a: vrt(raw("link.txt")),
    "an address": lambda p, a: vrt(sourced(f"/vsicurl/{a}/a.tif")),
    "a bare address": lambda p, a: vrt(sourced(f"{a}/a.tif")),
    "a text in place of a name": lambda p, a: vrt(sourced(vrt(sourced(p / "secret.tif")))),
    "another VRT": lambda p, a: vrt(sourced("inner.vrt", relative=1)),
    "a part of a file": lambda p, a: vrt(sourced(f"GTIFF_DIR:1:{p}/secret.tif")),
    "a description of a server": lambda p, a: vrt(sourced("wms.tif", relative=1)),
    "options": lambda p, a: vrt(
        sourced("a.tif", "<OpenOptions><OOI key='GEOREF_SOURCES'>PAM</OOI></OpenOptions>", 1)
    ),
    "overviews of another file": lambda p, a: vrt(
        sourced("a.tif", relative=1).replace(
            "</VRTRaster",
            f"<Overview><SourceFilename>{p}/secret.tif</SourceFilename><SourceBand>1</SourceBand>"
            "</Overview></VRTRaster",
        )
    ),
    "a function in Python": lambda p, a: vrt(DERIVED.replace("{place}", str(p.parent / "place"))),
    "a warped raster": lambda p, a: vrt(sourced("a.tif", relative=1)).replace(
        "<VRTDataset", '<VRTDataset subClass="VRTWarpedDataset"'
    ),
    "entities": lambda p, a: (
        f'<!DOCTYPE a [<!ENTITY b SYSTEM "{p}/text">]>' + vrt(sourced("a.tif", relative=1))
    ),
    "no XML": lambda p, a: "<VRTDataset",
    "another XML": lambda p, a: wms(a),
    "a reference system to fetch": lambda p, a: vrt(sourced("a.tif", relative=1), srs=f"{a}/srs"),
}


@pytest.mark.parametrize("kind", BAD_VRTS)
def test_a_vrt_shows_only_rasters_below_its_folder(private, place, outside, kind):
    address, calls = outside
    innocent(place / "a.tif")
    (place / "link.tif").symlink_to(private / "secret.tif")
    (place / "link.txt").symlink_to(private / "text")
    (place / "wms.tif").write_text(wms(address))
    (place / "inner.vrt").write_text(vrt(sourced(private / "secret.tif")))
    (place / "x.vrt").write_text(BAD_VRTS[kind](private, address))
    assert not holds_private(shown(place / "x.vrt"))
    assert calls == []
    assert not (place / "ran").exists()
    if kind != "a reference system to fetch":
        with pytest.raises(CorruptRasterError):
            open_raster(str(place / "x.vrt"), vrt=True)


def test_one_module_opens_rasters():
    """Every other goes through it."""
    folder = Path(bharateo.__file__).parent
    readers = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        for line in path.read_text().splitlines()
        if "rasterio.open" in line and '"w"' not in line
    }
    assert readers == {"pixels/formats.py"}
