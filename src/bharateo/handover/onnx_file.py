"""A run as an ONNX file, for programs and browsers without PyTorch.

Two graphs, both fp32, of any number of chips, in physical units:

``encoder``: ``image`` (batch, band, row, col) float and ``valid`` (batch, row, col) bool in,
``features`` (batch, token, dim) out, tokens row-major. Of a run as it takes one of its sets of
bands (``Run.of_set``), images hold these bands alone.

``autoencoder``: also ``visible`` (batch, num_visible) and ``masked`` (batch, num_masked) int64 in,
which together hold every token's index once. Out come ``reconstruction`` (batch, band, row, col),
the image with its masked patches predicted and its missing pixels filled, and ``classes``
(batch, token, cls), probabilities, tokens row-major; each only if the run has that head. Any other
layer of a head comes out under its name, (batch, token, value).

The file's metadata say what it may be fed: bands, unit, statistics, sizes, classes, attribution.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bharateo.errors import ConfigError, RunError
from bharateo.files import write_bytes
from bharateo.landcover import BHARATEO_CLASSES
from bharateo.models.heads import Layer
from bharateo.models.patches import Mask, unpatchify
from bharateo.outputs import beginning_with, check_outputs
from bharateo.training.run import Run

What = Literal["encoder", "autoencoder"]

TOLERANCE = 1e-4
"""Largest difference from PyTorch allowed, of the root mean square of what is compared."""

OPSET = 18
_MARK = "written by bharateo export"


class EncoderGraph(nn.Module):
    """Features of every patch, nothing hidden."""

    inputs, outputs = ("image", "valid"), ("features",)

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.model, self.band_set = run.model, run.band_set

    def forward(self, image: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        """See the module."""
        num = self.model.num_tokens
        everything = torch.arange(num).expand(image.shape[0], num)
        return (self.model.encode(image, valid, Mask(everything, num), self.band_set),)


class AutoencoderGraph(nn.Module):
    """The image rebuilt and classified from its visible patches."""

    inputs = ("image", "valid", "visible", "masked")

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.model = run.model
        self.heads = run.heads
        layers = (layer for head in self.heads.by_name().values() for layer in head.layers())
        rebuilt = ["reconstruction"] if self.heads.rebuilding else []
        self.outputs = (*rebuilt, *map(layer_name, layers))

    def forward(
        self, image: Tensor, valid: Tensor, visible: Tensor, masked: Tensor
    ) -> tuple[Tensor, ...]:
        """See the module."""
        mask = Mask(torch.cat([visible, masked], 1), visible.shape[1])
        tokens = self.model(image, valid, mask)
        outputs = []
        if self.heads.rebuilding:
            predicted = self.heads.rebuilding.answer(tokens)[:, mask.num_visible :]
            patches = torch.cat([tokens.patches[:, : mask.num_visible], predicted], 1)
            normalised = unpatchify(
                mask.restore(patches), self.model.config.patch_px, self.model.grid
            )
            outputs.append(self.model.normalise.physical_units(normalised))
        for head in self.heads.by_name().values():
            if not (layers := head.layers()):
                continue
            predicted = mask.restore(head.answer(tokens))
            parts = predicted.split([layer.num_values for layer in layers], 2)
            for layer, values in zip(layers, parts, strict=True):
                outputs.append(values.softmax(2) if layer.classes else values)
        return tuple(outputs)


def layer_name(layer: Layer) -> str:
    """The output of a head's layer, e.g. ``ndvi``; ``classes`` of the land-cover classes."""
    if layer.classes == BHARATEO_CLASSES:
        return "classes"
    return re.sub(r"\W+", "_", layer.name.lower())


