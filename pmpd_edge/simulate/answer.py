"""What an answer takes: prefill, every decode step, and what each switch of precision moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pmpd_edge.errors import PmpdError
from pmpd_edge.simulate.roofline import Cost, Roofline


@dataclass(frozen=True)
class SwitchCost:
    """A change of precision before a decode step.

    Attributes:
        step: the decode step that is the first at `precision`.
        bytes: moved for it: look-up tables, or weights that were not in memory.
    """

    step: int
    precision: int
    seconds: float
    bytes: float


@dataclass(frozen=True)
class Answer:
    """A simulated answer.

    Attributes:
        precisions: of every token, the first (prefill's) included.
        steps: the cost of each decode step, from step 1 on.
    """

    prompt_tokens: int
    precisions: tuple[int, ...]
    prefill: Cost
    steps: tuple[Cost, ...]
    switches: tuple[SwitchCost, ...]

    @property
    def decode_seconds(self) -> float:
        """Time of all decode steps and switches."""
        return sum(step.seconds for step in self.steps) + sum(switch.seconds for switch in self.switches)

    @property
    def seconds(self) -> float:
        """Time of the whole answer."""
        return self.prefill.seconds + self.decode_seconds

    @property
    def decode_tokens_per_second(self) -> float:
        return len(self.steps) / self.decode_seconds

    @property
    def prefill_tokens_per_second(self) -> float:
        return self.prompt_tokens / self.prefill.seconds

    @property
    def average_bitwidth(self) -> float:
        """Mean nominal precision over the decode steps."""
        return sum(self.precisions[1:]) / len(self.steps)

    @property
    def decode(self) -> Cost:
        """All decode steps together, without the switches."""
        return sum(self.steps, Cost())

    def times(self) -> list[float]:
        """When each token is there, in seconds from the beginning."""
        switches = {switch.step: switch.seconds for switch in self.switches}
        times = [self.prefill.seconds]
        for i, step in enumerate(self.steps, start=1):
            times.append(times[-1] + switches.get(i, 0.0) + step.seconds)
        return times


def simulate(roofline: Roofline, prompt_tokens: int, precisions: Sequence[int]) -> Answer:
    """Simulate one answer.

    Args:
        roofline: a model on a device.
        prompt_tokens: of the prompt.
        precisions: of every token: the first is prefill's, the others are those of the decode steps.

    Raises:
        PmpdError: there is no decode step, no such level, or the context fits neither the model nor the memory.
    """
    steps = len(precisions) - 1
    if steps < 1 or prompt_tokens < 1:
        raise PmpdError(f"{prompt_tokens} prompt tokens and {steps} decode steps", "give at least one of each")
    resident = _check_room(roofline, set(precisions), prompt_tokens + steps)
    return Answer(
        prompt_tokens=prompt_tokens,
        precisions=tuple(precisions),
        prefill=roofline.evaluate(precisions[0], 0, prompt_tokens),
        steps=tuple(roofline.evaluate(p, prompt_tokens + i) for i, p in enumerate(precisions[1:])),
        switches=tuple(
            _switch(roofline, i, before, after, resident)
            for i, (before, after) in enumerate(pairwise(precisions), start=1)
            if before != after
        ),
    )


def _check_room(roofline: Roofline, precisions: set[int], context: int) -> bool:
    """Whether all levels are in memory together; raises PmpdError where not even one at a time is."""
    model, device = roofline.model, roofline.device
    if context > model.context_length:
        hint = "shorten the prompt or the answer"
        raise PmpdError(f"{model.name}: {context} tokens, its context has {model.context_length}", hint)
    levels = [model.level(precision) for precision in precisions]
    kv = model.kv_bytes(context, device.kv_bits)
    largest = kv + max(sum(level.files.values()) for level in levels)
    together = kv + sum({name: size for level in levels for name, size in level.files.items()}.values())
    if together <= device.memory:
        return True
    needed = largest if device.storage else together
    if needed > device.memory:
        needs, has = f"{needed / 2**30:.1f} GiB of weights and KV cache", f"{device.memory / 2**30:.1f}"
        hint = "choose lower precisions, a shorter context or a smaller model"
        raise PmpdError(f"{model.name}: {needs}, {device.name} has {has}", hint)
    return False


def _switch(roofline: Roofline, step: int, before: int, after: int, resident: bool) -> SwitchCost:
    """What step `step` waits for: its level's tables, and from storage the files that the level before had not."""
    model, device = roofline.model, roofline.device
    level, left = model.level(after), model.level(before)
    tables = level.tables if roofline.tables_stay(level) else 0.0
    loaded = 0.0 if resident else sum(size for name, size in level.files.items() if name not in left.files)
    seconds = device.switch_seconds + tables / device.bandwidth + (loaded / device.storage if loaded else 0.0)
    return SwitchCost(step, after, seconds, tables + loaded)
