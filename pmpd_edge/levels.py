"""The loaded models of a bundle, and which of them a context evaluates with.

Each weights file is loaded once, when a level first needs it, and shared by all levels that sum it.
"""

from __future__ import annotations

from typing import Any

from pmpd_edge import native
from pmpd_edge.bundle import Bundle
from pmpd_edge.errors import BundleError, PmpdError

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
        self._own = model
        self._models = {bundle.levels[0].weights[0]: model}
        self._current = (model,)
        self._fitting: set[int] = set()

    @property
    def loaded(self) -> frozenset[str]:
        """The names of the weights files that are in memory."""
        return frozenset(self._models)

    def load(self, *precisions: int) -> None:
        """Load the weights of levels and see that they fit the context, so that switching to them later cannot fail.

        The highest level comes first: where levels are sums, its graphs are the largest; room is made for them once.

        Raises:
            BundleError: there is no such level, or one of its files does not load.
            NativeError: its weights do not match the context's.
        """
        for precision in sorted({*precisions} - self._fitting, reverse=True):
            with native.loading_log():
                self._set(self._load(precision))
                self._set(self._current)
            self._fitting.add(precision)

    def put(self, precision: int) -> None:
        """Evaluate what follows at `precision`; the KV cache stays. Raises what `load` raises."""
        self.load(precision)
        models = self._load(precision)
        self._set(models)
        self._current = models

    def _load(self, precision: int) -> tuple[internals.LlamaModel, ...]:
        level = self.bundle.level(precision)
        for name, path in zip(level.weights, self.bundle.paths(level), strict=True):
            if name not in self._models:
                self.bundle.check_tokenizer(name)
                model = load_model(str(path), self._own.params)
                model._exit_stack.callback(self._context.close)  # a context goes before its models
                self._models[name] = model
        return tuple(self._models[name] for name in level.weights)

    def _set(self, models: tuple[internals.LlamaModel, ...]) -> None:
        if self._context.ctx is None:
            raise PmpdError("the model has been closed", "open it again")
        native.set_weights(self._context.ctx, [model.model for model in models])

    def close(self) -> None:
        """Free the context and all models but its own, which its owner frees."""
        for model in self._models.values():
            if model is not self._own:
                model.close()
        self._models = {}


def load_model(path: str, params: Any) -> internals.LlamaModel:
    """Load a GGUF file; raises BundleError with the library's reason."""
    with native.loading_log() as log:
        try:
            return internals.LlamaModel(path_model=path, params=params, verbose=True)
        except ValueError as error:
            raise BundleError(f"{path}: does not load ({log.reason(error)})", "convert the model again") from None
