"""Trains the learned scheduler's predictor, and says what it is worth on prompts that it was not trained on.

What a network is worth is found by cross-validation: each fifth of the prompts is judged by a network that was trained
on the others, so that the report rests on all of them and none has seen its own. The network that is kept is trained in
the same way on all prompts. It knows nothing about llama.cpp, files and screens.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pmpd_edge.calibrate.examples import Example, Pair
from pmpd_edge.calibrate.network import Network, Shape, Trained
from pmpd_edge.calibrate.report import Report, report
from pmpd_edge.errors import PmpdError
from pmpd_edge.schedule.learned import CONFIDENCE

Progress = Callable[[str, float], None]

LEAST = 20  # prompts: fewer tell nothing
FOLDS = 5  # of the cross-validation; of the prompts that a network may see, one in so many decides when to stop
HIDDEN = 64
EPOCHS = 100
PATIENCE = 12  # epochs without a better loss on held-out prompts
BATCH = 32
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
TEMPERATURES = np.geomspace(0.5, 100, 201)


@dataclass(frozen=True)
class Result:
    """A trained pair, and what its training is worth."""

    trained: Trained
    report: Report


def train(
    *,
    examples: Sequence[Example],
    classes: Sequence[float],
    confidence: float = CONFIDENCE,
    seed: int = 0,
    progress: Progress = lambda label, fraction: None,
) -> list[Result]:
    """Train a predictor for each pair of precisions that the examples are labelled for.

    Args:
        examples: with the same pairs each; of several with one prompt the last one counts, so that no prompt is on both
            sides of a split.
        classes: shares of the longest answer, rising; labels count into them.
        confidence: at which the report's costs are measured.
        seed: the same one gives the same networks.
        progress: called with what is being done and the fraction of it.

    Raises:
        PmpdError: there are too few different prompts.
    """
    different = list({example.prompt: example for example in examples}.values())
    if len(different) < LEAST:
        raise PmpdError(f"{len(different)} different prompts, at least {LEAST} are needed", "give more text")
    random.Random(seed).shuffle(different)
    results = []
    for pair in sorted(different[0].labels, reverse=True):
        name = f"training {pair[0]}-{pair[1]}"
        data = _Data.of(different, pair, len(classes))
        results.append(_train(data, pair, classes, confidence, seed, partial(progress, name)))
    return results


@dataclass(frozen=True)
class _Data:
    """Examples of one pair: keys and values each `[n_tokens, n_head_kv, head_dim]`, labels `[n_examples]`."""

    keys: list[Tensor]
    values: list[Tensor]
    labels: Tensor
    n_classes: int

    @classmethod
    def of(cls, examples: Sequence[Example], pair: Pair, n_classes: int) -> _Data:
        return cls(
            [torch.from_numpy(example.keys) for example in examples],
            [torch.from_numpy(example.values) for example in examples],
            torch.tensor([example.labels[pair] for example in examples]),
            n_classes,
        )

    def shape(self) -> Shape:
        _, n_head_kv, head_dim_k = self.keys[0].shape
        return Shape(n_head_kv, head_dim_k, self.values[0].shape[2], HIDDEN, self.n_classes)

    def logits(self, network: Network, indices: Sequence[int]) -> Tensor:
        """A network's output for some of the examples, `[len(indices), n_classes]`."""
        rows = []
        for at in range(0, len(indices), BATCH):
            some = indices[at : at + BATCH]
            keys = pad_sequence([self.keys[i] for i in some], batch_first=True).float()
            values = pad_sequence([self.values[i] for i in some], batch_first=True).float()
            rows.append(network(keys, values, torch.tensor([len(self.keys[i]) for i in some])))
        return torch.cat(rows)

    def prior(self, indices: Sequence[int], pseudo_count: float = 0.0) -> Tensor:
        """How often each class is right among some of the examples, `[n_classes]`."""
        counts = torch.bincount(self.labels[indices], minlength=self.n_classes) + pseudo_count
        return counts / counts.sum()