def write_onnx(run: Run, path: Path, what: What = "encoder") -> float:
    """Write the file; the largest difference from PyTorch that onnxruntime showed on random chips.

    The difference is in root mean squares of the output it is largest in.

    Raises:
        ConfigError: onnx, onnxscript or onnxruntime is not installed, ``path`` is another file, or
            an autoencoder is wanted of a set of bands.
        RunError: onnxruntime does not agree within ``TOLERANCE``; nothing is written.
        StorageError: the disk is full or refuses.
    """
    if what == "autoencoder" and run.band_set is not None:
        raise ConfigError(
            "the autoencoder rebuilds all bands and is exported with all: leave out --bands "
            f"{run.band_set}, or export the encoder"
        )
    check_outputs("export --to onnx", {path: beginning_with(_MARK)}, run.own_files)
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is not installed: add it with `pip install 'bharateo[onnx]'`"
        ) from error
    graph = (EncoderGraph if what == "encoder" else AutoencoderGraph)(run).eval()
    content = _exported(graph, _example(run, what, num_chips=3), _metadata(run, what))
    difference = largest_difference(graph, content, _example(run, what, num_chips=5))
    if difference > TOLERANCE:
        raise RunError(
            f"{run.path}: onnxruntime differs from PyTorch by {difference:.1e} of the {what}'s "
            f"output, more than {TOLERANCE:g}, so {path} was not written; please report it with "
            "the versions of torch, onnx and onnxruntime"
        )
    write_bytes(path, content)
    return difference


def largest_difference(graph: nn.Module, content: bytes, inputs: tuple[Tensor, ...]) -> float:
    """How far onnxruntime is from a graph, in root mean squares of the output."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    found = session.run(
        None, {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
    )
    with torch.no_grad():
        expected = graph(*inputs)
    return max(
        float((torch.from_numpy(there) - here).abs().max() / here.square().mean().sqrt())
        for here, there in zip(expected, found, strict=True)
    )


def _example(run: Run, what: What, num_chips: int) -> tuple[Tensor, ...]:
    """Random chips as the statistics of the run have them, with missing pixels and patches."""
    generator = torch.Generator().manual_seed(num_chips)
    model, size = run.model, run.model.config.chip_px
    noise = torch.randn(num_chips, run.sensor.num_bands, size, size, generator=generator)
    valid = torch.rand(num_chips, size, size, generator=generator) < 0.9
    valid[0, : model.config.patch_px, : model.config.patch_px] = False
    inputs = (run.normalise.physical_units(noise), valid)
    if what == "encoder":
        return inputs
    order = torch.rand(num_chips, model.num_tokens, generator=generator).argsort(1)
    num_visible = model.num_tokens // num_chips
    return (*inputs, order[:, :num_visible], order[:, num_visible:])


def _exported(graph: Any, example: tuple[Tensor, ...], metadata: Mapping[str, str]) -> bytes:
    """The graph as the bytes of an ONNX file."""
    import onnx

    batch = torch.export.Dim("batch")
    shapes: dict[str, dict[int, Any]] = {name: {0: batch} for name in graph.inputs}
    for name in {"visible", "masked"} & {*shapes}:
        shapes[name][1] = torch.export.Dim(f"num_{name}", max=graph.model.num_tokens - 1)
    # Without what the exporter says about itself, which its user can do nothing about.
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # torchvision is not installed
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
            warnings.filterwarnings("ignore", "# The axis name: .* will not be used", UserWarning)
            program = torch.onnx.export(
                graph,
                example,
                dynamo=True,
                input_names=graph.inputs,
                output_names=graph.outputs,
                dynamic_shapes=tuple(shapes.values()),
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    finally:
        registration.setLevel(level)
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # where in the source on this machine it came from
    proto.doc_string = f"{_MARK}: {metadata['what']}"  # stands before the graph
    onnx.helper.set_model_props(proto, dict(metadata))
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _metadata(run: Run, what: What) -> dict[str, str]:
    """The contract as text, by name; ``contract`` is the whole of it as JSON."""
    sensor = run.sensor
    contract = {
        **run.contract.to_json(),
        "dataset": {"fingerprint": run.contract.dataset.fingerprint},
    }
    return {
        "what": f"BharatEO {what}",
        "bands": ",".join(sensor.band_names),
        "unit": sensor.unit,
        "mean": json.dumps(run.normalise.mean.tolist()),
        "std": json.dumps(run.normalise.std.tolist()),
        "normalisation": "in the graph: give physical values, bands in this order",
        "chip_px": str(run.model.config.chip_px),
        "patch_px": str(run.model.config.patch_px),
        "classes": json.dumps([each.name for each in run.contract.class_scheme.classes]),
        "attribution": "\n".join(run.contract.attribution),
        "contract": json.dumps(contract),
    }
