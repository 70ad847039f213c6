"""Compares the token ids of a GGUF's tokenizer with those of the Hugging Face tokenizer, on texts of many kinds.

llama.cpp has tokenizers of its own; a byte-level BPE one also needs the name of the rule that splits text into words
before merging (the pre-tokenizer). A wrong one costs quality and nobody is told: models answer in spite of it.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pmpd_edge import native
from pmpd_edge.convert import child
from pmpd_edge.errors import NativeError

# Each text goes its own way in at least one pre-tokenizer. None has NUL, which ends C strings, or special tokens.
SAMPLES = (
    "The quick brown fox jumps over the lazy dog.",
    "Où est-ce qu'on naît ? Ça dépend : l'été, à Besançon…",
    "Größe und Maße: 3,50 € für ÄÖÜ-Übungen",
    "E\u0301tude na\u00efve, cafe\u0301 (decomposed accents)",
    "我想在apple工作1314151天～，今天天气很好。",
    "日本語のテキストとカタカナ、한국어 문장도 있다",
    "Привет, мир! Ελληνικά, עברית, العربية, हिन्दी, ไทย",
    "🚀 (normal) 😶\u200d🌫️ (joined) ✅ 🦙🦙 👩‍👩‍👧‍👦 🇩🇪",
    "def f(x: int) -> str:\n    return f'{x!r}'  # comment\n\n\tif (a[0] != b->c && d) { e++; }\n",
    '<div class="a-b_c">&amp; https://example.org/path?q=1&r=2#top</div>',
    "3 33 333 3333 33333 333333 3333333 33333333 1.000.000,5 -7e-10 0xFF ½ ² ٣",
    "I've 'told HE'S you'll WE'D they'RE it'S o'clock ''quotes'' \"\"",
    "hello_world camelCase XMLHttpRequest ALLCAPS iPhone15Pro x86_64",
    "...!!!??? ------======= ***___### ````` ~~~ $$ %% ^^",
    "  two spaces before",
    "one\ntwo\n\nthree\n\n\n   four \t five\t\t six \n \n seven   ",
    "a" + " " * 20 + "b" + "\t" * 9 + "c" + "\n" * 7 + "d\r\n\r\ne",
    "control \x01\x02 \x07bell \x1b[31mred\x1b[0m \x7f \x85 zero\u200bwidth \ufeffbom no\u00a0break \u3000wide",
    "\n",
    " ",
)

# The names that people know come first among those that agree: many names stand for one rule.
_WELL_KNOWN = ("gpt-2", "llama-bpe", "qwen2", "gpt-4o", "tekken", "deepseek-llm", "falcon", "smollm", "command-r")

# Upstream finds these by the same hash, but they are of word-piece tokenizers: no rules for byte-level BPE.
_WORD_PIECE = ("bert-bge", "bert-bge-large", "jina-v2-en")

_CODE = "from pmpd_edge.convert.tokens import main; main()"
_NAME = re.compile(r'^\s+res = "([^"]+)"$', re.MULTILINE)

Ids = tuple[tuple[int, ...] | None, ...]  # of every text; None where the tokenizer failed


@dataclass(frozen=True)
class Agreement:
    """How far a known pre-tokenizer gives the expected tokens."""

    name: str
    equal: int
    of: int


def known_pre_tokenizers(upstream: Path) -> tuple[str, ...]:
    """The names that upstream's converter gives: what llama.cpp knows."""
    source = (upstream / "conversion" / "base.py").read_text(encoding="utf-8")
    names = sorted(set(_NAME.findall(source)) - set(_WORD_PIECE))
    return (*(name for name in _WELL_KNOWN if name in names), *(name for name in names if name not in _WELL_KNOWN))


