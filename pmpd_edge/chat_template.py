"""From messages to the tokens of a prompt, with the chat template that the GGUF carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pmpd_edge.errors import PmpdError

if TYPE_CHECKING:
    from pmpd_edge.runner import Pmpd

Message = dict[str, str]


@dataclass(frozen=True)
class Prompt:
    """What is evaluated, and the strings that end the answer to it."""

    tokens: list[int]
    stop: tuple[str, ...] = ()


def has_template(llm: Pmpd) -> bool:
    """Whether the model says how messages are written; llama_cpp would take Llama 2's form where it does not."""
    return "tokenizer.chat_template" in llm.metadata or llm.chat_format != "llama-2"


def render(llm: Pmpd, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None) -> Prompt:
    """Write messages (`role` and `content`) as a prompt: the one that `llm.create_chat_completion` would evaluate.

    A model without a template gets the messages as lines of plain text, to be continued.

    Args:
        llm: the model whose template it is.
        messages: the conversation so far.
        tools: what the model may call, in OpenAI's form; a template that knows of no tools leaves them out.

    Raises:
        PmpdError: the template refuses these messages.
    """
    if not has_template(llm):
        text = "\n".join(message["content"] for message in messages)
        return Prompt(llm.tokenize(text.encode(), special=False))

    from llama_cpp.llama_chat_format import get_chat_completion_handler

    handler = (
        llm.chat_handler or llm._chat_handlers.get(llm.chat_format) or get_chat_completion_handler(llm.chat_format)
    )
    recorder = _Recorder(llm)
    try:
        handler(llama=recorder, messages=list(messages), tools=list(tools) if tools else None)
    except _Recorded:
        return recorder.prompt
    except Exception as error:  # templates raise what they like; all mean that the conversation does not suit them
        raise PmpdError(
            f"the model's chat template refuses the conversation ({error})", "try without a system message"
        ) from error
    raise PmpdError(f"the chat format {llm.chat_format!r} does not write a prompt", "choose another model")


class _Recorded(Exception):
    """Leaves llama_cpp's handler when it has its prompt."""


class _Recorder:
    """Stands in for the model in llama_cpp's chat handler and keeps the prompt that it makes.

    So there is no second idea here of which formatter a template gets, and of where the BOS token comes from.
    """

    verbose = False

    def __init__(self, llm: Pmpd) -> None:
        self.tokenize = llm.tokenize
        self.prompt = Prompt([])

    def create_completion(self, prompt: list[int], stop: Sequence[str], **_: Any) -> None:
        self.prompt = Prompt(prompt, tuple(stop))
        raise _Recorded
