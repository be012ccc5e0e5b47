"""A network that goes away: programs wait for it, and still end when they are told to."""

import signal
import subprocess
import sys
import time

import pytest

from range_server import Faults, RangeServer
from worldcover_tiles import patchy_codes, write_tile

READ = """
import sys
from bharateo.regions import Roi, worldcover_region
from bharateo.sources.worldcover import WorldCover
geobox = worldcover_region(Roi("x", 77.23, 28.61, 2048)).geobox
print(WorldCover(sys.argv[1]).read(geobox).valid.all())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("spare", [0, 1], ids=["header", "blocks"])
def test_ctrl_c_ends_a_program_that_waits_for_a_server(tmp_path, spare):
    write_tile(tmp_path, "N27E075", {(15656, 25736): patchy_codes(2048, 2048)})
    with RangeServer(tmp_path) as server:
        server.faults = Faults(spare=spare, busy=100_000)
        program = subprocess.Popen(
            [sys.executable, "-c", READ, server.url], stderr=subprocess.PIPE
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while len(server.gets) < spare + 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert program.poll() is None
        time.sleep(1.0)  # it waits longer now than it may take to end
        told = time.monotonic()
        program.send_signal(signal.SIGINT)
        _, said = program.communicate(timeout=60)
        assert time.monotonic() - told < 5
        assert b"KeyboardInterrupt" in said
