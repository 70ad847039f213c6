"""Writes what was simulated for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pmpd_edge.cli_ui import aligned, amount, columns
from pmpd_edge.simulate.comparison import Comparison
from pmpd_edge.simulate.paper import Cell, mean_error

_LEVELS = ("precision", "type", "bpw", "prefill t/s", "decode t/s", "bytes/token", "bound by")
_ANSWERS = ("", "bits", "decode t/s", "gain", "first token, s", "all, s", "switches, ms")


def names(devices: Mapping[str, str], models: Mapping[str, int]) -> str:
    """The known devices and models."""
    sizes = {name: f"{amount(parameters)} parameters" for name, parameters in models.items()}
    return f"Devices\n{columns(devices)}\nModels\n{columns(sizes)}"


def describe(compared: Comparison) -> str:
    """The levels, then the schedule beside everything at its highest and at its lowest precision."""
    return "\n".join(_lines(compared))


def paper(cells: Sequence[Cell]) -> str:
    """The paper's bars and ours."""
    head = ["model", "data set", "method", "bits", "paper", "ours", "error"]
    rows = [
        [c.model, c.task, c.method, f"{c.bits:.2f}", f"{c.paper:.1f}", f"{c.ours:.2f}", f"{c.error:+.1%}"]
        for c in cells
    ]
    worst = max(abs(cell.error) for cell in cells)
    return (
        "Speed-up of decoding over 16 bits on the paper's NPU\n"
        f"{aligned([head, *rows], text=(0, 1, 2))}\n"
        f"Mean error {mean_error(cells):.1%}, largest {worst:.1%}, of {len(cells)} bars"
    )


def _lines(compared: Comparison) -> Iterator[str]:
    device, model = compared.roofline.device, compared.roofline.model
    example = next(iter(compared.levels.values()))
    yield f"{model.name} on {device.name} ({device.title})"
    yield f"Prompt of {example.prompt_tokens} tokens, {len(example.steps)} decode steps"
    yield aligned([_LEVELS, *_level_rows(compared)], text=(1, 6))
    for reason in dict.fromkeys(compared.left_out.values()):
        yield f"  left out: {reason}"
    if compared.schedule:
        yield ""
        yield aligned([_ANSWERS, *_answer_rows(compared)], text=(0,))


def _level_rows(compared: Comparison) -> Iterator[list[str]]:
    model = compared.roofline.model
    for precision, answer in compared.levels.items():
        level, decode = model.level(precision), answer.decode
        yield [
            str(precision),
            level.type,
            f"{model.bpw(level):.2f}",
            f"{answer.prefill_tokens_per_second:.1f}",
            f"{answer.decode_tokens_per_second:.1f}",
            f"{amount(round(decode.bytes / len(answer.steps)))}B",
            decode.bound,
        ]


def _answer_rows(compared: Comparison) -> Iterator[list[str]]:
    answers = compared.answers
    high = list(answers.values())[1].decode_seconds  # the highest precision alone
    for name, answer in answers.items():
        yield [
            name,
            f"{answer.average_bitwidth:.2f}",
            f"{answer.decode_tokens_per_second:.1f}",
            f"{high / answer.decode_seconds:.2f}",
            f"{answer.prefill.seconds:.2f}",
            f"{answer.seconds:.2f}",
            f"{1000 * sum(switch.seconds for switch in answer.switches):.1f}",
        ]
