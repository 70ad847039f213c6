"""One conversation in one llama.cpp context whose weights change between tokens.

`Pmpd` is a `llama_cpp.Llama`: completions, chat, grammars, caches and saved states work as they do there. What it adds
is the precision of every evaluation. The phase is explicit: `generate` begins a run, the run's first evaluation is its
prefill, each later one is a decode step whose precision the scheduler chooses.

A KV row is as precise as the weights that computed it, so `kv_precision` records that of every position, and a prefix
is reused only where prefill would compute it at the same precision. (llama_cpp's own prefix cache goes by token ids
alone.)
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from inspect import signature
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from pmpd_edge import bundle as bundles
from pmpd_edge import native
from pmpd_edge.abort import Abort
from pmpd_edge.cpu import default_threads
from pmpd_edge.errors import BundleError, Cancelled, ContextFullError, PmpdError
from pmpd_edge.levels import Levels
from pmpd_edge.lossless import sampling
from pmpd_edge.lossless.drafter import AUTO, Drafter
from pmpd_edge.lossless.rounds import Rounds
from pmpd_edge.schedule import METHODS, Scheduler
from pmpd_edge.schedule.fixed import FixedScheduler
from pmpd_edge.schedule.spec import make_scheduler
from pmpd_edge.stats import DraftingStats, GenerationStats

native.load()  # before llama_cpp is first imported

import llama_cpp  # noqa: E402
from llama_cpp.llama_chat_format import Llava15ChatHandler  # noqa: E402

DEFAULT_CTX = 4096
CTX_MULTIPLE = 256  # llama.cpp rounds up to it; llama_cpp's own arrays have the size that was asked for
LAST = -1  # row of an evaluation
UNKNOWN = 0  # kv_precision of a row that something else than this runner computed


@dataclass
class _Run:
    """One generation: its scheduler and what it did so far."""

    scheduler: Scheduler
    stats: GenerationStats
    reset: bool
    in_prefill: bool = True


class Pmpd(llama_cpp.Llama):
    """A bundle in a llama.cpp context, decoding with progressive mixed precision.

    Args:
        bundle: the bundle's directory.
        method: `pmpd` follows the scheduler; `high` and `low` do everything at the highest and lowest precision;
            `lossless` gives what the scheduler's precisions give, and drafts at a lower one.
        scheduler: for `pmpd` and `lossless`: a specification as `make_scheduler` takes it, or a Scheduler; by default
            `static`, and for `lossless` everything at the highest precision.
        high_steps: for the static scheduler: decode steps before its first switch.
        prefill: for `pmpd` and `lossless`: the precision at which prompts are evaluated; by default the bundle's, and
            the highest where `lossless` has no scheduler.
        draft_tokens: for `lossless`: how many tokens are drafted at a time, or `auto`: as many as pay on this device.
        draft: for `lossless`: the precision of the drafts; by default the lowest.
        keep_low_kv: reuse KV rows of earlier answers although they were computed at a lower precision than prefill's:
            quicker turns, at a cost in quality that `stats.reused_low_tokens` shows.
        n_gpu_layers: layers on the GPU; -1, the default, is all of them, where the build has a GPU backend.
        n_ctx: context size in tokens; by default what the model was trained on, at most 4096.
        use_mmap: map the weights instead of reading them. Off by default: the weight types that the CPU repacks would
            be held twice.
        flash_attn, n_threads, n_threads_batch: on, and one thread a physical core (llama_cpp: off, half of all cores).
        options: everything else that `llama_cpp.Llama` takes.

    Raises:
        BundleError: the bundle or one of its files is not what it should be.
        PmpdError: an option does not fit; the message says which.
    """

    # Declared by llama_cpp, which has no types.
    n_tokens: int
    input_ids: npt.NDArray[np.intc]
    _lora_adapter: Any

    # Set by `configure`.
    _prefill: int
    _drafter: Drafter

    def __init__(
        self,
        bundle: str | os.PathLike[str] | None = None,
        *,
        method: str = "pmpd",
        scheduler: str | Scheduler | None = None,
        high_steps: int | None = None,
        prefill: int | None = None,
        draft_tokens: int | str = AUTO,
        draft: int | None = None,
        keep_low_kv: bool = False,
        n_gpu_layers: int = -1,
        n_ctx: int | None = None,
        use_mmap: bool = False,
        flash_attn: bool = True,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        verbose: bool = False,
        **options: Any,
    ) -> None:
        _check_options(options)
        self.bundle = bundles.load(bundles.resolve(bundle))
        self.stats = GenerationStats(method)
        self.keep_low_kv = keep_low_kv
        self._run: _Run | None = None
        self._abort = Abort()
        self._row = LAST
        self.configure(
            method=method,
            scheduler=scheduler,
            high_steps=high_steps,
            prefill=prefill,
            draft_tokens=draft_tokens,
            draft=draft,
        )

        n_ctx = n_ctx or (min(DEFAULT_CTX, self.bundle.context_length) if n_ctx is None else self.bundle.context_length)
        n_threads = n_threads or default_threads()
        name = self.bundle.levels[0].weights[0]
        path = self.bundle.path / name
        self.bundle.check_tokenizer(name)
        with native.loading_log() as log:
            try:
                super().__init__(
                    str(path),
                    n_gpu_layers=n_gpu_layers,
                    n_ctx=-(-n_ctx // CTX_MULTIPLE) * CTX_MULTIPLE,
                    use_mmap=use_mmap,
                    flash_attn=flash_attn,
                    n_threads=n_threads,
                    n_threads_batch=n_threads_batch or n_threads,
                    verbose=verbose,
                    **options,
                )
            except (ValueError, RuntimeError) as error:
                if str(error).startswith("Failed to load model"):
                    raise BundleError(f"{path}: does not load ({log.reason(error)})") from None
                raise PmpdError(f"these options do not fit: {log.reason(error)}") from None
            if options.get("chat_format") is None and "chat_template.default" in self._chat_handlers:
                # Where llama_cpp knows a template it writes prompts itself, and not as that says: those of ChatML begin
                # with an empty system turn.
                self.chat_format = "chat_template.default"
            if self.lora_path and not self._lora_adapter:  # llama_cpp takes a null pointer for an adapter
                self._lora_adapter = None
                raise PmpdError(f"{self.lora_path}: no adapter for this model ({log.reason('no reason given')})")
        self.kv_precision: npt.NDArray[np.uint8] = np.full(self._n_ctx, UNKNOWN, dtype=np.uint8)
        self.levels = Levels(self.bundle, self._ctx, self._model)
        self._stack.callback(self.levels.close)
        self.levels.load(*self.precisions)
        self.set_precision(self._prefill)

    @classmethod
    def from_bundle(cls, source: str | os.PathLike[str] | None = None, **options: Any) -> Pmpd:
        """Open a bundle by directory or Hub id (`org/name[@revision]`); None is the model in the package."""
        return cls(bundles.resolve(source), **options)

    @classmethod
    def from_pretrained(cls, repo_id: str, *_: Any, **options: Any) -> Pmpd:
        """Open a bundle by Hub id."""
        return cls.from_bundle(repo_id, **options)

    # What decides: method, scheduler, precision

    def configure(
        self,
        *,
        method: str = "pmpd",
        scheduler: str | Scheduler | None = None,
        high_steps: int | None = None,
        prefill: int | None = None,
        draft_tokens: int | str = AUTO,
        draft: int | None = None,
    ) -> None:
        """Set how the following answers are decoded; the arguments are the constructor's."""
        if method not in METHODS:
            raise PmpdError(f"no method {method!r}", f"choose one of {', '.join(METHODS)}")
        made, at = self._choose(method, scheduler, high_steps)
        if prefill is not None and method not in ("high", "low"):
            at = prefill
        self.bundle.level(at)
        drafts_at = self.bundle.level(self.bundle.precisions[-1] if draft is None else draft).precision
        drafter = Drafter(drafts_at, draft_tokens)
        if hasattr(self, "_drafter"):
            drafter.keep(self._drafter)
        self.method = method
        self._scheduler = made
        self._prefill = at
        self._drafter = drafter
        self._configuration = {
            "method": method,
            "scheduler": scheduler,
            "high_steps": high_steps,
            "prefill": prefill,
            "draft_tokens": draft_tokens,
            "draft": draft,
        }

    def _choose(self, method: str, scheduler: str | Scheduler | None, high_steps: int | None) -> tuple[Scheduler, int]:
        """A method's scheduler, and the precision of its prompts where no other is asked for."""
        highest, lowest = self.bundle.precisions[0], self.bundle.precisions[-1]
        fixed = {"high": highest, "low": lowest}
        if scheduler is None and high_steps is None:
            fixed["lossless"] = highest
        if method in fixed:
            return FixedScheduler(fixed[method]), fixed[method]
        if scheduler is None or isinstance(scheduler, str):
            scheduler = make_scheduler(scheduler or "static", self.bundle, high_steps)
        return scheduler, self.bundle.prefill

    @property
    def precisions(self) -> tuple[int, ...]:
        """The precisions that prompts and answers use as configured, from the highest to the lowest."""
        return tuple(sorted({self._prefill, *self._scheduler.precisions}, reverse=True))

    @property
    def precision(self) -> int:
        """The precision of the next evaluation."""
        return self._precision

    def set_precision(self, precision: int) -> None:
        """Evaluate what follows at this precision, until a generation sets another; the KV cache stays."""
        self._precision = UNKNOWN  # if this is interrupted
        self.levels.put(precision)
        self._precision = precision

    # Evaluating

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Generator[int, Sequence[int] | None, None]:
        """Generate tokens as `llama_cpp.Llama.generate` does, at the precisions that the scheduler chooses.

        Raises:
            ContextFullError: the prompt does not fit the context.
            Cancelled: `cancel` was called while the prompt was evaluated.
        """
        tokens = list(tokens)
        bound = signature(super().generate).bind(tokens, *args, **kwargs)
        bound.apply_defaults()
        if self.method == "lossless":
            sampling.check(bound.arguments)  # whether or not this device makes drafts
        run = self._start(tokens, reset=bound.arguments["reset"])
        drafts = self.method == "lossless" and self._drafter.may_draft(self._scheduler.precisions)
        if drafts:
            rounds = Rounds(self, bound.arguments, run.scheduler, self._drafter, run.stats)
            inner = rounds.tokens(tokens[self.n_tokens if run.reset else 0 :])
        else:
            inner = super().generate(tokens, *args, **kwargs)
        sent: Sequence[int] | None = None
        try:
            while True:
                self._run = run  # only while this runs: what the caller evaluates in between is no part of it
                is_first, start = not run.stats.precisions, perf_counter()
                try:
                    token = inner.send(sent)
                except StopIteration:
                    return
                finally:
                    self._run = None
                    run.stats.add_seconds(perf_counter() - start, is_first)
                sent = yield token
        finally:
            inner.close()
            if self.method == "lossless" and not drafts:
                self._drafter.record_steps(run.stats)

    def _start(self, tokens: list[int], reset: bool) -> _Run:
        self._abort.clear()
        if not tokens:
            raise PmpdError("an empty prompt", "give at least one token")
        needed = len(tokens) if reset else self.n_tokens + len(tokens)
        if needed > self._n_ctx:
            raise ContextFullError(
                f"a prompt of {needed} tokens in a context of {self._n_ctx}", "shorten it, or raise --ctx-size"
            )
        self.levels.load(*self.precisions)
        if reset:
            # llama_cpp keeps what is left of the old tokens, and evaluates at least one token again.
            self.n_tokens = self._reusable(tokens)
            self._requires_eval = True
        if self.method == "lossless":
            self._drafter.prepare(self, self._scheduler.precisions)
        self.stats = GenerationStats(
            self.method,
            bpw={level.precision: self.bundle.bpw(level) for level in self.bundle.levels},
            prompt_tokens=len(tokens),
            prefill_precision=self._prefill,
            drafting=DraftingStats(self._drafter.precision) if self.method == "lossless" else None,
        )
        return _Run(self._scheduler, self.stats, reset)

    def forecast(self) -> str:
        """What drafting promises on this device; empty where it is not for `auto` to choose how much to draft.

        Measuring it takes the logits of the last evaluation away.
        """
        if self.method != "lossless":
            return ""
        self.levels.load(*self.precisions)
        self._drafter.prepare(self, self._scheduler.precisions)
        return self._drafter.forecast(max(self._scheduler.precisions))

    def _reusable(self, tokens: Sequence[int]) -> int:
        """The number of leading tokens whose KV rows are what prefill would compute; never all of them."""
        memory = llama_cpp.llama_get_memory(self.ctx)
        if not self.n_tokens or llama_cpp.llama_memory_seq_pos_min(memory, 0) != 0:
            return 0  # nothing there, or (sliding windows, recurrent models) not the beginning
        n = min(self.n_tokens, len(tokens) - 1)
        same = np.asarray(tokens[:n], dtype=np.intc) == self.input_ids[:n]
        record = self.kv_precision[:n]
        same &= (record != UNKNOWN) if self.keep_low_kv else (record == self._prefill)
        return n if same.all() else int(same.argmin())

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens: at the scheduler's precision within a generation, else at `precision`."""
        run = self._run
        if run is None:
            self._eval(tokens)
        elif run.in_prefill:
            if run.reset:
                run.stats.reused_tokens = self.n_tokens
                reused = self.kv_precision[: self.n_tokens]
                run.stats.reused_low_tokens = int(np.count_nonzero(reused != self._prefill))
            self.set_precision(run.stats.prefill_precision)
            with self._abort.enabled(self.ctx):
                self._eval(tokens, abortable=True)
            run.in_prefill = False
            run.scheduler.start(self)
        else:
            precision = run.scheduler.next(len(run.stats.precisions), self)
            if precision != self._precision:
                self.set_precision(precision)
            self._eval(tokens)

    def _eval(self, tokens: Sequence[int], abortable: bool = False, all_logits: bool = False) -> None:
        """Evaluate tokens at `precision`; `all_logits` keeps those of all of them, which must be at most a batch."""
        if self.n_tokens + len(tokens) > self._n_ctx:
            raise ContextFullError(f"the context of {self._n_ctx} tokens is full", "raise --ctx-size")
        for i in range(0, len(tokens), self.n_batch):
            batch = tokens[i : i + self.n_batch]
            # Before the evaluation, so that an interrupt after it finds the record right.
            self.kv_precision[self.n_tokens : self.n_tokens + len(batch)] = self._precision
            with native.captured_log() as log:
                try:
                    if not (abortable and self._abort.requested):
                        self._decode(batch, all_logits)
                        continue
                except RuntimeError as error:
                    if not (abortable and self._abort.requested):
                        raise PmpdError(f"the evaluation failed: {log.reason(error)}") from None
            raise Cancelled("the evaluation was cancelled")

    def _decode(self, batch: Sequence[int], all_logits: bool) -> None:
        self._row = LAST
        if not all_logits or self._logits_all:
            super().eval(batch)
            return
        self._ctx.kv_cache_seq_rm(-1, self.n_tokens, -1)
        self._batch.set_batch(batch=batch, n_past=self.n_tokens, logits_all=True)
        self._ctx.decode(self._batch)
        self.input_ids[self.n_tokens : self.n_tokens + len(batch)] = batch
        self.n_tokens += len(batch)
        self._requires_eval = False

    def _show(self, n_tokens: int, row: int) -> None:
        """Look as if the last evaluation had ended earlier: with so many tokens in the cache, and that row's logits."""
        self.n_tokens, self._row = n_tokens, row

    def _shows(self, n_tokens: int, row: int) -> bool:
        """Whether it looks like that still: nothing has been evaluated, restored or given up since."""
        return (self.n_tokens, self._row) == (n_tokens, row) and not self._requires_eval

    def _give_up(self, n_tokens: int) -> None:
        """Go back to the first tokens; the rows after them are removed by the next evaluation."""
        self.n_tokens = n_tokens
        self._requires_eval = True

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called since the last answer began."""
        return self._abort.requested

    def cancel(self) -> None:
        """Stop a running prefill as soon as possible, from another thread or a signal handler: it raises Cancelled."""
        self._abort.request()

    def sample(self, *args: Any, **kwargs: Any) -> int:
        """Sample a token as `llama_cpp.Llama.sample` does."""
        kwargs.setdefault("idx", self.n_tokens + self._row)  # what llama_cpp makes a row of again
        token: int = super().sample(*args, **kwargs)
        if self._run is not None:
            self._run.stats.precisions.append(self._precision)
        return token

    @property
    def tokens(self) -> npt.NDArray[np.intc]:
        """Ids of the tokens in the KV cache, `[n_tokens]`: a view."""
        return self.input_ids[: self.n_tokens]

    def logits(self) -> npt.NDArray[np.float32]:
        """The last evaluated token's logits, `[n_vocab]`: a view that the next evaluation overwrites."""
        if self._requires_eval:
            raise PmpdError("no logits: nothing was evaluated since the state changed", "evaluate a token first")
        pointer = llama_cpp.llama_get_logits_ith(self.ctx, self._row)
        return np.ctypeslib.as_array(pointer, (self._n_vocab,))

    def keys_values(self, layer: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """K (after RoPE) and V of a layer, copies as `native.keys_values` describes them; -1 is the last layer."""
        if self._row == LAST:  # else there are verified rows whose turn has not come
            self._ctx.kv_cache_seq_rm(-1, self.n_tokens, -1)  # what `eval` would remove: rows that were given up
        keys, values = native.keys_values(self.ctx, 0, layer)
        return keys[: self.n_tokens], values[: self.n_tokens]

    def embed(self, *args: Any, **kwargs: Any) -> Any:
        """Embed text as `llama_cpp.Llama.embed` does, at prefill's precision; it empties the KV cache."""
        self.reset()
        self.set_precision(self._prefill)
        return super().embed(*args, **kwargs)

    # Saved states carry the record

    def save_state(self) -> llama_cpp.LlamaState:
        """Save the state as `llama_cpp.Llama.save_state` does, with the precision of every KV row."""
        state = super().save_state()
        state.kv_precision = self.kv_precision[: self.n_tokens].copy()
        state.kv_bundle = self.bundle.fingerprint
        return state

    def load_state(self, state: llama_cpp.LlamaState) -> None:
        """Restore a saved state.

        Rows that another class or another bundle computed are evaluated again, not reused.

        Raises:
            PmpdError: the state does not fit this context; the context is empty then.
        """
        n, input_ids = state.n_tokens, self.input_ids
        self.kv_precision[:] = UNKNOWN
        try:
            if n > self._n_ctx:
                raise RuntimeError(f"{n} tokens in a context of {self._n_ctx}")
            super().load_state(state)
        except (RuntimeError, ValueError) as error:
            self._forget()
            raise PmpdError(f"the saved state does not fit this context: {error}") from None
        except BaseException:
            self._forget()
            raise
        finally:
            input_ids[:n] = state.input_ids[: len(input_ids[:n])]
            self.input_ids = input_ids  # llama_cpp takes the state's, which may be shorter
        if getattr(state, "kv_bundle", None) == self.bundle.fingerprint:
            self.kv_precision[: len(state.kv_precision)] = state.kv_precision

    def _forget(self) -> None:
        self._ctx.kv_cache_clear()
        self.reset()

    def close(self) -> None:
        """Free the context and the weights; twice does no harm."""
        if hasattr(self, "_stack"):  # not where the constructor failed before llama_cpp's began
            super().close()

    def __getstate__(self) -> dict[str, Any]:
        options = super().__getstate__()
        del options["model_path"]
        return {**options, **self._configuration, "bundle": str(self.bundle.path), "keep_low_kv": self.keep_low_kv}


def _check_options(options: dict[str, Any]) -> None:
    known = signature(llama_cpp.Llama.__init__).parameters
    for name in options:
        if name not in known:
            raise PmpdError(f"no option {name!r}", "Pmpd takes its own options and those of llama_cpp.Llama")
    if options.get("draft_model") is not None:
        raise PmpdError("a draft model and switching precisions do not go together", "leave draft_model out")
    if isinstance(options.get("chat_handler"), Llava15ChatHandler):
        raise PmpdError("chat handlers for pictures bypass the switching", "leave chat_handler out")
