"""What the server says about its model: for the page, and for whoever wants to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pmpd_edge import __version__
from pmpd_edge.bench import memory
from pmpd_edge.bundle import Bundle, Level
from pmpd_edge.chat_template import has_template
from pmpd_edge.lossless.drafter import obstacle
from pmpd_edge.schedule import METHODS
from pmpd_edge.serve.embedding import pooling
from pmpd_edge.stream import Sampling

if TYPE_CHECKING:
    from pmpd_edge.runner import Pmpd


def props(llm: Pmpd, schedulers: Sequence[str]) -> dict[str, Any]:
    """The model, its levels and which of them are in memory, and what requests may choose."""
    bundle = llm.bundle
    return {
        "model": bundle.name,
        "architecture": bundle.architecture,
        "parameters": bundle.parameters,
        "context_length": bundle.context_length,
        "n_ctx": llm.n_ctx(),
        "max_new_tokens": bundle.schedule.max_new_tokens,
        "prefill": bundle.prefill,
        "schedule": [{"step": switch.step, "precision": switch.precision} for switch in bundle.schedule.switches],
        "methods": [method for method in METHODS if method != "lossless" or not obstacle(llm)],
        "schedulers": list(schedulers),
        "levels": [_level(bundle, level, llm.levels.loaded) for level in bundle.levels],
        "memory": _memory(),
        "has_chat_template": has_template(llm),
        "pooling": pooling(llm),
        "defaults": asdict(Sampling()),
        "version": __version__,
    }


def _level(bundle: Bundle, level: Level, loaded: frozenset[str]) -> dict[str, Any]:
    files = [bundle.files[name] for name in level.weights]
    return {
        "precision": level.precision,
        "types": [file.type for file in files],
        "bytes": sum(file.bytes for file in files),
        "bpw": bundle.bpw(level),
        "loaded": loaded.issuperset(level.weights),
    }


def _memory() -> dict[str, int] | None:
    """Bytes that the process holds; None where the system does not tell."""
    now = memory.sample()
    if now.anonymous is None or now.file_backed is None:
        return None
    return {"resident": now.anonymous + now.file_backed, "anonymous": now.anonymous}