def _train(
    data: _Data,
    pair: Pair,
    classes: Sequence[float],
    confidence: float,
    seed: int,
    progress: Callable[[float], None],
) -> Result:
    everything = list(range(len(data.labels)))
    probabilities = np.zeros((len(everything), data.n_classes))
    priors = np.zeros_like(probabilities)
    for fold in range(FOLDS):
        unseen = everything[fold::FOLDS]
        rest = [index for index in everything if index % FOLDS != fold]
        network, temperature = _fit(data, rest, seed, _part(progress, fold, FOLDS + 1))
        with torch.no_grad():
            probabilities[unseen] = (data.logits(network, unseen) / temperature).double().softmax(dim=1).numpy()
        priors[unseen] = data.prior(rest, pseudo_count=0.5).numpy()
    network, temperature = _fit(data, everything, seed, _part(progress, FOLDS, FOLDS + 1))
    prior = tuple(data.prior(everything).tolist())
    return Result(
        Trained(pair, network, temperature, prior),
        report(pair, np.array(classes), data.labels.numpy(), probabilities, priors, confidence),
    )


def _part(progress: Callable[[float], None], done: int, of: int) -> Callable[[float], None]:
    """The progress of one of several things that take equally long."""
    return lambda fraction: progress((done + fraction) / of)


def _fit(data: _Data, indices: Sequence[int], seed: int, progress: Callable[[float], None]) -> tuple[Network, float]:
    """Train a network on most of some prompts; the others of them decide when to stop, and the temperature.

    Rare classes weigh as much as frequent ones while it learns. That takes their frequencies out of the probabilities;
    they are put back in what is returned, and wherever its loss is looked at.
    """
    held_out = indices[::FOLDS]
    learning = [index for number, index in enumerate(indices) if number % FOLDS]
    frequencies = data.prior(learning)
    weights = torch.where(frequencies > 0, 1 / frequencies.clamp(min=1e-9), 0.0)
    log_prior = data.prior(learning, pseudo_count=0.5).log()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(data.shape())
        _learn(data, network, learning, held_out, weights, log_prior, progress)
    with torch.no_grad():
        temperature = _temperature(data.logits(network, held_out), log_prior, data.labels[held_out])
        network.output.bias.add_(temperature * log_prior)  # for logits that will be divided by it
    return network, temperature


def _learn(
    data: _Data,
    network: Network,
    learning: Sequence[int],
    held_out: Sequence[int],
    weights: Tensor,
    log_prior: Tensor,
    progress: Callable[[float], None],
) -> None:
    """Train until the loss on held-out prompts no longer falls; leaves the weights at which it was lowest."""
    loss_of = nn.CrossEntropyLoss(weight=weights)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    best, best_epoch = _held_out_loss(data, network, held_out, log_prior), 0
    best_state = copy.deepcopy(network.state_dict())
    for epoch in range(1, EPOCHS + 1):
        order = [learning[i] for i in torch.randperm(len(learning)).tolist()]
        for at in range(0, len(order), BATCH):
            some = order[at : at + BATCH]
            loss = loss_of(data.logits(network, some), data.labels[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found = _held_out_loss(data, network, held_out, log_prior)
        if found < best:
            best, best_epoch = found, epoch
            best_state = copy.deepcopy(network.state_dict())
        progress(epoch / EPOCHS)
        if epoch - best_epoch >= PATIENCE:
            break
    network.load_state_dict(best_state)
    progress(1.0)


def _held_out_loss(data: _Data, network: Network, held_out: Sequence[int], log_prior: Tensor) -> float:
    with torch.no_grad():
        return float(nn.functional.cross_entropy(data.logits(network, held_out) + log_prior, data.labels[held_out]))


def _temperature(logits: Tensor, log_prior: Tensor, labels: Tensor) -> float:
    """The temperature with the lowest loss (Guo et al., On Calibration of Modern Neural Networks, 2017).

    It scales what the network adds to the prior: where that is of no use, what remains is the prior.
    """
    losses = [float(nn.functional.cross_entropy(logits / float(t) + log_prior, labels)) for t in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(losses))])
