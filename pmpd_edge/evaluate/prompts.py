"""From examples to the tokens that a model is asked with."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from pmpd_edge import native
from pmpd_edge.bundle import Bundle
from pmpd_edge.chat_template import Message, render
from pmpd_edge.evaluate.tasks import Example, Task

native.load()  # before llama_cpp is first imported

import llama_cpp  # noqa: E402

Progress = Callable[[str, float], None]


def vocabulary(bundle: Bundle) -> Any:
    """The tokenizer and the chat template of a bundle as a `llama_cpp.Llama` without weights; close it after use."""
    path = bundle.paths(bundle.levels[-1])[0]
    with native.loading_log():
        return llama_cpp.Llama(os.fspath(path), vocab_only=True, verbose=False)


def prompt_of(llm: Any, task: Task, turns: Sequence[str], answers: Sequence[str] = ()) -> list[int]:
    """The token ids of a conversation that waits for its next answer.

    Args:
        llm: the model, or its `vocabulary`.
        task: says whether prompts are messages or plain text.
        turns: what was asked.
        answers: what was answered to all but the last of them.
    """
    if not task.chat:
        said = [text for pair in zip(turns, (*answers, ""), strict=True) for text in pair]
        return llm.tokenize("\n".join(said[:-1]).encode(), special=False)
    messages: list[Message] = []
    for turn, answer in zip(turns, (*answers, None), strict=True):
        messages.append({"role": "user", "content": turn})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    return list(render(llm, messages).tokens)


def prompts_of(
    llm: Any, task: Task, examples: Sequence[Example], progress: Progress = lambda label, fraction: None
) -> list[list[int]]:
    """The token ids of the first messages of examples, as the model is asked."""
    prompts = []
    for i, example in enumerate(examples):
        progress("reading the prompts", i / len(examples))
        prompts.append(prompt_of(llm, task, [example.prompt]))
    return prompts
