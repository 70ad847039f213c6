"""Writes an evaluation: a table in the shape of the paper's, as text, Markdown and JSON; and every answer."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pmpd_edge.cli_ui import aligned
from pmpd_edge.evaluate.metrics import Score
from pmpd_edge.evaluate.results import MethodResult, Results
from pmpd_edge.evaluate.run import Evaluation

RESULTS, MARKDOWN, EXAMPLES = "results.json", "results.md", "examples.jsonl"

TITLES = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "rougeL": "ROUGE-L",
    "bertscore": "BERTScore",
    "exact": "exact, %",
    "number": "right, %",
}
Rows = list[list[str]]


def text(results: Results) -> str:
    """For a terminal."""
    return "\n\n".join([*_paragraphs(results, lambda rows: aligned(rows, text=(0,)))])


def markdown(results: Results, command: str = "", pictures: Sequence[str] = ()) -> str:
    """A page of its own.

    Args:
        command: what it was made by.
        pictures: files beside it to show.
    """
    facts = results.facts
    shown = "\n".join(f"![{Path(name).stem}]({name})" for name in pictures)
    head = [
        f"# {facts['bundle']['name']} on {facts['data']['name']}",
        f"Made by `{command}`." if command else "",
        _sources(facts),
    ]
    return "\n\n".join(filter(None, [*head, *_paragraphs(results, _pipes), shown])) + "\n"


def _sources(facts: Mapping[str, Any]) -> str:
    levels = ", ".join(f"{precision}: {' + '.join(types)}" for precision, types in facts["levels"].items())
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return "\n".join(
        [
            f"Levels: {levels}. Prefill {facts['prefill']}, schedule {facts['schedule']}; greedy, at most "
            f"{facts['max_new_tokens']} new tokens.",
            f"Machine: {facts['device']}; {facts['threads']} threads. {versions}; seed {facts['seed']}.",
            f"SHA-256: bundle {facts['bundle']['fingerprint'][:16]}, data {facts['data']['sha256'][:16]}.",
        ]
    )


def _paragraphs(results: Results, table: Callable[[Rows], str]) -> Iterator[str]:
    facts = results.facts
    yield f"{facts['examples']} examples of {facts['data']['name']}."
    yield table(_overview(results))
    yield (
        "bits: mean nominal precision of the decode steps; bpw: real bits per weight. KL (nats) and top-1 agreement: "
        f"against the {facts['reference_precision']}-bit level on its own answers, from the first switch on; without a "
        "switch, of all decode steps."
    )
    yield f"95% intervals; differences are from {results.baseline}, paired."
    yield table(_intervals(results))
    yield from _remarks(results)


def _overview(results: Results) -> Rows:
    metrics = list(results.methods[0].scores)
    fast = any(method.timing for method in results.methods)
    led = any(method.fidelity for method in results.methods)
    rows = [
        [
            *("method", "prefill", "bits", "bpw"),
            *(TITLES[name] for name in metrics),
            *(("KL", "top-1") if led else ()),
            *(("decode t/s", "first token, ms") if fast else ()),
        ]
    ]
    for method in results.methods:
        row = [method.name, str(method.prefill), f"{method.bits:.2f}", f"{method.bpw:.2f}"]
        row += [f"{method.scores[name].value:.2f}" for name in metrics]
        if led:
            row += _fidelity(method)
        if fast:
            row += _timing(method)
        rows.append(row)
    return rows


def _fidelity(method: MethodResult) -> list[str]:
    found = method.fidelity
    if not found or not found.kl_after or not found.top1_after:
        return ["–", "–"]
    return [f"{found.kl_after.value:.4f}", f"{found.top1_after.value:.3f}"]


def _timing(method: MethodResult) -> list[str]:
    if not method.timing:
        return ["–", "–"]
    return [f"{method.timing.decode_tokens_per_second:.1f}", f"{1e3 * method.timing.first_token_seconds:.1f}"]


def _intervals(results: Results) -> Rows:
    rows = [["method", "metric", "score", "difference"]]
    for method in results.methods:
        for name, score in method.scores.items():
            difference = method.differences[name]
            cells = _interval(difference, "+.2f") if method.name != results.baseline else ""
            rows.append([method.name, TITLES[name], _interval(score, ".2f"), cells])
        if (led := method.fidelity) and led.kl_after and led.top1_after:
            rows.append([method.name, "KL", _interval(led.kl_after, ".4f"), ""])
            rows.append([method.name, "top-1", _interval(led.top1_after, ".3f"), ""])
    return rows


def _interval(score: Score, form: str) -> str:
    return f"{score.value:{form}} ({score.low:{form}} to {score.high:{form}})"


def _remarks(results: Results) -> Iterator[str]:
    """What must not be overlooked."""
    notes = []
    for method in results.methods:
        total = sum(method.finishes.values())
        for finish, why in (("length", "at the longest answer"), ("context", "by the context")):
            if count := method.finishes.get(finish, 0):  # type: ignore[call-overload]
                notes.append(f"{method.name}: {count} of {total} answers were cut {why}")
        if method.note:
            notes.append(f"{method.name}: {method.note}")
    if results.bad_rows:
        where, reason = results.bad_rows[0]
        notes.append(f"{len(results.bad_rows)} rows could not be used, the first one: {where}: {reason}")
    if unjudged := results.facts["examples"] - results.facts["judged"]:
        notes.append(f"{unjudged} answers were not judged: there is no right one, as the reference level said nothing")
    notes += [f"left out: {name} ({reason})" for name, reason in results.left_out.items()]
    if notes:
        yield "\n".join(f"- {note}" for note in notes)


def _pipes(rows: Rows) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


def document(results: Results) -> dict[str, Any]:
    """All of it, for programs."""
    made = dataclasses.asdict(results)
    made["methods"] = [_method_document(method) for method in results.methods]
    made["bad_rows"] = [{"where": where, "reason": reason} for where, reason in results.bad_rows]
    return made


def _method_document(method: MethodResult) -> dict[str, Any]:
    made = dataclasses.asdict(method)
    made["shares"] = [{str(precision): share for precision, share in step.items()} for step in method.shares]
    if method.timing:
        made["timing"] |= {
            "decode_tokens_per_second": method.timing.decode_tokens_per_second,
            "first_token_seconds": method.timing.first_token_seconds,
        }
    return made


def write(evaluation: Evaluation, out: Path, command: str = "", plots: Sequence[Path] = ()) -> None:
    """Write all files but the plots into their directory; each appears whole or not at all."""
    found = json.dumps(document(evaluation.results), indent=1, ensure_ascii=False) + "\n"
    _write(out / RESULTS, found)
    pictures = [path.name for path in plots if path.suffix == ".png"]
    _write(out / MARKDOWN, markdown(evaluation.results, command, pictures))
    lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in _examples(evaluation))
    _write(out / EXAMPLES, "".join(lines))


def _write(path: Path, content: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(content, encoding="utf-8")
    os.replace(partial, path)


def _examples(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """A line for each answer, the methods of an example beside each other."""
    for i, example in enumerate(evaluation.dataset.examples):
        for name, answers in evaluation.answers.items():
            answer = answers[i]
            yield {
                "example": i,
                "method": name,
                "prompt": [example.prompt, *example.turns],
                "reference": evaluation.references[i],
                "answer": answer.text,
                "finish": answer.finish,
                "precisions": [_runs(turn.precisions) for turn in answer.turns],
                "scores": evaluation.scores[name][i],
            }


def _runs(precisions: Sequence[int]) -> list[list[int]]:
    """`[precision, tokens]` for each stretch of an answer, the first token (prefill's) included."""
    return [[precision, len(list(run))] for precision, run in itertools.groupby(precisions)]
