"""How fast each level of a bundle evaluates prompts and decodes, by the path that a chat takes: through Pmpd.

Tests are named as llama-bench names them, and do what its tests do: `pp512` evaluates a prompt of 512 tokens, `tg128`
decodes 128 tokens one by one, `@ d1024` on top of 1024 tokens that are there. Each repetition of a test measures all
levels, so that what else the machine does hits all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from pmpd_edge.bench import energy, traffic
from pmpd_edge.bench.energy import Meter
from pmpd_edge.bench.timing import Series, random_tokens, timed

if TYPE_CHECKING:
    from pmpd_edge.runner import Pmpd

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Workload:
    """A test: a prompt of `prompt` tokens, or `steps` decode steps, after `depth` tokens."""

    prompt: int = 0
    steps: int = 0
    depth: int = 0

    @property
    def name(self) -> str:
        """As llama-bench has it."""
        name = f"pp{self.prompt}" if self.prompt else f"tg{self.steps}"
        return f"{name} @ d{self.depth}" if self.depth else name

    @property
    def tokens(self) -> int:
        """Those whose evaluation is timed."""
        return self.prompt + self.steps

    @property
    def n_ctx(self) -> int:
        """The context that it needs."""
        return self.depth + self.tokens


@dataclass(frozen=True)
class Sample:
    """One repetition of a test.

    Attributes:
        seconds: of the evaluations.
        first_token: seconds from a prompt to the first token; 0 of decode steps.
        cache_bytes: what a step reads of the KV cache, on average.
        joules: by what reports them.
    """

    seconds: float
    first_token: float
    cache_bytes: float
    joules: dict[str, float]


@dataclass(frozen=True)
class Row:
    """All repetitions of a test at a level."""

    precision: int
    workload: Workload
    samples: tuple[Sample, ...]

    @property
    def rate(self) -> Series:
        """Tokens/s."""
        return Series(tuple(sample.seconds for sample in self.samples)).rate(self.workload.tokens)

    @property
    def first_token(self) -> Series:
        """Seconds from the prompt to the first token."""
        return Series(tuple(sample.first_token for sample in self.samples))

    @property
    def cache_bytes(self) -> float:
        return Series(tuple(sample.cache_bytes for sample in self.samples)).median

    @property
    def joules(self) -> dict[str, float]:
        """Joules for each token, the median, by what reports them."""
        names = self.samples[0].joules
        return {
            name: Series(tuple(sample.joules[name] for sample in self.samples)).median / self.workload.tokens
            for name in names
        }


def measure(
    llm: Pmpd,
    precisions: Sequence[int],
    workloads: Sequence[Workload],
    repetitions: int,
    progress: Progress = lambda label, done: None,
) -> list[Row]:
    """Measure levels by turns in each test, after a round that warms up.

    Args:
        llm: it is left with other tokens and at some precision; its context must hold every workload.
        progress: called with the workload's name and the share that is done.
    """
    meters = energy.meters()
    tokens = random_tokens(llm, max(workload.n_ctx for workload in workloads))
    rows = []
    for i, workload in enumerate(workloads):
        llm.reset()
        found: dict[int, list[Sample]] = {precision: [] for precision in precisions}
        for repetition in range(repetitions + 1):
            progress(workload.name, (i + repetition / (repetitions + 1)) / len(workloads))
            for precision, samples in found.items():
                sample = _sample(llm, precision, workload, tokens, meters)
                if repetition:
                    samples.append(sample)
        rows += [Row(precision, workload, tuple(samples)) for precision, samples in found.items()]
    llm.reset()
    return sorted(rows, key=lambda row: -row.precision)


def _sample(llm: Pmpd, precision: int, workload: Workload, tokens: Sequence[int], meters: Sequence[Meter]) -> Sample:
    llm.set_precision(precision)
    go_to(llm, tokens[: workload.depth])
    before, held = energy.read(meters), traffic.cache_bytes(llm)
    timed_tokens = tokens[workload.depth : workload.n_ctx]
    if workload.prompt:
        start = perf_counter()
        seconds = timed(llm, timed_tokens)
        llm.sample(temp=0.0)
        first_token = perf_counter() - start
    else:
        seconds, first_token = sum(timed(llm, [token]) for token in timed_tokens), 0.0
    joules = energy.used(before, energy.read(meters))
    return Sample(seconds, first_token, (held + traffic.cache_bytes(llm)) / 2, joules)


def go_to(llm: Pmpd, tokens: Sequence[int]) -> None:
    """Have these tokens in the context and no more; those that are there already, at any precision, are kept.

    How long a step takes does not depend on what the cache holds.
    """
    from pmpd_edge.runner import llama_cpp

    n = len(tokens)
    there = llm.n_tokens >= n > 0 and llm.tokens[:n].tolist() == list(tokens)
    if there and llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(llm.ctx), 0, n, -1):
        llm.n_tokens = n
        return
    llm.reset()  # recurrent models cannot go back
    if n:
        timed(llm, tokens)
