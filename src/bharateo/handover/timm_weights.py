"""A run's encoder as weights of ``timm``'s ``VisionTransformer``, which loads them unchanged.

The patch embedding takes physical units: the normalisation of the run, (x - mean) / std per band,
is folded into it. What timm's model cannot say is that a pixel is missing: give it chips without
missing pixels, or fill them with their patch's mean, as the run does, and expect other vectors
where whole parts of a patch are missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from bharateo.errors import ConfigError
from bharateo.files import write_bytes, write_json
from bharateo.models.mae import V0
from bharateo.outputs import check_outputs, free_name, json_with
from bharateo.training.contract import CONTRACT_FILE, MODEL_FILE
from bharateo.training.run import Run

ARCHITECTURE = "vit_base_patch16_clip_224"
"""The name timm builds the model from. Of all its vision transformers only those named after CLIP
have the LayerNorm epsilon of PyTorch, 1e-5, that ours has; sizes and the rest are told."""

_NAMES = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.proj",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
"""Layers of a block: our name -> timm's. Both split ``qkv`` in thirds, then in heads."""


def timm_arguments(run: Run) -> dict[str, Any]:
    """Arguments of ``timm.models.VisionTransformer`` for the run's encoder, but ``norm_layer``."""
    model = run.model.config
    return {
        "img_size": model.chip_px,
        "patch_size": model.patch_px,
        "in_chans": run.sensor.num_bands,
        "num_classes": 0,
        "global_pool": "",
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.num_heads,
        "mlp_ratio": model.mlp_ratio,
        "class_token": False,
        "pre_norm": False,
        "final_norm": isinstance(run.model, V0),
    }


def timm_state(run: Run) -> dict[str, Tensor]:
    """State dict of timm's ``VisionTransformer(**timm_arguments(run), norm_layer=LayerNorm)``, of
    all bands or of the set that the run is to take.

    ``forward_features`` of it, fed with an image in physical units (batch band row col), is what
    the run's encoder says of every patch (batch token dim), row-major.

    Raises:
        ConfigError: the run embeds patches in a way that timm has no layers for.
    """
    model: Any = run.model
    if model.config.embedding != "linear":
        raise ConfigError(
            f"{run.path}: timm's models embed patches by a linear map alone, this run's embedding "
            f"is {model.config.embedding!r}: use `bharateo export --to onnx` or `--to hub`, or "
            "pretrain with model.embedding=linear"
        )
    # One convolution by patches does what normalisation and embedding do together.
    patch_px = model.config.patch_px
    weight, bias = (each.detach().double() for each in model.embed.linear_map(run.band_set))
    weight = weight.view(-1, run.sensor.num_bands, patch_px, patch_px)
    mean, std = (each.double()[:, None, None] for each in (run.normalise.mean, run.normalise.std))
    bias = bias - (weight * mean / std).sum((1, 2, 3))
    state = {
        "pos_embed": model.positions.detach()[None],
        "patch_embed.proj.weight": (weight / std).float(),
        "patch_embed.proj.bias": bias.float(),
    }
    for number, block in enumerate(model.encoder):
        for ours, theirs in _NAMES.items():
            layer = block.get_submodule(ours)
            state[f"blocks.{number}.{theirs}.weight"] = layer.weight.detach()
            state[f"blocks.{number}.{theirs}.bias"] = layer.bias.detach()
    if isinstance(model, V0):
        state |= {"norm.weight": model.norm.weight.detach(), "norm.bias": model.norm.bias.detach()}
    return {name: value.contiguous() for name, value in state.items()}


def write_timm(run: Run, folder: Path) -> None:
    """Write a folder for ``timm.create_model("local-dir:FOLDER", pretrained=True)``.

    It holds ``model.safetensors`` and ``config.json`` as timm reads it, with the run's contract.

    Raises:
        ConfigError: the folder is that of a run, or holds other weights or settings, or the run
            embeds patches in a way that timm has no layers for.
        StorageError: the disk is full or refuses.
    """
    if (folder / CONTRACT_FILE).exists():
        raise ConfigError(
            f"{folder} is the folder of a run: choose another: --output {free_name(folder)}"
        )
    config = folder / "config.json"
    # The mark of both: safetensors writes several entries of its metadata in any order.
    ours = json_with("bharateo")
    products = {folder / MODEL_FILE: lambda _: ours(config), config: ours}
    check_outputs("export --to timm", products, run.own_files)
    content = save(timm_state(run), {"format": "pt"})
    bands, size = run.sensor.num_bands, run.model.config.chip_px
    timm_config = {
        "architecture": ARCHITECTURE,
        "num_classes": 0,
        "num_features": run.model.config.width,
        "model_args": timm_arguments(run),
        "pretrained_cfg": {
            "input_size": [bands, size, size],
            "fixed_input_size": True,
            "mean": [0.0] * bands,
            "std": [1.0] * bands,
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        "bharateo": {
            **run.contract.to_json(),
            "dataset": {"fingerprint": run.contract.dataset.fingerprint},
        },
    }
    write_json(config, timm_config)
    write_bytes(folder / MODEL_FILE, content)
