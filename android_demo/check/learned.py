"""A bundle for the learned schedule: random weights, with shapes that 256 divides, and a predictor of random weights.

The default bundle has neither. Needs what the extra `train` brings.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from pmpd_edge import Pmpd, bundle
from pmpd_edge.bundle import Bundle, PredictorFile, StaticSchedule, Switch
from pmpd_edge.calibrate import network
from pmpd_edge.calibrate.network import Network, Shape, Trained

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "scripts"))
from random_bundle import make_bundle

SHAPE = {"hidden": 256, "layers": 3, "heads": 4, "kv_heads": 2, "ff": 768, "metadata": {"context_length": 512}}
LEVELS = ((8, "Q8_0"), (4, "Q4_K"), (2, "Q2_K"))
MAX_NEW_TOKENS = 24
SCHEDULE = StaticSchedule((Switch(1, 8), Switch(5, 4), Switch(12, 2)), MAX_NEW_TOKENS)
PAIR = (8, 2)
CLASSES = (0.0, 0.25, 0.5, 1.0)
SEED = 44  # of 300, the one with which oracle.py's prompts get the most different numbers of steps, none by a hair


def make(folder: Path) -> Bundle:
    """The bundle, always the same one."""
    made = bundle.update(make_bundle(folder, SHAPE, LEVELS), schedule=SCHEDULE)
    predictor = Trained(PAIR, _network(_shape(made)), temperature=1.0, prior=(0.25,) * len(CLASSES))
    path = folder / "predictor.gguf"
    network.write(
        path,
        trained=[predictor],
        classes=CLASSES,
        max_new_tokens=MAX_NEW_TOKENS,
        layer=-1,
        fingerprint=made.fingerprint,
    )
    return bundle.update(made, predictor=PredictorFile(path.name, bundle.sha256_file(path), (PAIR,), {}))


def _shape(made: Bundle) -> Shape:
    """Of the keys and values that the predictor will look at."""
    llm = Pmpd(made.path, n_threads=1)
    llm.eval([1])
    keys, values = llm.keys_values(-1)  # [n_tokens, n_head_kv, head_dim]
    llm.close()
    return Shape(keys.shape[1], keys.shape[2], values.shape[2], n_hidden=8, n_classes=len(CLASSES))


def _network(shape: Shape) -> Network:
    torch.manual_seed(SEED)
    made = Network(shape)
    for weights in made.parameters():  # every one of them counts
        scale = weights.shape[-1] ** -0.5 if weights.dim() > 1 else 0.5
        weights.data += scale * torch.randn(weights.shape)
    made.query.data *= shape.head_dim_k**0.5  # scores of about one: attention that tells positions apart
    return made
