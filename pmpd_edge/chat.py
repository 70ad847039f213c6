"""A conversation with a bundle, and the loop in which a person has it.

What is drawn is in cli_ui.py; how messages become a prompt in chat_template.py; how tokens become text in stream.py.
"""

from __future__ import annotations

import json
import random
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from pmpd_edge import cli_ui as ui
from pmpd_edge.bundle import default_bundle, load, resolve
from pmpd_edge.chat_template import Message, Prompt, has_template, render
from pmpd_edge.errors import Cancelled, ContextFullError, PmpdError
from pmpd_edge.stream import Sampling, Token, stream

if TYPE_CHECKING:
    from pmpd_edge.runner import Pmpd

HELP = {
    "/set [NAME [VALUE]]": "show the settings, or change one ('default' takes a change back)",
    "/stats": "all figures of the last answer",
    "/regen": "answer the last message again",
    "/clear": "forget the conversation",
    "/exit": "leave (also Ctrl-D)",
}


@dataclass(frozen=True)
class Settings:
    """What can change between two answers; the names are those of the command's options.

    `scheduler` None is the method's own, `max_new_tokens` None the bundle's, `seed` None another one for every answer.
    """

    method: str = "pmpd"
    scheduler: str | None = None
    high_steps: int | None = None
    draft_tokens: int | str = "auto"
    max_new_tokens: int | None = None
    temperature: float = Sampling.temperature
    top_k: int = Sampling.top_k
    top_p: float = Sampling.top_p
    min_p: float = Sampling.min_p
    repeat_penalty: float = Sampling.repeat_penalty
    seed: int | None = None
    system: str = ""

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repeat_penalty)


