"""Two results side by side: the ratio of each figure that both have, and whether it is more than their spread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pmpd_edge.bench.page import Section
from pmpd_edge.bench.timing import Series
from pmpd_edge.errors import PmpdError

Figures = dict[tuple[str, ...], tuple[float, ...]]


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Section:
    """The figures of two documents (document.py), and the second's over the first's.

    Raises:
        PmpdError: they have none in common, or are damaged.
    """
    if before.get("kind") != after.get("kind"):
        raise PmpdError("one result is of levels, the other of operators", "compare two of a kind")
    try:
        read = _of_ops if before["kind"] == "ops" else _of_tests
        first, second = read(before), read(after)
        notes = tuple(_machine(name, result) for name, result in (("before", before), ("after", after)))
    except (LookupError, TypeError, AttributeError) as error:
        raise PmpdError(f"a damaged result ({type(error).__name__}: {error})", "write it again with --out") from None
    common = [key for key in first if key in second]
    if not common:
        raise PmpdError("the results have no test in common", "measure the same levels and tests")
    keys = ("model", "part", "type") if before["kind"] == "ops" else ("precision", "test")
    rows = [(*key, *_cells(first[key], second[key])) for key in common]
    words = tuple(range(len(keys)))
    unit = "layers/s" if before["kind"] == "ops" else "t/s"
    head = (*keys, f"before, {unit}", f"after, {unit}", "ratio", "")
    return Section("After against before", (head, *rows), (*words, len(head) - 1), notes)


def _cells(first: tuple[float, ...], second: tuple[float, ...]) -> tuple[str, ...]:
    a, b = Series(first).median, Series(second).median
    apart = min(second) > max(first) or max(second) < min(first)
    told = "" if apart else "within the spread"
    return f"{a:.2f}", f"{b:.2f}", f"{b / a:.3f}", told


def _of_tests(result: Mapping[str, Any]) -> Figures:
    return {
        (str(test["precision"]), test["test"]): tuple(test["tokens_per_second"]["values"]) for test in result["tests"]
    }


def _of_ops(result: Mapping[str, Any]) -> Figures:
    return {
        (op["model"], op["part"], op["type"]): tuple(1 / seconds for seconds in op["samples_s"]) for op in result["ops"]
    }


def _machine(name: str, result: Mapping[str, Any]) -> str:
    versions = result["machine"]["versions"]
    return (
        f"{name}: {result['machine']['device']}, {result['threads']} threads, "
        f"{', '.join(f'{what} {version}' for what, version in versions.items())}, {result['machine']['time']}"
    )
