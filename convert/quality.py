"""Measures levels against the model that they were made from, in the worker process; report.py says what for.

Perplexity is computed as llama-perplexity does: the text in chunks, of each the second half counts.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from pmpd_edge import native
from pmpd_edge.errors import ConvertError

Floats = npt.NDArray[np.float32]

_ROWS = 32  # of logits that are worked on at a time


def measure(llama_cpp: ModuleType, job: dict[str, Any]) -> bool:
    """Do the job "quality": write perplexity, KL divergence and top-1 agreement of each level as JSON.

    The job names `source`, a 16-bit file, `levels`, a list of files to sum for each, `text`, `chunk` (tokens),
    `threads` and `out`.
    """
    source = _Evaluation(llama_cpp, [job["source"]], job["chunk"], job["threads"])
    levels = [_Evaluation(llama_cpp, files, job["chunk"], job["threads"]) for files in job["levels"]]
    chunks = source.chunks(Path(job["text"]).read_bytes())
    reference = _Scores()
    scores = [_Scores() for _ in levels]
    for i, tokens in enumerate(chunks):
        print(f"[{i + 1:4}/{len(chunks):4}]", file=sys.stderr, flush=True)
        expected = source.log_probabilities(tokens)
        following = tokens[len(tokens) // 2 + 1 :]
        reference.add(expected, expected, following)
        for level, score in zip(levels, scores, strict=True):
            score.add(expected, level.log_probabilities(tokens), following)
    result = {
        "chunks": len(chunks),
        "tokens": len(reference.losses),
        "reference": reference.result(),
        "levels": [score.result() for score in scores],
    }
    Path(job["out"]).write_text(json.dumps(result), encoding="utf-8")
    return True


class _Evaluation:
    """Evaluates chunks of text with a model or a sum of models; their weights stay in the files."""

    def __init__(self, llama_cpp: ModuleType, files: Sequence[str], chunk: int, threads: int) -> None:
        self._lib = llama_cpp
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        model_params.use_extra_bufts = False  # repacking would hold them in memory
        models = [llama_cpp.llama_model_load_from_file(os.fsencode(file), model_params) for file in files]
        if not all(models):
            raise ConvertError(f"{Path(files[-1]).name}: llama.cpp does not load it")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = chunk
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(models[0], params)
        if not self._context:
            raise ConvertError(f"{Path(files[0]).name}: llama.cpp cannot evaluate it")
        if len(models) > 1:
            native.set_weights(self._context, models)
        self._vocab = llama_cpp.llama_model_get_vocab(models[0])
        self._n_vocab = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._chunk = chunk
        self._batch = llama_cpp.llama_batch_init(chunk, 0, 1)

    def chunks(self, text: bytes) -> list[list[int]]:
        """A text's tokens in whole chunks; each begins as a prompt does."""
        ids = (self._lib.llama_token * (len(text) + 2))()
        n_ids = self._lib.llama_tokenize(self._vocab, text, len(text), ids, len(ids), True, False)
        tokens, size = list(ids[:n_ids]), self._chunk
        chunks = [tokens[at : at + size] for at in range(0, n_ids - size + 1, size)]
        if not chunks:
            raise ConvertError(f"the text has {n_ids} tokens: too few", f"give one of {size} or more")
        if self._lib.llama_vocab_get_add_bos(self._vocab):
            for chunk in chunks:
                chunk[0] = self._lib.llama_vocab_bos(self._vocab)
        return chunks

    def log_probabilities(self, tokens: Sequence[int]) -> Floats:
        """Of all tokens after each position in the second half but the last, `[n_positions, n_vocab]`."""
        first, batch = len(tokens) // 2, self._batch
        for at, token in enumerate(tokens):
            batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.seq_id[at][0] = token, at, 1, 0
            batch.logits[at] = first <= at < len(tokens) - 1
        batch.n_tokens = len(tokens)
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        if self._lib.llama_decode(self._context, batch):
            raise ConvertError("llama.cpp cannot evaluate the text")
        pointer = self._lib.llama_get_logits(self._context)
        logits = np.ctypeslib.as_array(pointer, (len(tokens) - 1 - first, self._n_vocab)).copy()
        for at in range(0, len(logits), _ROWS):
            rows = logits[at : at + _ROWS]
            rows -= rows.max(axis=1, keepdims=True)
            rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
        return logits


class _Scores:
    """What a level's predictions are worth, token by token."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self._divergences: list[float] = []
        self._same: list[bool] = []

    def add(self, expected: Floats, found: Floats, following: Sequence[int]) -> None:
        """Compare log-probabilities, `[n_positions, n_vocab]`, and those of the tokens that do follow."""
        self.losses += (-found[np.arange(len(found)), following].astype(np.float64)).tolist()
        self._same += (expected.argmax(axis=1) == found.argmax(axis=1)).tolist()
        for at in range(0, len(found), _ROWS):
            p, q = expected[at : at + _ROWS], found[at : at + _ROWS]
            # A token that one model rules out entirely has no share in the other's sum, rather than NaN.
            with np.errstate(invalid="ignore"):
                terms = np.where(np.isfinite(p), np.exp(p) * (p - q), 0)
            self._divergences += terms.sum(axis=1, dtype=np.float64).tolist()

    def result(self) -> dict[str, float]:
        """Perplexity; mean KL divergence (nats a token) and its standard error; share of equal likeliest tokens."""
        count = len(self.losses)
        error = statistics.stdev(self._divergences) / count**0.5 if count > 1 else 0.0
        return {
            "perplexity": float(np.exp(statistics.fmean(self.losses))),
            "kl": statistics.fmean(self._divergences),
            "kl_error": error,
            "top1": sum(self._same) / count,
        }


def measure_speed(llama_cpp: ModuleType, job: dict[str, Any]) -> bool:
    """Do the job "speed": write prefill and decode tokens/s of each level, as a chat would see them, as JSON.

    The job names `bundle`, `precisions`, `threads` or None, and `out`.
    """
    from pmpd_edge import bundle as bundles
    from pmpd_edge.bench import speed
    from pmpd_edge.runner import Pmpd

    def progress(done: int, of: int) -> None:
        print(f"[{done + 1:4}/{of:4}]", file=sys.stderr, flush=True)

    n_ctx = min(speed.PROMPT + speed.STEPS, bundles.load(Path(job["bundle"])).context_length)
    llm = Pmpd(job["bundle"], n_ctx=n_ctx, n_threads=job["threads"])
    measured = speed.measure(llm, job["precisions"], progress=progress)
    result = [
        {
            "prefill_tokens_per_second": level.prefill_tokens_per_second,
            "decode_tokens_per_second": level.decode_tokens_per_second,
        }
        for level in measured.values()
    ]
    Path(job["out"]).write_text(json.dumps(result), encoding="utf-8")
    return True
