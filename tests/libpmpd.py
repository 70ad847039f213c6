"""libpmpd's C API (native/pmpd/pmpd.h) through ctypes: bundles, sessions, answers."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pmpd_edge import bundle as bundles
from pmpd_edge import gguf_info, native

DEFAULT = bundles.default_bundle()
OK, ARGUMENT, BUNDLE, MEMORY, CONTEXT_FULL, CANCELLED, BUSY, FAILED = range(0, -8, -1)
NOISE = 0.05  # of a probability's logarithm, between tokens that are evaluated together and one by one; it is far less
FINISH = ("", "stop", "length", "context")
GPU_LAYERS = int(os.environ.get("PMPD_TEST_GPU_LAYERS", "0"))

_INT32, _FLOAT, _TEXT, _POINTER = ctypes.c_int32, ctypes.c_float, ctypes.c_char_p, ctypes.c_void_p


class Options(ctypes.Structure):
    _fields_ = [
        ("method", _TEXT), ("scheduler", _TEXT), ("high_steps", _INT32), ("prefill", _INT32), ("draft_tokens", _INT32),
        ("draft", _INT32), ("n_ctx", _INT32), ("n_batch", _INT32), ("n_threads", _INT32), ("n_gpu_layers", _INT32),
        ("use_mmap", ctypes.c_bool), ("pin_threads", ctypes.c_bool),
    ]  # fmt: skip


class Sampling(ctypes.Structure):
    _fields_ = [
        ("temperature", _FLOAT), ("top_k", _INT32), ("top_p", _FLOAT), ("min_p", _FLOAT), ("repeat_penalty", _FLOAT),
        ("seed", ctypes.c_uint32),
    ]  # fmt: skip


class _Message(ctypes.Structure):
    _fields_ = [("role", _TEXT), ("content", _TEXT)]


class _Token(ctypes.Structure):
    _fields_ = [
        ("id", _INT32), ("precision", _INT32), ("probability", _FLOAT), ("finish", _INT32), ("bytes", _POINTER),
        ("n_bytes", _INT32), ("drafted", ctypes.c_bool),
    ]  # fmt: skip


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(_Token), _POINTER)
_VERIFYING = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_uint64, _POINTER)
_LOADING = ctypes.CFUNCTYPE(ctypes.c_bool, _FLOAT, _POINTER)


class _Request(ctypes.Structure):
    _fields_ = [
        ("tokens", ctypes.POINTER(_INT32)), ("n_tokens", _INT32), ("max_new_tokens", _INT32), ("sampling", Sampling),
        ("stop", ctypes.POINTER(_TEXT)), ("n_stop", ctypes.c_size_t), ("callback", _CALLBACK), ("user_data", _POINTER),
    ]  # fmt: skip


class Stats(ctypes.Structure):
    _fields_ = [
        ("prompt_tokens", _INT32), ("reused_tokens", _INT32), ("prefill_precision", _INT32), ("decode_steps", _INT32),
        ("n_switches", _INT32), ("prefill_seconds", ctypes.c_double), ("decode_seconds", ctypes.c_double),
        ("average_bitwidth", ctypes.c_double), ("average_bpw", ctypes.c_double), ("drafted_tokens", _INT32),
        ("kept_tokens", _INT32), ("verifications", _INT32), ("tokens_per_verification", ctypes.c_double),
        ("drafting_seconds", ctypes.c_double), ("verifying_seconds", ctypes.c_double),
    ]  # fmt: skip


class Forecast(ctypes.Structure):
    _fields_ = [("break_even", ctypes.c_double), ("gain", ctypes.c_double), ("draft", ctypes.c_double)]


class PmpdFailure(Exception):
    """A call that returned a status, with what pmpd_error() says."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Token:
    """What the callback was given."""

    id: int
    precision: int
    probability: float
    finish: str
    bytes: bytes
    drafted: bool = False


