"""Weights from a file that anybody may have written: safetensors of the promised form, or refused.

Nothing of the file is ever executed; a pickle is recognised by its first bytes and not opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bharateo.artefacts import shortened
from bharateo.errors import RunError
from bharateo.files import open_file
from bharateo.training.contract import Contract

_PICKLES = (b"PK\x03\x04", b"\x80")
"""How files of ``torch.save`` begin: a zip archive with a pickle in it, or a pickle."""


def not_its_weights(file: Path, reason: object) -> RunError:
    """The refusal of a file that is not what its contract names."""
    return RunError(
        f"{file} does not hold the weights its contract names ({reason}); "
        "restore the file or pretrain again into another folder"
    )


def load_weights(
    file: Path, contract: Contract, build: Callable[[], nn.Module], least_values: int
) -> nn.Module:
    """The module that ``build`` makes, with the tensors of a safetensors file in it.

    It holds ``least_values`` numbers or more: no memory is taken for it if the file holds fewer.

    Raises:
        RunError: the file is a pickle, damaged, missing or not the one the contract was written
            with, or its tensors are others than the module's, or hold values that are no numbers.
    """
    try:
        _refuse_pickle(file)
        _check_sum(file, contract)
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise not_its_weights(file, shortened(str(error))) from error
    num_values = sum(each.numel() for each in tensors.values())
    if num_values < least_values:
        raise not_its_weights(file, f"{num_values:,} values of {least_values:,} or more")
    try:
        module = build()
    except Exception as error:  # whatever a layer says of sizes that are none
        reason = f"no such model can be built: {shortened(str(error))}"
        raise not_its_weights(file, reason) from error
    if wrong := _difference(tensors, module.state_dict()):
        raise not_its_weights(file, wrong)
    module.load_state_dict(tensors)
    return module


def _refuse_pickle(file: Path) -> None:
    with open_file(file) as opened:
        start = opened.read(9)
        # Safetensors begin with eight bytes of length, whose first may be a pickle's, and a brace.
        if start.startswith(_PICKLES) and start[8:] != b"{":
            raise RunError(
                f"{file} is a pickle, which may run any program, and no safetensors; nothing in it "
                "was executed: restore the file, or get the run from someone you trust"
            )


def _check_sum(file: Path, contract: Contract) -> None:
    """Refuse a file that is not the one the contract was written with, if the contract says."""
    promised = contract.weights
    if promised is None:
        return
    size = file.stat().st_size
    if size != promised.bytes:
        raise not_its_weights(file, f"{size} bytes of {promised.bytes}")
    with open_file(file) as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != promised.sha256:
            raise not_its_weights(file, "its SHA-256 is another")


def _difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """The first tensor that is not as expected, None if all are."""
    for name in sorted({*found, *expected}):
        if name not in expected:
            return f"{shortened(name)} is not the model's"
        if name not in found:
            return f"{name} is missing"
        there, wanted = ((t.dtype, tuple(t.shape)) for t in (found[name], expected[name]))
        if there != wanted:
            return f"{name} is {there[0]} {shortened(str(there[1]))}, not {wanted[0]} {wanted[1]}"
        if not found[name].isfinite().all():
            return f"{name} holds values that are no numbers"
    return None
