from pathlib import Path

import pytest
import torch

from bharateo.training import engine


def test_auto_is_bf16_where_the_processor_has_it(monkeypatch):
    for native, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(engine, "has_native_bf16", lambda native=native: native)
        assert engine.resolve_precision("auto") == expected
        assert engine.resolve_precision("fp32") == "fp32"
        assert engine.resolve_precision("bf16") == "bf16"


@pytest.mark.parametrize(
    ("flags", "native"), [("fpu avx512_bf16", True), ("amx_bf16", True), ("avx512f", False)]
)
def test_the_processors_flags_say_what_it_has(monkeypatch, flags, native):
    monkeypatch.setattr(Path, "read_text", lambda self: f"flags : {flags}\n")
    assert engine.has_native_bf16() is native


def test_a_machine_that_does_not_tell_has_none(monkeypatch):
    def refuse(self):
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert not engine.has_native_bf16()


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_products_run_in_the_precision_asked_for(precision, dtype):
    with engine.autocast(precision)():
        assert torch.nn.Linear(4, 4)(torch.zeros(2, 4)).dtype == dtype