@cache
def library() -> Any:
    """libpmpd, with its functions declared."""
    lib = native.library("pmpd")
    pointers, int32s = ctypes.POINTER(_POINTER), ctypes.POINTER(_INT32)
    options, size = ctypes.POINTER(Options), ctypes.c_size_t
    for name, result, *arguments in (
        ("error", _TEXT),
        ("log_set", None, _POINTER, _POINTER),
        ("load_backends", _INT32, _TEXT),
        ("bundle_open", _INT32, _TEXT, pointers),
        ("bundle_free", None, _POINTER),
        ("bundle_verify", _INT32, _POINTER, _VERIFYING, _POINTER),
        ("bundle_name", _TEXT, _POINTER),
        ("bundle_architecture", _TEXT, _POINTER),
        ("bundle_parameters", ctypes.c_int64, _POINTER),
        ("bundle_context_length", _INT32, _POINTER),
        ("bundle_bytes", ctypes.c_uint64, _POINTER),
        ("bundle_prefill", _INT32, _POINTER),
        ("bundle_max_new_tokens", _INT32, _POINTER),
        ("bundle_has_predictor", ctypes.c_bool, _POINTER),
        ("bundle_n_levels", _INT32, _POINTER),
        ("bundle_precision", _INT32, _POINTER, _INT32),
        ("bundle_bpw", ctypes.c_double, _POINTER, _INT32),
        ("bundle_schedule", _TEXT, _POINTER),
        ("default_options", Options),
        ("default_sampling", Sampling),
        ("estimate_memory", _INT32, _POINTER, options, ctypes.POINTER(ctypes.c_uint64)),
        ("session_open", _INT32, _POINTER, options, _LOADING, _POINTER, pointers),
        ("session_free", None, _POINTER),
        ("session_configure", _INT32, _POINTER, options),
        ("session_n_ctx", _INT32, _POINTER),
        ("session_clear", _INT32, _POINTER),
        ("session_cancel", None, _POINTER),
        ("apply_chat_template", _INT32, _POINTER, ctypes.POINTER(_Message), size, int32s, _INT32),
        ("chat_stop", _TEXT, _POINTER),
        ("tokenize", _INT32, _POINTER, _TEXT, _INT32, ctypes.c_bool, ctypes.c_bool, int32s, _INT32),
        ("generate", _INT32, _POINTER, ctypes.POINTER(_Request)),
        ("session_stats", Stats, _POINTER),
        ("session_forecast", _INT32, _POINTER, ctypes.POINTER(Forecast)),
        ("fast_cores", _INT32),
    ):
        function = getattr(lib, f"pmpd_{name}")
        function.restype, function.argtypes = result, arguments
    return lib


def check(result: int) -> int:
    """A call's result, or what it failed with."""
    if result < 0:
        raise PmpdFailure(result, library().pmpd_error().decode("utf-8"))
    return result


def make_options(**changes: Any) -> Options:
    """The library's own, with one thread and what is given."""
    options: Options = library().pmpd_default_options()
    for name, value in {"n_threads": 1, "n_gpu_layers": GPU_LAYERS, **changes}.items():
        setattr(options, name, value.encode() if isinstance(value, str) else value)
    return options


class Bundle:
    """An open bundle."""

    def __init__(self, path: Path) -> None:
        self.pointer = _POINTER()
        check(library().pmpd_bundle_open(os.fsencode(path), ctypes.byref(self.pointer)))

    def __del__(self) -> None:
        library().pmpd_bundle_free(self.pointer)

    def get(self, name: str, *arguments: int) -> Any:
        """The value of a getter; texts as str."""
        value = getattr(library(), f"pmpd_bundle_{name}")(self.pointer, *arguments)
        return value.decode() if isinstance(value, bytes) else value

    def verify(self, progress: Callable[[int], bool] | None = None) -> None:
        """Check all hashes; `progress` gets bytes and stops by returning False."""
        callback = _VERIFYING(lambda n, _: progress(n)) if progress else _VERIFYING()
        check(library().pmpd_bundle_verify(self.pointer, callback, None))

    def memory(self, **options: Any) -> int:
        """Estimated bytes of a session."""
        n_bytes = ctypes.c_uint64()
        given = make_options(**options)
        check(library().pmpd_estimate_memory(self.pointer, ctypes.byref(given), ctypes.byref(n_bytes)))
        return n_bytes.value