class Conversation:
    """The messages so far, and the model that answers the next one. It draws nothing.

    Attributes:
        turns: messages and their answers, oldest first.
        settings: change them with `change`.
    """

    def __init__(self, llm: Pmpd, settings: Settings) -> None:
        self.llm = llm
        self.turns: list[tuple[str, str]] = []
        self.settings = settings
        self.change(settings)

    def change(self, settings: Settings) -> None:
        """Answer with these settings from now on; raises PmpdError, with nothing changed, where they do not fit."""
        self.llm.configure(
            method=settings.method,
            scheduler=settings.scheduler,
            high_steps=settings.high_steps,
            draft_tokens=settings.draft_tokens,
        )
        self.settings = settings

    @property
    def max_new_tokens(self) -> int:
        """The length of an answer at most."""
        return self.settings.max_new_tokens or self.llm.bundle.schedule.max_new_tokens

    def prompt(self, text: str) -> tuple[Prompt, int]:
        """The prompt of a new message with as many turns before it as leave room for an answer.

        The room is `max_new_tokens`, at most half of the context; the system message always stays.

        Returns:
            The prompt, and how many of the oldest turns it leaves out.

        Raises:
            ContextFullError: the message alone is too long.
        """
        size = self.llm.n_ctx()
        room = min(self.max_new_tokens, size // 2)
        for dropped in range(len(self.turns) + 1):
            prompt = render(self.llm, self._messages(self.turns[dropped:], text))
            if len(prompt.tokens) + room <= size:
                return prompt, dropped
        raise ContextFullError(
            f"a prompt of {len(prompt.tokens)} tokens does not fit: the context has {size}, of which {room} are kept "
            "for the answer",
            "shorten it, lower max-new-tokens, or raise --ctx-size",
        )

    def answer(self, text: str, prompt: Prompt, dropped: int = 0) -> Generator[Token, None, None]:
        """Generate the answer to a message whose prompt `prompt` made; what was generated joins the conversation."""
        seed = self.settings.seed
        self.llm.set_seed(random.randrange(1 << 32) if seed is None else seed)
        tokens: list[str] = []
        try:
            for token in stream(self.llm, prompt.tokens, self.settings.sampling, self.max_new_tokens, prompt.stop):
                tokens.append(token.text)
                yield token
        finally:
            del self.turns[:dropped]
            if tokens:
                self.turns.append((text, "".join(tokens)))

    def _messages(self, turns: Sequence[tuple[str, str]], text: str) -> list[Message]:
        messages = [{"role": "system", "content": self.settings.system}] if self.settings.system else []
        for message, answer in turns:
            messages += [{"role": "user", "content": message}, {"role": "assistant", "content": answer}]
        return [*messages, {"role": "user", "content": text}]


class Session:
    """The loop: reads lines, answers messages, obeys commands.

    Args:
        conversation: the conversation to have.
        options: the command line's options by setting; `/set` takes what they take.
        interactive: whether a person types the messages.

    Attributes:
        failed: whether any line could not be answered or obeyed.
    """

    def __init__(
        self, conversation: Conversation, options: Mapping[str, click.Parameter], interactive: bool = False
    ) -> None:
        self._conversation = conversation
        self._options = options
        self._defaults = conversation.settings
        self._interactive = interactive
        self.failed = False

    def run(self) -> None:
        """Read messages and commands until the input ends or `/exit`.

        Raises:
            KeyboardInterrupt: Ctrl-C at the prompt, or twice during an answer, or once where nobody types.
        """
        if self._interactive:
            with suppress(ImportError):
                import readline  # noqa: F401  (gives input() its history and editing)
            self._greet()
        while (text := self._read()) is not None:
            try:
                if text.startswith("/") and not text.startswith("//"):
                    if not self._command(*text[1:].split(maxsplit=2)):
                        return
                elif text:
                    self.say(text.removeprefix("/") if text.startswith("//") else text)
            except PmpdError as error:
                ui.complain(error)
                self.failed = True

    def say(self, text: str) -> None:
        """Answer a message on standard output, with a line about it on standard error."""
        conversation = self._conversation
        prompt, dropped = conversation.prompt(text)
        if dropped:
            oldest = "oldest turn is" if dropped == 1 else f"{dropped} oldest turns are"
            ui.note(f"The context is full: the {oldest} left out.")
        precisions = conversation.llm.precisions
        last = None
        with (
            _interruptible(conversation.llm, self._interactive) as stopped,
            ui.answer_view(precisions[-1] if len(precisions) > 1 else None) as view,
            closing(conversation.answer(text, prompt, dropped)) as answer,
            suppress(Cancelled),
        ):
            for last in answer:
                view.add(last)
                if stopped():
                    break
        if last is None:
            ui.note("Stopped before the first token.")
            return
        notes = {"context": "the context is full", "length": "the longest answer that max-new-tokens allows"}
        word = "stopped" if stopped() and not last.finish else notes.get(last.finish)
        ui.note(ui.summary(conversation.llm.stats) + (f" · {word}" if word else ""))

    def _greet(self) -> None:
        conversation = self._conversation
        bits = " → ".join(map(str, conversation.llm.precisions))
        ui.note(
            f"{conversation.llm.bundle.name} · {conversation.settings.method} · {bits} bits · /help lists the commands"
        )
        if forecast := conversation.llm.forecast():
            ui.note(forecast.capitalize() + ".")
        if conversation.llm.bundle.path == default_bundle():
            ui.note('Write a sentence in German, or begin with "Translate from French to English:".')

    def _read(self) -> str | None:
        """The next message, over several lines where they end with a backslash; None at the end of the input."""
        lines: list[str] = []
        while True:
            try:
                line = ui.ask("… " if lines else "> ") if self._interactive else input().removeprefix("\ufeff")
            except EOFError:
                return clean("\n".join(lines)) if lines else None
            except KeyboardInterrupt:
                if not lines:
                    raise
                lines.clear()  # what was typed so far is dropped
                continue
            if not line.endswith("\\"):
                return clean("\n".join([*lines, line]))
            lines.append(line[:-1])

    # Commands

    def _command(self, name: str = "", argument: str = "", value: str = "") -> bool:
        """Obey a command; False where it ends the chat."""
        conversation = self._conversation
        if name in ("exit", "quit", "bye"):
            return False
        elif name == "help":
            more = {
                "text \\": "a backslash at the end continues the message on the next line",
                "//text": "a message that begins with a slash",
            }
            print(ui.columns({**HELP, **more}))
        elif name == "stats":
            print(ui.details(conversation.llm.stats))
        elif name == "clear":
            conversation.turns.clear()
            ui.note("The conversation starts anew.")
        elif name == "regen":
            self._regenerate()
        elif name == "set":
            self._set(argument.replace("-", "_"), value)
        else:
            raise PmpdError(f"no command /{name}", "/help lists them")
        return True

    def _regenerate(self) -> None:
        turns = self._conversation.turns
        if not turns:
            raise PmpdError("nothing to answer again", "write a message first")
        turn = turns.pop()
        kept = len(turns)
        try:
            self.say(turn[0])
        finally:
            if len(turns) == kept:  # no new answer came
                turns.append(turn)

    def _set(self, name: str, value: str) -> None:
        conversation = self._conversation
        settings = conversation.settings
        known = settings.__dataclass_fields__
        if name and name not in known:
            names = ", ".join(known).replace("_", "-")
            raise PmpdError(f"no setting {name.replace('_', '-')!r}", f"choose one of {names}")
        if value:
            conversation.change(replace(settings, **{name: self._parse(name, value)}))
        shown = [name] if name else list(known)
        print(ui.columns({field.replace("_", "-"): self._show(field) for field in shown}))

    def _parse(self, name: str, value: str) -> Any:
        if value == "default":
            return getattr(self._defaults, name)
        try:
            return self._options[name].type.convert(value, None, None)
        except click.BadParameter as error:
            raise PmpdError(f"{name.replace('_', '-')}: {error.message.rstrip('.')}") from None

    def _show(self, name: str) -> str:
        value = getattr(self._conversation.settings, name)
        if name == "max_new_tokens":
            value = self._conversation.max_new_tokens
        if name == "scheduler" and value is None:
            value = "none" if self._conversation.settings.method == "lossless" else "static"
        absent = {"seed": "another one for every answer", "high_steps": "as scheduled"}
        return absent.get(name, "") if value is None else str(value)


def answer_once(conversation: Conversation, text: str) -> dict[str, Any]:
    """Answer a single message without drawing anything.

    Returns:
        `text`; `tokens`, each with `id`, `text`, `precision` and, from `lossless`, `drafted`, an end-of-answer token
        included; `stats`.
    """
    prompt, _ = conversation.prompt(text)
    tokens = list(conversation.answer(text, prompt))
    stats = conversation.llm.stats
    shown = ("id", "text", "precision", "drafted") if stats.drafting else ("id", "text", "precision")
    return {
        "text": "".join(token.text for token in tokens),
        "tokens": [{name: getattr(token, name) for name in shown} for token in tokens],
        "stats": stats.to_dict(),
    }


def run(
    bundle: str | None,
    settings: Settings,
    model_options: Mapping[str, Any],
    options: Mapping[str, click.Parameter],
    prompt: str | None = None,
    as_json: bool = False,
) -> int:
    """Chat in the terminal, or answer `prompt` alone; returns the exit status."""
    if prompt is not None:
        prompt = clean(sys.stdin.read() if prompt == "-" else prompt)
        if not prompt:
            raise PmpdError("an empty prompt", "give a text to answer")
    with closing(open_model(bundle, model_options)) as llm:
        conversation = Conversation(llm, settings)
        if not has_template(llm):
            ui.note(f"{llm.bundle.name} has no chat template: messages are continued as plain text.")
        interactive = prompt is None and sys.stdin.isatty()
        session = Session(conversation, options, interactive)
        if prompt is None:
            session.run()
        elif as_json:
            print(json.dumps(answer_once(conversation, prompt), ensure_ascii=False))
        else:
            session.say(prompt)
        return int(session.failed and not interactive)  # where nobody watched, the status tells


def open_model(bundle: str | None, options: Mapping[str, Any]) -> Pmpd:
    """Open a bundle with the options of `Pmpd` that are not None; `type_k` and `type_v` by name."""
    with ui.loading(bundle or "the model"):
        from pmpd_edge.runner import Pmpd, llama_cpp

        given = {name: value for name, value in options.items() if value is not None}
        bundle_path = resolve(bundle)
        trained = load(bundle_path).context_length
        if given.get("n_ctx", 0) > trained:
            ui.note(f"The model was trained on {trained} tokens: beyond them it may answer nonsense.")
        for name in {"type_k", "type_v"} & given.keys():
            given[name] = getattr(llama_cpp, f"GGML_TYPE_{given[name].upper()}")
        return Pmpd(bundle_path, **given)


def clean(text: str) -> str:
    """Text without white space around it, and with `?` for what is not valid UTF-8."""
    return text.strip().encode("utf-8", "replace").decode()


@contextmanager
def _interruptible(llm: Pmpd, interactive: bool) -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C stop an answer; a second one, or the first where nobody types, leaves with KeyboardInterrupt.

    The first one raises nothing, so that it cannot hit the model between an evaluation and the book-keeping after it.
    """
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if stopped or not interactive:
            raise KeyboardInterrupt
        stopped = True
        llm.cancel()  # ends a prefill

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield lambda: stopped
    finally:
        signal.signal(signal.SIGINT, before)
