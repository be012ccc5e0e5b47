"""What the README promises beside its commands, which ``test_docs`` runs."""

import re
import subprocess

from documented import ROOT, blocks, commands

README = (ROOT / "README.md").read_text()


def test_the_make_targets_the_readme_names_call_what_it_says():
    called = {
        words[1]: subprocess.run(
            ["make", "--dry-run", "--no-print-directory", *words[1:]],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for block in blocks(ROOT / "README.md")
        for words in commands(block)
        if block.language == "bash" and words[0] == "make"
    }
    assert called["demo"].rstrip().endswith("bharateo demo")
    assert "-m pytest" in called["test"]


def test_targets_the_readme_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`", README):
        assert f"\n{target}:" in makefile, target


def test_the_readme_prints_the_attribution_of_its_data():
    for line in ("ESA WorldCover project 2021", "10.5281/zenodo.7254221", "OpenStreetMap", "ODbL"):
        assert line in README
