"""What the command line draws: answers, reports, bundles and progress, coloured where a person reads them.

Results go to standard output; everything about them goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby, pairwise
from types import TracebackType
from typing import Any, TextIO

from pmpd_edge.bundle import REPORT, Bundle, Level, StaticSchedule, in_one_line, to_document
from pmpd_edge.gguf_info import TENSOR_CLASSES
from pmpd_edge.stats import DraftingStats, GenerationStats
from pmpd_edge.stream import Token

ORANGE, UNDERLINE, DIM, RESET = "\x1b[38;5;208m", "\x1b[4m", "\x1b[2m", "\x1b[0m"
SHOW_AFTER = 2.0  # seconds that people wait without a word
REDRAW_EVERY = 0.1
SCHEDULE_WIDTH = 56  # columns
NEXT_TO_NOTHING = 0.3  # bits per weight between two levels

# A model's text must not move the cursor or rename the window.
_CONTROL = {code: None for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}


def is_coloured(file: TextIO) -> bool:
    """Whether a person reads `file` on a terminal and has not asked for plain text (no-color.org)."""
    return file.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class AnswerView:
    """Draws one answer on standard output while it grows; tokens that had been drafted are underlined.

    Args:
        low: tokens of this precision are drawn in orange; None for no such.
    """

    def __init__(self, low: int | None) -> None:
        self._out = sys.stdout
        self._terminal = self._out.isatty()
        self._coloured = is_coloured(self._out)
        self._low = low
        self._style = ""
        self._added = False
        self._begun = False

    def add(self, token: Token) -> None:
        """Draw a token; white space before the answer's first word is left out."""
        self._added = True
        text = token.text if self._begun else token.text.lstrip()
        if self._terminal:
            text = text.translate(_CONTROL)
        if not text:
            return
        self._begun = True
        self._paint(ORANGE * (token.precision == self._low) + UNDERLINE * token.drafted)
        self._out.write(text)
        self._out.flush()

    def end(self) -> None:
        """End the line, if there is one: an answer's, or on a terminal that which echoes Ctrl-C."""
        self._paint("")
        if self._added or self._terminal:
            self._out.write("\n")
        self._out.flush()

    def _paint(self, style: str) -> None:
        if self._coloured and style != self._style:
            self._out.write(RESET * bool(self._style) + style)
            self._style = style


@contextmanager
def answer_view(low: int | None) -> Iterator[AnswerView]:
    """An `AnswerView` that leaves the terminal uncoloured and at the beginning of a line, however the answer ends."""
    view = AnswerView(low)
    try:
        yield view
    finally:
        view.end()


def ask(prompt: str) -> str:
    """Read a line from the terminal.

    Raises:
        EOFError, KeyboardInterrupt: Ctrl-D or Ctrl-C; the cursor is on a new line then.
    """
    if not sys.stdout.isatty():  # the prompt is no part of the answers that go elsewhere
        print(prompt, end="", file=sys.stderr, flush=True)
        prompt = ""
    try:
        return input(prompt)
    except (EOFError, KeyboardInterrupt):
        print(file=sys.stderr)
        raise


def note(text: str) -> None:
    """Write a line about the chat to standard error, dimmed."""
    print(f"{DIM}{text}{RESET}" if is_coloured(sys.stderr) else text, file=sys.stderr, flush=True)


