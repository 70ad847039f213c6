"""The learned scheduler's predictor, which the library libpmpd computes (native/pmpd/predictor.cpp).

It says how many decode steps at the high precision an answer needs, from what the prompt left in the KV cache. It is
trained and written in pmpd_edge.calibrate; when to ask it, and what follows from its answer, is in schedule/learned.py.
"""

from __future__ import annotations

import ctypes
import math
import os
import weakref
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pmpd_edge import native
from pmpd_edge.bundle import sha256_file
from pmpd_edge.errors import BundleError

if TYPE_CHECKING:
    from pmpd_edge.bundle import Bundle

Floats = npt.NDArray[np.float32]

TRAIN_AGAIN = "train it again: pmpd-edge train-scheduler"
_REASON_BYTES = 512
_FAILURES = {-1: "no tokens", -2: "K or V is not finite", -3: "no memory"}  # enum pmpd_predictor_status


class Predictor:
    """A predictor that was read from a file; any number of threads may use it.

    Attributes:
        fingerprint: of the bundle that it was trained for; it knows nothing of other weights.
        layer: whose K and V it looks at; negative ones count from the end.
        classes: shares of `max_new_tokens`, rising.
        max_new_tokens: of the answers that it was trained on.
        steps: the number of high steps of each class; without end where the share is 1.
        pairs: (high, low) precisions.
        priors: for each pair, how often each class was right in training.
    """

    def __init__(self, path: Path) -> None:
        """Use `load`."""
        library = _library()
        reason = ctypes.create_string_buffer(_REASON_BYTES)
        with native.captured_log():  # gguf's own complaints; the reason says enough
            pointer = library.pmpd_predictor_load(os.fsencode(path), reason, _REASON_BYTES)
        if not pointer:
            raise BundleError(f"{path}: {reason.value.decode('utf-8', 'replace')}", TRAIN_AGAIN)
        weakref.finalize(self, library.pmpd_predictor_free, pointer)
        self.path = path
        self._library, self._pointer = library, pointer
        self._shape = tuple(self._get(name) for name in ("n_head_kv", "head_dim_k", "head_dim_v"))
        n_classes, n_pairs = self._get("n_classes"), self._get("n_pairs")
        self.fingerprint: str = self._get("fingerprint").decode("utf-8", "replace")
        self.layer: int = self._get("layer")
        self.classes: tuple[float, ...] = tuple(self._get("classes")[:n_classes])
        self.max_new_tokens: int = self._get("max_new_tokens")
        self.steps = tuple(math.inf if share == 1 else round(share * self.max_new_tokens) for share in self.classes)
        self.pairs: tuple[tuple[int, int], ...] = tuple(
            (self._get("high", i), self._get("low", i)) for i in range(n_pairs)
        )
        self.priors: dict[tuple[int, int], tuple[float, ...]] = {
            pair: tuple(self._get("prior", i)[:n_classes]) for i, pair in enumerate(self.pairs)
        }

    def _get(self, name: str, *arguments: int) -> Any:
        return getattr(self._library, f"pmpd_predictor_{name}")(self._pointer, *arguments)

    @classmethod
    def load(cls, path: Path) -> Predictor:
        """Read a predictor.

        Raises:
            BundleError: the file is not a predictor, is damaged, or of a version that is not known here.
            NativeError: the library is missing.
        """
        return cls(path)

    def probabilities(self, pair: tuple[int, ...], k: Floats, v: Floats) -> list[float]:
        """How probable it is of each class that it is the smallest one that is enough, `[n_classes]`.

        Args:
            pair: one of `pairs`.
            k, v: what `Evaluation.keys_values(layer)` gives: `[n_tokens, n_head_kv, head_dim]`, K after RoPE.

        Raises:
            BundleError: they are of another shape than the predictor's, or not finite, or the pair is not one of its.
        """
        k, v = (np.ascontiguousarray(array, dtype=np.float32) for array in (k, v))
        n_head_kv, head_dim_k, head_dim_v = self._shape
        if k.shape[1:] != (n_head_kv, head_dim_k) or v.shape != (len(k), n_head_kv, head_dim_v):
            expected = f"{n_head_kv} x {head_dim_k} and {n_head_kv} x {head_dim_v}"
            raise BundleError(f"{self.path}: for K and V of {expected}, not of {k.shape} and {v.shape}", TRAIN_AGAIN)
        if pair not in self.pairs:
            raise BundleError(f"{self.path}: knows nothing of {pair[0]}-{pair[1]}", TRAIN_AGAIN)
        probabilities = np.empty(len(self.classes), dtype=np.float32)
        status = self._library.pmpd_predictor_run(
            self._pointer, self.pairs.index(pair), k.ctypes.data, v.ctypes.data, len(k), probabilities.ctypes.data
        )
        if status:
            raise BundleError(f"{self.path}: cannot predict ({_FAILURES[status]})", "choose another scheduler")
        return probabilities.tolist()


def of_bundle(bundle: Bundle) -> Predictor:
    """Load a bundle's predictor.

    Raises:
        BundleError: it has none, or one that is damaged or was trained for other weights or another prefill.
        NativeError: the library is missing.
    """
    if not bundle.predictor:
        raise BundleError(
            f"{bundle.path}: no predictor", "train one with 'pmpd-edge train-scheduler', or choose another scheduler"
        )
    path = bundle.path / bundle.predictor.file
    if not path.is_file():
        raise BundleError(f"{path}: No such file or directory", TRAIN_AGAIN)
    predictor = Predictor.load(path)
    if predictor.fingerprint != bundle.fingerprint:
        raise BundleError(f"{path}: trained for other weights than the bundle's", TRAIN_AGAIN)
    if bundle.predictor.training.get("prefill", bundle.prefill) != bundle.prefill:
        raise BundleError(f"{path}: trained on prompts at another precision than {bundle.prefill}", TRAIN_AGAIN)
    if sha256_file(path) != bundle.predictor.sha256:
        raise BundleError(f"{path}: damaged (its SHA-256 is not the manifest's)", TRAIN_AGAIN)
    return predictor


@cache
def _library() -> Any:
    """libpmpd, with its functions declared."""
    library = native.library("pmpd")
    pointer, int32, floats = ctypes.c_void_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_float)
    library.pmpd_predictor_load.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
    library.pmpd_predictor_load.restype = pointer
    library.pmpd_predictor_free.argtypes = [pointer]
    library.pmpd_predictor_free.restype = None
    library.pmpd_predictor_run.argtypes = [pointer, int32, pointer, pointer, int32, pointer]
    library.pmpd_predictor_run.restype = int32
    getters = {"fingerprint": ctypes.c_char_p, "classes": floats, "prior": floats}
    of_a_pair = ("high", "low", "prior")
    numbers = (
        "layer",
        "n_head_kv",
        "head_dim_k",
        "head_dim_v",
        "max_new_tokens",
        "n_classes",
        "n_pairs",
        "high",
        "low",
    )
    for name in (*getters, *numbers):
        function = getattr(library, f"pmpd_predictor_{name}")
        function.argtypes = [pointer, int32] if name in of_a_pair else [pointer]
        function.restype = getters.get(name, int32)
    return library
