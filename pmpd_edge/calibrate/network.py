"""The predictor's network in torch, as it is trained, and its file, as native/pmpd/predictor.cpp reads it.

The mathematics are there a second time; tests/calibrate/test_network.py holds both against each other.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pmpd_edge.calibrate.examples import Pair

ARCHITECTURE = "pmpd-predictor"
VERSION = 1
PREFIX = "pmpd.predictor"


@dataclass(frozen=True)
class Shape:
    """Sizes of a network: of the keys and values that it looks at, and its own."""

    n_head_kv: int
    head_dim_k: int
    head_dim_v: int
    n_hidden: int
    n_classes: int


class Network(nn.Module):
    """Attention of one trained query per KV head over the positions, then a two-layer perceptron.

    After the paper's learned scheduler (PMPD, ICLR 2025). Unlike its code, heads are concatenated, not averaged before
    attending, and the output is logits, as cross entropy wants them.

    At the beginning it attends to all positions alike and gives every class the same logit.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        n_values = shape.n_head_kv * shape.head_dim_v
        self.query = nn.Parameter(torch.zeros(shape.n_head_kv, shape.head_dim_k))
        self.norm = nn.LayerNorm(n_values, eps=1e-5)
        self.hidden = nn.Linear(n_values + 1, shape.n_hidden)
        self.output = nn.Linear(shape.n_hidden, shape.n_classes)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, keys: Tensor, values: Tensor, n_tokens: Tensor) -> Tensor:
        """Logits, `[batch, n_classes]`.

        Args:
            keys, values: `[batch, longest, n_head_kv, head_dim]`; what lies behind a prompt's last token is not seen.
            n_tokens: of each prompt, `[batch]`.
        """
        scores = torch.einsum("hd,bthd->bht", self.query, keys) / math.sqrt(self.shape.head_dim_k)
        behind = torch.arange(keys.shape[1]) >= n_tokens[:, None]  # [batch, longest]
        weights = scores.masked_fill(behind[:, None], -math.inf).softmax(dim=-1)  # [batch, n_head_kv, longest]
        pooled = torch.einsum("bht,bthd->bhd", weights, values).flatten(1)
        length = torch.log1p(n_tokens[:, None].to(pooled.dtype))  # pooling does not see it
        features = torch.cat([self.norm(pooled), length], dim=1)
        logits: Tensor = self.output(nn.functional.gelu(self.hidden(features)))
        return logits


@dataclass(frozen=True)
class Trained:
    """A pair's network and what goes with it.

    Attributes:
        temperature: logits are divided by it, which makes their softmax as sure as it is right.
        prior: how often each class was right in training, `[n_classes]`.
    """

    pair: Pair
    network: Network
    temperature: float
    prior: tuple[float, ...]


def write(
    path: Path,
    *,
    trained: Sequence[Trained],
    classes: Sequence[float],
    max_new_tokens: int,
    layer: int,
    fingerprint: str,
) -> None:
    """Write a predictor: whole, or not at all.

    Args:
        trained: the networks, all of one shape.
        classes: shares of `max_new_tokens`, rising.
        layer: whose keys and values they look at; -1 is the last.
        fingerprint: of the bundle that they were trained for.
    """
    from gguf import GGUFWriter

    unfinished = path.with_name(f"{path.name}.unfinished")
    writer = GGUFWriter(unfinished, ARCHITECTURE)
    try:
        _add(writer, trained, classes)
        writer.add_string(f"{PREFIX}.fingerprint", fingerprint)
        writer.add_int32(f"{PREFIX}.layer", layer)
        writer.add_uint32(f"{PREFIX}.max_new_tokens", max_new_tokens)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(unfinished, path)
    finally:
        writer.close()
        unfinished.unlink(missing_ok=True)


def _add(writer: Any, trained: Sequence[Trained], classes: Sequence[float]) -> None:
    shape = trained[0].network.shape
    writer.add_uint32(f"{PREFIX}.version", VERSION)
    writer.add_uint32(f"{PREFIX}.head_count_kv", shape.n_head_kv)
    writer.add_uint32(f"{PREFIX}.key_length", shape.head_dim_k)
    writer.add_uint32(f"{PREFIX}.value_length", shape.head_dim_v)
    writer.add_uint32(f"{PREFIX}.hidden_length", shape.n_hidden)
    writer.add_array(f"{PREFIX}.classes", [float(share) for share in classes])
    writer.add_array(f"{PREFIX}.pairs.high", [one.pair[0] for one in trained])
    writer.add_array(f"{PREFIX}.pairs.low", [one.pair[1] for one in trained])
    writer.add_array(f"{PREFIX}.pairs.temperature", [one.temperature for one in trained])
    writer.add_array(f"{PREFIX}.pairs.prior", [share for one in trained for share in one.prior])
    for number, one in enumerate(trained):
        for name, weights in one.network.state_dict().items():  # query, norm.weight, norm.bias, hidden.weight, ...
            writer.add_tensor(f"{PREFIX}.{number}.{name}", weights.float().contiguous().numpy())
