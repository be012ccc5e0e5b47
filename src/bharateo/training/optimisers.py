"""Optimisers and the learning rate of every step."""

from __future__ import annotations

import math

import torch
from torch import nn

from bharateo.config import Config
from bharateo.models.vit import Block
from bharateo.training.muon import Muon


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step: linear warm-up, then cosine to zero over the run."""
    training = config.training
    if training.schedule == "cosine_epoch":
        epoch = step // steps_per_epoch
        return training.lr * 0.5 * (1 + math.cos(math.pi * epoch / training.epochs))
    warmup = training.warmup_epochs * steps_per_epoch
    if step < warmup:
        return training.lr * (step + 1) / warmup
    share = (step - warmup) / max(training.epochs * steps_per_epoch - warmup, 1)
    return training.lr * 0.5 * (1 + math.cos(math.pi * share))


def build_optimisers(module: nn.Module, config: Config) -> list[torch.optim.Optimizer]:
    """AdamW for every parameter, or Muon for the matrices of transformer blocks beside it.

    ``decay: matrices`` spares biases, norms and single vectors from weight decay. Muon's steps
    are scaled to AdamW's size, so one learning rate serves both. Source: Liu et al. 2025, "Muon
    is Scalable for LLM Training", section 2.2.
    """
    training = config.training
    in_blocks = {
        id(parameter)
        for block in module.modules()
        if isinstance(block, Block) and training.optimiser == "muon"
        for parameter in block.parameters()
        if parameter.ndim == 2
    }
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in module.parameters():
        if id(parameter) not in in_blocks:
            groups[training.decay == "all" or parameter.ndim > 1].append(parameter)
    adamw = torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": training.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=training.lr,
        betas=(0.9, training.beta2),
        fused=True,
    )
    if not in_blocks:
        return [adamw]
    matrices = [parameter for parameter in module.parameters() if id(parameter) in in_blocks]
    dtype = torch.float32 if training.precision == "fp32" else None  # None: what is fast here
    muon = Muon(matrices, training.lr, weight_decay=training.weight_decay, ns_dtype=dtype)
    return [adamw, muon]
