import shutil
import subprocess

import pytest

from bharateo.verbs.cli import VERBS, main


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_names_every_verb(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert [verb for verb in VERBS if verb not in script] == []


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["bharateo", "pre"], {"pretrain"}),
        (["bharateo", "export", "--t"], {"--to"}),
        (["bharateo", "export", "--to", ""], {"hub", "timm", "onnx"}),
        (["bharateo", "evaluate", "a"], {"afolder", "a.yaml"}),
        (["bharateo", "build", "a"], {"afolder", "a.yaml"}),
    ],
)
def test_bash_completes_verbs_options_choices_and_paths(words, offered, capsys, tmp_path):
    if not shutil.which("bash"):
        pytest.skip("no bash")
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "afolder").mkdir()
    (tmp_path / "a.yaml").write_text("")
    quoted = " ".join(f"'{word}'" for word in words)
    program = (
        f"source ./script; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _bharateo; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert {line.rstrip() for line in done.stdout.splitlines()} == offered