@dataclass
class Session:
    """A session with a bundle; `options` are those of pmpd_options."""

    bundle: Bundle | Path
    options: dict[str, Any] = field(default_factory=dict)
    loading: Callable[[float], bool] | None = None

    def __post_init__(self) -> None:
        self.pointer = _POINTER()
        bundle = self.bundle if isinstance(self.bundle, Bundle) else Bundle(self.bundle)
        given, loading = make_options(**self.options), self.loading
        callback = _LOADING(lambda share, _: loading(share)) if loading else _LOADING()
        check(
            library().pmpd_session_open(bundle.pointer, ctypes.byref(given), callback, None, ctypes.byref(self.pointer))
        )

    def close(self) -> None:
        library().pmpd_session_free(self.pointer)
        self.pointer = _POINTER()

    def __del__(self) -> None:
        self.close()

    @property
    def n_ctx(self) -> int:
        return int(library().pmpd_session_n_ctx(self.pointer))

    @property
    def stats(self) -> Stats:
        stats: Stats = library().pmpd_session_stats(self.pointer)
        return stats

    def forecast(self) -> Forecast:
        forecast = Forecast()
        check(library().pmpd_session_forecast(self.pointer, ctypes.byref(forecast)))
        return forecast

    def configure(self, **options: Any) -> None:
        check(library().pmpd_session_configure(self.pointer, ctypes.byref(make_options(**options))))

    def clear(self) -> None:
        check(library().pmpd_session_clear(self.pointer))

    def cancel(self) -> None:
        library().pmpd_session_cancel(self.pointer)

    def chat_stop(self) -> str:
        return str(library().pmpd_chat_stop(self.pointer).decode())

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        data = text.encode()
        return _all(
            lambda tokens, n: library().pmpd_tokenize(
                self.pointer, data, len(data), add_special, parse_special, tokens, n
            )
        )

    def render(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation."""
        array = (_Message * len(messages))(*[(m["role"].encode(), m["content"].encode()) for m in messages])
        return _all(lambda tokens, n: library().pmpd_apply_chat_template(self.pointer, array, len(messages), tokens, n))

    def generate(
        self,
        tokens: Sequence[int],
        max_new_tokens: int = 0,
        *,
        stop: Sequence[bytes] = (),
        seen: Callable[[Token], bool | None] = lambda token: None,
        **sampling: Any,
    ) -> list[Token]:
        """An answer; `seen` is called for each token and ends the answer by returning False."""
        found: list[Token] = []

        def callback(given: Any, _: Any) -> bool:
            t = given.contents
            text = ctypes.string_at(t.bytes, t.n_bytes)
            found.append(Token(t.id, t.precision, t.probability, FINISH[t.finish], text, t.drafted))
            return seen(found[-1]) is not False

        chosen: Sampling = library().pmpd_default_sampling()
        for name, value in sampling.items():
            setattr(chosen, name, value)
        request = _Request(
            (_INT32 * len(tokens))(*tokens), len(tokens), max_new_tokens, chosen, (_TEXT * len(stop))(*stop), len(stop),
            _CALLBACK(callback), None,
        )  # fmt: skip
        check(library().pmpd_generate(self.pointer, ctypes.byref(request)))
        return found


def _all(call: Callable[[Any, int], int]) -> list[int]:
    """What a function gives that says how many there are and writes as many as fit."""
    n = check(call(None, 0))
    tokens = (_INT32 * n)()
    assert check(call(tokens, n)) == n
    return list(tokens)


def single_level(folder: Path, path: Path) -> None:
    """Make a folder the bundle of one weights file in it, at precision 8."""
    separate_levels(folder, {8: path})


def separate_levels(folder: Path, paths: Mapping[int, Path]) -> None:
    """Make a folder the bundle of weights files in it, by their precisions, the highest first."""
    infos = {path: gguf_info.read(path) for path in paths.values()}
    highest, info = next(iter(paths)), next(iter(infos.values()))
    made = dataclasses.replace(
        bundles.load(bundles.default_bundle()),
        path=folder,
        name=folder.name,
        parameters=info.parameters,
        tokenizer_sha256=info.tokenizer_sha256,
        files={
            path.name: bundles.WeightsFile(info.type, path.stat().st_size, bundles.sha256_file(path), info.bpw)
            for path, info in infos.items()
        },
        levels=tuple(bundles.Level(precision, (path.name,)) for precision, path in paths.items()),
        prefill=highest,
        schedule=bundles.StaticSchedule((bundles.Switch(1, highest),), 64),
        imatrix=None,
    )
    bundles.write(made)


def assert_same(got: list[Token], expected: list[Token], noise: float = NOISE) -> None:
    """The same answer, or up to where two tokens are as likely up to the noise of evaluating several at once."""
    for ours, theirs in zip(got, expected, strict=False):
        assert math.log(ours.probability) == pytest.approx(math.log(theirs.probability), abs=noise)
        if ours.id != theirs.id:
            return
        assert (ours.precision, ours.finish, ours.bytes) == (theirs.precision, theirs.finish, theirs.bytes)
    assert len(got) == len(expected)


def refused(status: int, message: str, call: Callable[[], Any]) -> None:
    """The call fails with this status and one line of text, which another failure replaces."""
    with pytest.raises(PmpdFailure, match=message) as failure:
        call()
    assert failure.value.status == status
    assert "\n" not in str(failure.value)
