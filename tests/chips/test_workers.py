"""What travels between the process that builds and those that read."""

import pickle
from dataclasses import replace

import pytest
from synthetic import Labels, two_regions

from bharateo.chips import workers as working
from bharateo.chips.build import build
from bharateo.chips.workers import Workers
from bharateo.config import PlanConfig
from bharateo.errors import BuildError, ConfigError

PLAN = PlanConfig("grid", 40, split=None)


def test_pixels_do_not_travel_workers_write_them_and_answer_in_a_few_bytes(tmp_path, monkeypatch):
    sizes = []
    outcome_of = working._Queue.outcome

    def weighed(queue, index, outcome):
        sizes.append(len(pickle.dumps(outcome)))
        return outcome_of(queue, index, outcome)

    alone = build(two_regions(), PLAN, tmp_path / "alone", 0)
    monkeypatch.setattr(working._Queue, "outcome", weighed)
    dataset = build(two_regions(), PLAN, tmp_path / "d", 0, workers=Workers(2))
    assert len(sizes) == 2
    assert max(sizes) < 1_000 < dataset.image(0).nbytes
    for path in alone.path.glob("*"):
        assert path.is_dir() or (dataset.path / path.name).read_bytes() == path.read_bytes()


class InAFolder(Labels):
    def places(self, scene=None):
        return ("mirror/worldcover",)


def test_a_relative_root_is_refused_where_workers_start_in_folders_of_their_own(tmp_path):
    source = replace(two_regions(), landcover=InAFolder())
    with pytest.raises(
        ConfigError, match=r"mirror/worldcover is a relative path.*give the whole path, e\.g\. /"
    ):
        build(source, PLAN, tmp_path / "d", 0, workers=Workers(scheduler="tcp://127.0.0.1:9"))


def test_a_worker_that_does_not_see_the_builds_folder_says_so(tmp_path, monkeypatch):
    from bharateo.chips.scratch import Scratch

    scratch = Scratch(tmp_path / "elsewhere", "uint16", 2, 40)
    with pytest.raises(BuildError, match="--output must be a folder that all workers share"):
        scratch.keep(None)
    assert not (tmp_path / "elsewhere").exists()


def test_the_folder_of_a_build_travels_as_a_whole_path(tmp_path, monkeypatch):
    from bharateo.chips.scratch import Scratch

    monkeypatch.chdir(tmp_path)
    travelled = pickle.loads(pickle.dumps(Scratch(working.Path("d/.build"), "uint16", 2, 40)))
    assert travelled.folder == tmp_path / "d" / ".build"