def complain(error: Exception) -> None:
    """Write an error's line to standard error."""
    print(f"Error: {error}", file=sys.stderr, flush=True)


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Say that a model is being loaded where that takes longer than people wait without a word."""
    timer = threading.Timer(SHOW_AFTER, note, [f"Loading {name} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def summary(stats: GenerationStats) -> str:
    """One line about an answer: speeds, average bits, switches."""
    evaluated = f"{stats.prompt_tokens - stats.reused_tokens} of " if stats.reused_tokens else ""
    parts = [f"prefill {stats.prefill_tokens_per_second:.0f} t/s ({evaluated}{stats.prompt_tokens} tokens)"]
    steps = len(stats.decode_precisions)
    if stats.average_bitwidth is None or stats.average_bpw is None:
        parts.append("no decode step")
    else:
        parts.append(f"decode {stats.decode_tokens_per_second:.0f} t/s ({steps} steps)")
        parts.append(f"{stats.average_bitwidth:.2f} bits ({stats.average_bpw:.2f} bpw)")
    if stats.switches:
        path = [f"{stats.precisions[0]}", *(f"{s.precision} at step {s.step}" for s in stats.switches)]
        parts.append(" → ".join(path))
    elif stats.precisions:
        parts.append(f"all at {stats.precisions[0]}")
    if stats.drafting and stats.drafting.acceptance is not None:
        parts.append(f"{stats.drafting.acceptance:.0%} of the drafts kept")
    return " · ".join(parts)


def details(stats: GenerationStats) -> str:
    """All statistics of an answer, a line each."""
    steps = stats.decode_precisions
    shares = ", ".join(f"{p}: {steps.count(p)}" for p in sorted(set(steps), reverse=True))
    average = f"{stats.average_bitwidth:.2f} bits, {stats.average_bpw:.2f} bpw" if steps else "-"
    switches = ", ".join(f"{s.precision} at step {s.step}" for s in stats.switches)
    reused_low = f", {stats.reused_low_tokens} of them at another precision" if stats.reused_low_tokens else ""
    rows = {
        "method": stats.method,
        "prompt": f"{stats.prompt_tokens} tokens, {stats.reused_tokens} kept from before{reused_low}",
        "prefill": f"{stats.prefill_seconds:.3f} s, {stats.prefill_tokens_per_second:.1f} t/s, "
        f"precision {stats.prefill_precision}",
        "decode": f"{stats.decode_seconds:.3f} s, {stats.decode_tokens_per_second:.1f} t/s, {len(steps)} steps",
        "steps by precision": shares or "-",
        "average": average,
        "switches": switches or "none",
    }
    return columns(rows | (_drafting_rows(stats.drafting) if stats.drafting else {}))


def _drafting_rows(drafting: DraftingStats) -> dict[str, str]:
    told = drafting.to_dict()
    if not told["verifications"]:
        return {"drafts": f"none at precision {drafting.precision}"}
    runs = [(drafts, len(list(run))) for drafts, run in groupby(told["draft_tokens"])]
    return {
        "drafts": f"{told['drafted']} at precision {drafting.precision}, {told['kept']} of them kept "
        f"({told['acceptance']:.0%})",
        "verifications": f"{told['verifications']}, {told['tokens_per_verification']:.2f} tokens each",
        "draft tokens": ", ".join(f"{drafts} x{count}" if count > 1 else f"{drafts}" for drafts, count in runs),
        "drafting": f"{told['drafting_seconds']:.3f} s, then verifying {told['verifying_seconds']:.3f} s",
    }


def columns(rows: Mapping[str, str]) -> str:
    """Names and values, one pair a line, the values aligned."""
    width = max(map(len, rows))
    return "\n".join(f"  {name:<{width}}  {value}".rstrip() for name, value in rows.items())


# Bundles and long operations: convert, info


class Progress:
    """A bar on standard error for what takes more than two seconds: label, per cent, time left.

    Call it with a label and the share that is done, 0 to 1. Where standard error is no terminal, each label is written
    once instead.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._opened = self._begun = time.monotonic()
        self._drawn_at = 0.0
        self._done = 0.0
        self._label = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._drawn_at and self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def __call__(self, label: str, done: float) -> None:
        now = time.monotonic()
        if done < self._done:  # another part, measured from its own beginning
            self._begun = now
        self._done = done
        if self._quiet or now - self._opened < SHOW_AFTER:
            return
        if self._terminal and now - self._drawn_at >= REDRAW_EVERY:
            self._drawn_at = now
            print(f"\r\x1b[K{self._line(label, now)}", end="", file=sys.stderr, flush=True)
        elif not self._terminal and label != self._label:
            self._label = label
            print(f"{label} ...", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Write a line of its own, which the bar leaves alone; with `quiet` as well: it is no progress."""
        if self._drawn_at and self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr)
        note(text)

    def _line(self, label: str, now: float) -> str:
        done = min(max(self._done, 0.0), 1.0)
        bar = "━" * round(24 * done)
        left = ""
        if done > 0.01:
            seconds = round((now - self._begun) * (1 - done) / done)
            left = f", {seconds // 60}:{seconds % 60:02} left"
        return f"{label[:32]:<32} {bar:<24} {done:4.0%}{left}"


def manifest(bundle: Bundle) -> str:
    """The manifest as a JSON document."""
    return json.dumps(to_document(bundle), indent=1, ensure_ascii=False)


def describe(bundle: Bundle, verified: bool = False) -> str:
    """Everything about a bundle that a person wants to know, on a screen."""
    source = "@".join(in_one_line(str(part)) for part in map(bundle.source.get, ("repo", "revision")) if part)
    rows = {
        "source": source or "unknown",
        "model": f"{bundle.architecture}, {amount(bundle.parameters)} parameters, context {bundle.context_length}",
        "layout": bundle.layout,
        "prefill": f"{bundle.prefill} bits",
        "predictor": _predictor_line(bundle),
        "imatrix": f"{bundle.imatrix.text}, {bundle.imatrix.chunks} chunks" if bundle.imatrix else "none",
        "hashes": "all match" if verified else "not checked (--verify checks them)",
        "schedule": schedule_line(bundle.schedule).replace("\n", "\n" + " " * 13),
    }
    if bundle.calibration:
        rows["chosen on"] = _calibration_line(bundle.calibration)
    lines = [bundle.name, *(f"  {name:<9}  {value}" for name, value in rows.items()), "", table(bundle)]
    if told := notes(bundle):
        lines += ["", *(f"  {line}" for line in told)]
    if measured := report(bundle):
        lines += ["", measured]
    return "\n".join(lines)


def _predictor_line(bundle: Bundle) -> str:
    if not bundle.predictor:
        return "none"
    return f"{bundle.predictor.file} for {', '.join(f'{high}-{low}' for high, low in bundle.predictor.pairs)}"


def _calibration_line(calibration: Mapping[str, Any]) -> str:
    try:
        data, chosen = calibration["data"], calibration["chosen"]
        return in_one_line(
            f"{data['name']}, {data['examples']} examples: loss {chosen['loss']['value']:.2f}% "
            f"(tolerance {calibration['tolerance']:g}%) at {chosen['average_bitwidth']:.2f} bits"
        )
    except (LookupError, TypeError, ValueError):
        return "damaged"


def table(bundle: Bundle) -> str:
    """The levels of a bundle: precision, type, size, real bits per weight in all and by part, files."""
    parts = _parts(bundle)
    head = ["precision", "type", "size", "bpw", *parts, "file"]
    return aligned([head, *(_row(bundle, level, parts) for level in bundle.levels)], text=(0, 1, len(head) - 1))


def _parts(bundle: Bundle) -> list[str]:
    """The parts of the model whose bits every file tells apart; norms and the like are no choice of anybody's."""
    if not all(file.bpw_by_class for file in bundle.files.values()):
        return []
    labels = {label for file in bundle.files.values() for label in file.bpw_by_class}
    return [label for label in TENSOR_CLASSES if label in labels]


def report(bundle: Bundle) -> str:
    """What was measured of a bundle's levels when it was made; empty if nothing was."""
    try:
        measured = json.loads((bundle.path / REPORT).read_text(encoding="utf-8"))
        reference = measured["reference"]
        head = ["precision", "size", "bpw", "perplexity", "KL", "top-1", "prefill t/s", "decode t/s"]
        first = [reference["type"], f"{amount(reference['bytes'])}B", "", f"{reference['perplexity']:.2f}", *[""] * 4]
        rows = [_report_row(level) for level in measured["levels"]]
        table = aligned([[in_one_line(cell) for cell in row] for row in (head, first, *rows)], text=(0,))
        told = f"on {measured['tokens']} tokens of {measured['text']['name']}, against {reference['type']}"
        return f"  {in_one_line(told)}\n{table}"
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return f"  {REPORT}: damaged"


def _report_row(level: Mapping[str, Any]) -> list[str]:
    return [
        str(level["precision"]),
        f"{amount(level['bytes'])}B",
        f"{level['bpw']:.2f}",
        f"{level['perplexity']:.2f}",
        f"{level['kl']:.4f} ± {level['kl_error']:.4f}",
        f"{level['top1']:.1%}",
        f"{level['prefill_tokens_per_second']:.1f}",
        f"{level['decode_tokens_per_second']:.1f}",
    ]


def aligned(rows: Sequence[Sequence[str]], text: Sequence[int]) -> str:
    """Rows of cells, those in the columns of `text` to the left, the others, numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = ["<" if at in text else ">" for at in range(len(widths))]
    return "\n".join(
        "  " + "  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(row, align, widths, strict=True)).rstrip()
        for row in rows
    )


def _row(bundle: Bundle, level: Level, parts: Sequence[str]) -> list[str]:
    files = [bundle.files[name] for name in level.weights]
    return [
        str(level.precision),
        " + ".join(file.type for file in files),
        f"{amount(sum(file.bytes for file in files))}B",
        f"{bundle.bpw(level):.2f}",
        *(f"{sum(file.bpw_by_class.get(label, 0.0) for file in files):.2f}" for label in parts),
        " + ".join(level.weights),
    ]


def notes(bundle: Bundle) -> list[str]:
    """What levels are not, though their names and types let people think so, a line each."""
    lines = []
    for name, file in bundle.files.items():
        for fallback in file.fallbacks:
            count, example = len(fallback.tensors), fallback.tensors[0]
            which = f"1 tensor, {example}, is" if count == 1 else f"{count} tensors, such as {example}, are"
            lines.append(in_one_line(f"{name}: {which} {fallback.type}: the shape does not suit {file.type}"))
    for high, low in pairwise(bundle.levels):
        saved = bundle.bpw(high) - bundle.bpw(low)
        if saved < NEXT_TO_NOTHING:
            size = f"{bundle.bpw(low):.2f} bits per weight"
            than = f"{abs(saved):.2f} {'fewer' if saved > 0 else 'more'} than precision {high.precision}"
            lines.append(f"precision {low.precision} is really {size}, {than}: it makes hardly anything faster")
    return lines


def schedule_line(schedule: StaticSchedule) -> str:
    """A schedule as a line of segments, named by precision, over the steps at which they begin and the last step."""
    starts = [switch.step for switch in schedule.switches]
    end = max(schedule.max_new_tokens, starts[-1] + 1)
    line = steps = ""
    for switch, after in zip(schedule.switches, [*starts[1:], end], strict=True):
        least = len(str(switch.step)) + 2
        width = max(least, round(SCHEDULE_WIDTH * (after - switch.step) / end))
        line += f"{switch.precision} ".ljust(width - 1, "━") + " "
        steps += str(switch.step).ljust(width)
    return f"{line.rstrip()}\n{steps}{end}"


def amount(number: int) -> str:
    """A number with three digits and a decimal prefix: `7.34 M`."""
    value = float(number)
    for prefix in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.3g} T"
