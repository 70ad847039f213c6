"""Predictors with random weights, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pmpd_edge.calibrate import network
from pmpd_edge.calibrate.network import Network, Shape, Trained

CLASSES = (0.0, 0.25, 0.5, 1.0)
SMALL = Shape(n_head_kv=2, head_dim_k=8, head_dim_v=4, n_hidden=5, n_classes=4)


def random_network(shape: Shape = SMALL, seed: int = 0) -> Network:
    """A network in which every weight counts; the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Network(shape)
        for weights in made.parameters():
            scale = weights.shape[-1] ** -0.5 if weights.dim() > 1 else 0.5
            weights.data += scale * torch.randn(weights.shape)
    made.query.data *= shape.head_dim_k**0.5  # scores of about one: attention that tells positions apart
    return made


def write(path: Path, *networks: Network, fingerprint: str = "abc", temperature: float = 1.0) -> Path:
    """Write a predictor file with the pairs 8-2, 8-3, ...; classes and priors are of the networks' number."""
    n_classes = networks[0].shape.n_classes
    prior = tuple(np.arange(1, n_classes + 1) / sum(range(1, n_classes + 1)))
    trained = [Trained((8, 2 + i), one, temperature, prior) for i, one in enumerate(networks)]
    classes = [i / (n_classes - 1) for i in range(n_classes)]
    network.write(path, trained=trained, classes=classes, max_new_tokens=64, layer=-1, fingerprint=fingerprint)
    return path


def keys_values(shape: Shape, n_tokens: int, seed: int = 0, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Random keys and values as a cache gives them, each `[n_tokens, n_head_kv, head_dim]`."""
    rng = np.random.default_rng(seed)
    keys = scale * rng.standard_normal((n_tokens, shape.n_head_kv, shape.head_dim_k))
    values = rng.standard_normal((n_tokens, shape.n_head_kv, shape.head_dim_v))
    return keys.astype(np.float32), values.astype(np.float32)


def in_torch(made: Network, keys: np.ndarray, values: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """The probabilities of each class as torch computes them, in double precision: the oracle."""
    with torch.no_grad():
        double = Network(made.shape).double()
        double.load_state_dict(made.state_dict())
        arrays = [torch.from_numpy(array).double()[None] for array in (keys, values)]
        logits = double(*arrays, torch.tensor([len(keys)]))[0] / temperature
        return logits.softmax(dim=0).numpy()