def tokenize(path: Path, texts: Sequence[str] = SAMPLES, pre_tokenizers: Sequence[str] = ()) -> dict[str, Ids]:
    """Token ids of texts, without those that begin or end a prompt, by a GGUF's tokenizer.

    Args:
        path: a GGUF; its weights are not read.
        texts: what to tokenize.
        pre_tokenizers: names to put in place of the file's own; none for its own alone.

    Returns:
        The ids by pre-tokenizer, "" for the file's own. One that the library refuses is left out.

    Raises:
        child.ChildError: llama.cpp does not load the file.
    """
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "ids.json"
        job = {"source": str(path), "texts": list(texts), "pre": list(pre_tokenizers), "out": str(out)}
        (Path(directory) / "job.json").write_text(json.dumps(job), encoding="utf-8")
        child.run(_CODE, [str(Path(directory) / "job.json")])
        return {name: parse(ids) for name, ids in json.loads(out.read_text(encoding="utf-8")).items()}


def parse(ids: Sequence[Sequence[int] | None]) -> Ids:
    """Ids as they come out of JSON."""
    return tuple(None if one is None else tuple(map(int, one)) for one in ids)


def difference(expected: Ids, found: Ids, texts: Sequence[str] = SAMPLES) -> str:
    """One line about the first text whose tokens differ; empty where all are equal."""
    pairs = [
        (text, right, wrong)
        for text, right, wrong in zip(texts, expected, found, strict=True)
        if right is not None and right != wrong
    ]
    if not pairs:
        return ""
    text, right, wrong = pairs[0]
    shown = repr(text if len(text) <= 40 else text[:40] + "…")  # no control characters on the terminal
    at = next((i for i, (a, b) in enumerate(zip(right, wrong or (), strict=False)) if a != b), 0)
    return (
        f"token ids differ from those of Hugging Face's tokenizer in {len(pairs)} of {len(texts)} sample texts, "
        f"first in {shown}: {_some_ids(wrong or (), at)} instead of {_some_ids(right, at)} from token {at} on"
    )


def _some_ids(ids: Sequence[int], start: int) -> str:
    some = ids[start : start + 4]
    return ",".join(map(str, some)) + (",…" if len(ids) > start + 4 else "") if some else "none"


def compare_pre_tokenizers(path: Path, expected: Ids, names: Sequence[str]) -> list[Agreement]:
    """How well each known pre-tokenizer does on the sample texts, the best first.

    Args:
        path: a GGUF with the tokenizer's vocabulary.
        expected: the Hugging Face tokenizer's ids.
        names: those to try, in the order in which equally good ones are returned.
    """
    found = tokenize(path, SAMPLES, names)
    agreements = [
        Agreement(name, sum(right == ids for right, ids in zip(expected, found[name], strict=True)), len(expected))
        for name in names
        if name in found
    ]
    return sorted(agreements, key=lambda agreement: -agreement.equal)


def main() -> None:
    """The child: tokenize what the job names. The library's log goes to standard error, where the parent reads it."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        llama_cpp = native.load()
    except NativeError as error:
        sys.exit(f"NativeError: {error}")
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), ctypes.c_void_p(0))  # null: print to standard error
    found = {}
    for name in job["pre"] or [""]:
        model = _load(llama_cpp, job["source"], name)
        if model:
            vocab = llama_cpp.llama_model_get_vocab(model)
            found[name] = [_tokenize(llama_cpp, vocab, text) for text in job["texts"]]
            llama_cpp.llama_model_free(model)
    if not found:
        sys.exit(1)
    Path(job["out"]).write_text(json.dumps(found), encoding="utf-8")


def _load(llama_cpp: ModuleType, path: str, pre_tokenizer: str) -> Any:
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    params.n_gpu_layers = 0
    overrides = (llama_cpp.llama_model_kv_override * 2)()  # an empty key ends the list
    if pre_tokenizer:
        overrides[0].tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR
        overrides[0].key = b"tokenizer.ggml.pre"
        overrides[0].value.val_str = pre_tokenizer.encode()
        params.kv_overrides = overrides
    return llama_cpp.llama_model_load_from_file(os.fsencode(path), params)


def _tokenize(llama_cpp: ModuleType, vocab: Any, text: str) -> list[int]:
    data = text.encode()
    ids = (llama_cpp.llama_token * (2 * len(data) + 8))()
    n_ids = llama_cpp.llama_tokenize(vocab, data, len(data), ids, len(ids), False, True)
    return list(ids[: max(0, n_ids)])
