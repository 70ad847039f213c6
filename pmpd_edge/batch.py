"""Many answers at once in one context, each at its own precision: for calibration, training and evaluation.

Every sequence has a scheduler of its own. At each step the sequences that are due at the same precision are evaluated
together, so that the weights are read once for them. Tokens are the likeliest ones, or given.
It knows nothing about messages, metrics or files.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pmpd_edge import __version__, device, native
from pmpd_edge.abort import Abort
from pmpd_edge.cpu import default_threads
from pmpd_edge.errors import PmpdError
from pmpd_edge.levels import Levels, load_model

if TYPE_CHECKING:
    from pmpd_edge.bundle import Bundle
    from pmpd_edge.schedule import Scheduler

native.load()  # before llama_cpp is first imported

import llama_cpp  # noqa: E402
from llama_cpp import _internals as internals  # noqa: E402

Finish = Literal["stop", "length", "context"]
PARALLEL = 8
MOST_TOKENS = 2**31 - 2**16  # int32_t, rounded up for each sequence
CHUNK = 512  # tokens of a prompt that are evaluated at once


@dataclass(frozen=True)
class Job:
    """One answer to make.

    Attributes:
        prompt: token ids.
        scheduler: of this answer alone, as schedulers remember what they saw.
        prefill: precision at which the prompt is evaluated.
        max_new_tokens: the answer's length at most.
        stop: texts that end it.
        given: tokens that are taken instead of the likeliest ones, to see what the model makes of somebody else's
            answer; the answer ends with them.
        watch: called with the index of each token and the logits that it was taken from, `[n_vocab]`.
    """

    prompt: Sequence[int]
    scheduler: Scheduler
    prefill: int
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    given: Sequence[int] | None = None
    watch: Callable[[int, npt.NDArray[np.float32]], None] | None = None


@dataclass
class Answer:
    """What was generated.

    Attributes:
        tokens: ids, an end-of-answer token included.
        precisions: of every token, the first (prefill's) included.
        finish: why it ended: `stop` (the model ended it, or one of the job's texts did, which is in the tokens yet),
            `length` (max_new_tokens, or no given token left) or `context` (no room left; without any token, the prompt
            did not fit).
    """

    tokens: list[int] = field(default_factory=list)
    precisions: list[int] = field(default_factory=list)
    finish: Finish = "length"

    @property
    def decode_precisions(self) -> list[int]:
        """Precision of each decode step, from step 1 on."""
        return self.precisions[1:]


def detokenize(vocab: Any, tokens: Sequence[int]) -> str:
    """The text of an answer; tokens that end one have none.

    Args:
        vocab: a `llama_vocab *`.
    """
    ids = [token for token in tokens if not llama_cpp.llama_vocab_is_eog(vocab, token)]
    array = (llama_cpp.llama_token * len(ids))(*ids)
    size = 64 + 16 * len(ids)
    while True:
        buffer = ctypes.create_string_buffer(size)
        n_bytes = llama_cpp.llama_detokenize(vocab, array, len(ids), buffer, size, False, False)
        if n_bytes >= 0:
            return buffer.raw[:n_bytes].decode("utf-8", errors="replace")
        size = -n_bytes


class Batch:
    """A bundle in a context with room for several sequences.

    Args:
        bundle: the levels to decode with; weights are loaded when a job first needs them.
        n_ctx: context of each sequence in tokens.
        parallel: sequences at a time. The last bits of logits depend on how many are evaluated together.
        n_threads: by default one for each physical core.
        n_gpu_layers: layers on the GPU; -1 is all of them.

    Attributes:
        numerics: what the last bits of logits depend on, beside weights and prompts.

    Raises:
        BundleError: a file of the bundle does not load.
        PmpdError: the context cannot be made.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        n_ctx: int,
        parallel: int = PARALLEL,
        n_threads: int | None = None,
        n_gpu_layers: int = -1,
    ) -> None:
        if parallel * n_ctx > MOST_TOKENS:
            raise PmpdError(f"a context of {parallel} x {n_ctx} tokens", "take a smaller one")
        self.bundle, self.parallel, self.n_ctx = bundle, parallel, n_ctx
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = n_gpu_layers
        model_params.use_mmap = False  # types that the CPU repacks would be held twice
        name = bundle.levels[0].weights[0]
        bundle.check_tokenizer(name)
        self._model = load_model(os.fspath(bundle.path / name), model_params)
        with native.loading_log() as log:
            try:
                self._context = internals.LlamaContext(model=self._model, params=self._params(n_threads))
            except ValueError as error:
                self._model.close()
                raise PmpdError(
                    f"{bundle.path}: no context of {parallel} x {n_ctx} tokens ({log.reason(error)})",
                    "take a smaller one",
                ) from None
        self.numerics = {
            "versions": [__version__, llama_cpp.__version__],
            "device": device.describe(),
            "threads": int(llama_cpp.llama_n_threads(self._context.ctx)),
            "n_gpu_layers": n_gpu_layers,
            "parallel": parallel,
            "n_ctx": n_ctx,
        }
        self._abort = Abort()
        self.levels = Levels(bundle, self._context, self._model)
        self.vocab = self._model.vocab
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self._batch = llama_cpp.llama_batch_init(max(CHUNK, parallel), 0, 1)

    def _params(self, n_threads: int | None) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self.parallel * -(-self.n_ctx // 256) * 256  # llama.cpp rounds each sequence's up to it
        params.n_batch = params.n_ubatch = max(CHUNK, self.parallel)
        params.n_seq_max = self.parallel
        params.n_threads = params.n_threads_batch = n_threads or default_threads()
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        return params

    def close(self) -> None:
        """Free the context and the weights."""
        if self._context.ctx is not None:
            llama_cpp.llama_batch_free(self._batch)
            self._context.close()
            self.levels.close()
            self._model.close()

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Text

    def tokenize(self, text: str, *, add_bos: bool = True, special: bool = False) -> list[int]:
        """Token ids of a text; `special` reads the names of control tokens in it as those tokens."""
        data = text.encode()
        ids = (llama_cpp.llama_token * (len(data) + 2))()
        n_ids = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, len(ids), add_bos, special)
        if n_ids < 0:
            raise PmpdError(f"a text of {len(data)} bytes cannot be tokenised")
        return list(ids[:n_ids])

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of an answer; tokens that end one have none."""
        return detokenize(self.vocab, tokens)

    def ends(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))

    # Decoding

    def run(self, jobs: Sequence[Job], progress: Callable[[int], None] = lambda n_done: None) -> list[Answer]:
        """Make the answers to all jobs; another job begins wherever one ends.

        Args:
            jobs: what to answer.
            progress: called with the number of answers that are done.

        Returns:
            An answer for each job, in their order.
        """
        self._clear()
        answers = [Answer() for _ in jobs]
        waiting = iter(range(len(jobs)))
        free, running = list(range(self.parallel)), list[_Sequence]()
        n_done = 0
        while True:
            for seq_id, at in zip(free.copy(), itertools.islice(waiting, len(free)), strict=False):
                free.remove(seq_id)
                running.append(_Sequence(self, seq_id, jobs[at], answers[at]))
                running[-1].prefill()
            for sequence in [sequence for sequence in running if sequence.done]:
                running.remove(sequence)
                self._remove(sequence.seq_id)
                free.append(sequence.seq_id)
                n_done += 1
                progress(n_done)
            if running:
                self._step(running)
            elif n_done == len(jobs):
                return answers

    def _step(self, running: Sequence[_Sequence]) -> None:
        """One token for each sequence, level by level."""
        # llama.cpp evaluates sequences together that follow each other in their numbers.
        due = sorted(running, key=lambda sequence: (-sequence.choose(), sequence.seq_id))
        for precision, group in itertools.groupby(due, key=lambda sequence: sequence.precision):
            members = list(group)
            self.levels.put(precision)
            rows = [(sequence.answer.tokens[-1], sequence.n_tokens, sequence.seq_id) for sequence in members]
            self.decode(rows, logits=range(len(rows)))
            for row, sequence in enumerate(members):
                sequence.take(1, self.logits(row))

    def decode(self, rows: Sequence[tuple[int, int, int]], logits: Sequence[int]) -> None:
        """Evaluate tokens, given as (token, position, sequence), at the level that was put last.

        Raises:
            PmpdError: llama.cpp says why not.
        """
        batch, wanted = self._batch, set(logits)
        for i, (token, position, seq_id) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, position, 1, seq_id
            batch.logits[i] = i in wanted
        batch.n_tokens = len(rows)
        with native.captured_log() as log:
            if result := llama_cpp.llama_decode(self._context.ctx, batch):
                raise PmpdError(f"the evaluation failed: {log.reason(f'llama_decode returned {result}')}")

    @contextmanager
    def abortable(self) -> Iterator[None]:
        """Let Ctrl-C reach the evaluations within."""
        self._abort.clear()
        with self._abort.enabled(self._context.ctx):
            yield

    def logits(self, row: int) -> npt.NDArray[np.float32]:
        """A copy of a row of the last evaluation, `[n_vocab]`."""
        pointer = llama_cpp.llama_get_logits_ith(self._context.ctx, row)
        return np.ctypeslib.as_array(pointer, (self.n_vocab,)).copy()

    def keys_values(self, seq_id: int, layer: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """K and V of a sequence's layer, as `Evaluation.keys_values` gives them."""
        return native.keys_values(self._context.ctx, seq_id, layer)

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(self._context.memory, True)

    def _remove(self, seq_id: int) -> None:
        llama_cpp.llama_memory_seq_rm(self._context.memory, seq_id, -1, -1)


class _Sequence:
    """An answer in the making: an `Evaluation` for its scheduler."""

    def __init__(self, batch: Batch, seq_id: int, job: Job, answer: Answer) -> None:
        self._batch, self._job = batch, job
        self.seq_id, self.answer = seq_id, answer
        self.precision = job.prefill
        self.n_tokens = 0
        self.done = False
        self._logits = np.empty(0, dtype=np.float32)

    def prefill(self) -> None:
        """Evaluate the prompt, and take the first token; a prompt that does not fit ends the answer at once."""
        job, prompt = self._job, list(self._job.prompt)
        if not prompt:
            raise PmpdError("an empty prompt", "give at least one token")
        if len(prompt) > self._batch.n_ctx:
            self.answer.finish, self.done = "context", True
            return
        self._batch.levels.load(job.prefill, *job.scheduler.precisions)
        self._batch.levels.put(job.prefill)
        with self._batch.abortable():
            for at in range(0, len(prompt), CHUNK):
                chunk = prompt[at : at + CHUNK]
                rows = [(token, at + i, self.seq_id) for i, token in enumerate(chunk)]
                self._batch.decode(rows, logits=[len(rows) - 1])
        self.take(len(prompt), self._batch.logits(-1))
        if not self.done:
            job.scheduler.start(self)

    def choose(self) -> int:
        """Ask the scheduler for the precision of the next step."""
        self.precision = self._job.scheduler.next(len(self.answer.tokens), self)
        return self.precision

    def take(self, n_evaluated: int, logits: npt.NDArray[np.float32]) -> None:
        """Append a token to the answer, and see whether it is the last."""
        self.n_tokens += n_evaluated
        self._logits = logits
        job, answer = self._job, self.answer
        index = len(answer.tokens)
        if job.watch:
            job.watch(index, logits)
        answer.tokens.append(int(logits.argmax()) if job.given is None else job.given[index])
        answer.precisions.append(self.precision)
        if job.given is None and self._is_stopped():
            answer.finish, self.done = "stop", True
        elif index + 1 >= (job.max_new_tokens if job.given is None else len(job.given)):
            answer.finish, self.done = "length", True
        elif self.n_tokens >= self._batch.n_ctx:
            answer.finish, self.done = "context", True

    def _is_stopped(self) -> bool:
        """Whether the last token ends the answer."""
        tokens, stop = self.answer.tokens, self._job.stop
        if self._batch.ends(tokens[-1]):
            return True
        longest = max((len(text.encode()) for text in stop), default=0)
        # A token is a byte at least; some more, as the first one may lose a space.
        tail = self._batch.detokenize(tokens[-longest - 2 :]) if stop else ""
        return any(text in tail for text in stop)

    # What the scheduler sees

    @property
    def tokens(self) -> npt.NDArray[np.intc]:
        return np.array([*self._job.prompt, *self.answer.tokens][: self.n_tokens], dtype=np.intc)

    def logits(self) -> npt.NDArray[np.float32]:
        return self._logits

    def keys_values(self, layer: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        return self._batch.keys_values(self.seq_id, layer)
