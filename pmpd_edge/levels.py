"""The loaded models of a bundle, and which of them a context evaluates with.

Each weights file is loaded once, when a level first needs it, and shared by all levels that sum it.
"""

from __future__ import annotations

from typing import Any

from pmpd_edge import native
from pmpd_edge.bundle import Bundle, Level
from pmpd_edge.errors import BundleError

native.load()  # before llama_cpp is first imported

from llama_cpp import _internals as internals  # noqa: E402


class Levels:
    """Puts a context at a precision of a bundle.

    Args:
        bundle: the bundle whose levels these are.
        context: the `llama_cpp` context that is switched; it is closed before any model is.
        model: the context's own model, loaded from `bundle.levels[0].weights[0]`.
    """

    def __init__(self, bundle: Bundle, context: internals.LlamaContext, model: internals.LlamaModel) -> None:
        self.bundle = bundle
        self._context = context
        self._params = model.params
        self._models = {bundle.levels[0].weights[0]: model}
        self._own = model
        if len(bundle.levels[0].weights) > 1:
            # The graphs of the level with the most residuals are the largest: room is made for them once, now.
            self.put(bundle.levels[0].precision)

    def load(self, precision: int) -> Level:
        """Load the weights of a level, unless they are there; raises BundleError where that fails."""
        level = self.bundle.level(precision)
        for name, path in zip(level.weights, self.bundle.paths(level), strict=True):
            if name not in self._models:
                model = load_model(str(path), self._params)
                model._exit_stack.callback(self._context.close)  # a context goes before its models
                self._models[name] = model
        return level

    def put(self, precision: int) -> None:
        """Evaluate what follows at `precision`; the KV cache stays.

        Raises:
            BundleError: there is no such level, or one of its files does not load.
            NativeError: its weights do not match the context's.
        """
        level = self.load(precision)
        native.set_weights(self._context.ctx, [self._models[name].model for name in level.weights])

    def close(self) -> None:
        """Free the context and all models but its own, which its owner frees."""
        for model in self._models.values():
            if model is not self._own:
                model.close()
        self._models = {}


def load_model(path: str, params: Any) -> internals.LlamaModel:
    """Load a GGUF file; raises BundleError with the library's reason."""
    with native.captured_log() as lines:
        try:
            return internals.LlamaModel(path_model=path, params=params, verbose=True)
        except ValueError:
            reason = lines[0].split(": ", 1)[-1] if lines else "no reason given"
            raise BundleError(f"{path}: does not load ({reason})", "convert the model again") from None
