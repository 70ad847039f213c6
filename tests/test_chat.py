"""The chat (pmpd_edge/chat*.py): whole transcripts with a fake model, and sessions with the real one."""

from __future__ import annotations

import codecs
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pmpd_edge import bundle as bundles
from pmpd_edge import chat, cli_ui
from pmpd_edge.chat_template import Message, Prompt, render
from pmpd_edge.cli import cli
from pmpd_edge.errors import Cancelled, PmpdError
from pmpd_edge.schedule.spec import make_scheduler
from pmpd_edge.stats import GenerationStats
from pmpd_edge.stream import Sampling, Token

# Transcripts with a fake model


class FakeModel:
    """Answers from a queue, a word a token; its prompts are as long as their messages have words.

    An answer is a text, or an exception that is raised after the tokens so far.
    """

    def __init__(self) -> None:
        self.answers: list[Sequence[str | BaseException]] = []
        self.prompts: list[list[Message]] = []
        self.calls: list[tuple[Sampling, int]] = []
        self.configured: list[dict[str, Any]] = []
        self.seeds: list[int] = []
        self.cancelled = False
        switches = (bundles.Switch(1, 8), bundles.Switch(3, 4))
        levels = (bundles.Level(8, ("8.gguf",)), bundles.Level(4, ("4.gguf",)))
        self.bundle: Any = SimpleNamespace(
            name="fake",
            levels=levels,
            precisions=(8, 4),
            schedule=bundles.StaticSchedule(switches, 10),
            level=lambda precision: bundles.Bundle.level(self.bundle, precision),
            path="fake",
        )
        self.stats = GenerationStats("pmpd")
        self.metadata = {"tokenizer.chat_template": "..."}
        self.chat_format = "chat_template.default"

    def configure(self, *, method: str, scheduler: str | None, high_steps: int | None, draft_tokens: int | str) -> None:
        prefill = 4 if method == "low" else 8
        spec = scheduler or "static" if method == "pmpd" else f"fixed:{prefill}"
        made = make_scheduler(spec, self.bundle, high_steps)
        self.precisions = tuple(sorted({prefill, *made.precisions}, reverse=True))
        self.configured.append({"method": method, "scheduler": scheduler, "high_steps": high_steps})
        self.draft_tokens = draft_tokens

    def forecast(self) -> str:
        return ""

    def set_seed(self, seed: int) -> None:
        self.seeds.append(seed)

    def cancel(self) -> None:
        self.cancelled = True

    def close(self) -> None:
        pass

    def n_ctx(self) -> int:
        return 40

    def render(self, _: Any, messages: list[Message]) -> Prompt:
        self.prompts.append(messages)
        return Prompt([0] * sum(len(message["content"].split()) for message in messages), ("<end>",))

    def stream(
        self, _: Any, tokens: list[int], sampling: Sampling, max_new_tokens: int, stop: Sequence[str]
    ) -> Iterator[Token]:
        assert stop == ("<end>",)
        self.calls.append((sampling, max_new_tokens))
        self.stats = GenerationStats("pmpd", {8: 8.5, 4: 4.5}, len(tokens), 0, 0, 8, 0.01, 0.02)
        for i, part in enumerate(self.answers.pop(0)):
            if isinstance(part, BaseException):
                raise part
            if self.cancelled:
                raise Cancelled("cancelled")
            precision = 8 if i < 3 else 4
            self.stats.precisions.append(precision)
            yield Token(i, part, precision)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()
    monkeypatch.setattr(chat, "open_model", lambda bundle, options: fake)
    monkeypatch.setattr(chat, "render", fake.render)
    monkeypatch.setattr(chat, "stream", fake.stream)
    return fake


def converse(*lines: str, options: Sequence[str] = ()) -> Result:
    return CliRunner().invoke(cli, ["chat", *options], input="\n".join(lines))


SUMMARY = "prefill {n}00 t/s ({n} tokens) · decode 150 t/s (3 steps) · 6.67 bits (7.17 bpw) · 8 → 4 at step 3\n"


def test_a_conversation_with_history(model: FakeModel) -> None:
    model.answers = [[" A", " dog", " runs", "."], ["It", " is", " a", " cat."]]
    result = converse("Ein Hund läuft.", "", "Und nun?")
    answers = ["A dog runs.\n", SUMMARY.format(n=3), "It is a cat.\n", SUMMARY.format(n=8)]
    assert result.output == "".join(answers)
    assert result.stdout == "A dog runs.\nIt is a cat.\n"
    assert result.exit_code == 0
    assert model.prompts[1] == [
        {"role": "user", "content": "Ein Hund läuft."},
        {"role": "assistant", "content": " A dog runs."},
        {"role": "user", "content": "Und nun?"},
    ]


def test_a_backslash_at_the_end_continues_the_message(model: FakeModel) -> None:
    model.answers = [["ok"], ["ok"]]
    converse("one\\", "two", "three\\")
    assert model.prompts[0][0]["content"] == "one\ntwo"
    assert model.prompts[1][-1]["content"] == "three"


def test_the_settings_are_listed(model: FakeModel) -> None:
    result = converse("/set", options=["--system", "Be brief.", "--high-steps", "5"])
    assert (
        result.output
        == """\
  method          pmpd
  scheduler       static
  high-steps      5
  draft-tokens    auto
  max-new-tokens  10
  temperature     0.0
  top-k           40
  top-p           0.95
  min-p           0.05
  repeat-penalty  1.0
  seed            another one for every answer
  system          Be brief.
"""
    )


def test_the_settings_change_the_next_answer_and_go_back(model: FakeModel) -> None:
    model.answers = [["a"], ["b"]]
    changes = ["method low", "temperature 0.5", "top-k 3", "max-new-tokens 7", "seed 11", "system Talk like a pirate."]
    result = converse(*(f"/set {change}" for change in changes), "hello", "/set system default", "/set top-k", "bye")
    assert result.exit_code == 0, result.output
    assert model.configured[-1]["method"] == "low"
    assert model.calls[0] == (Sampling(temperature=0.5, top_k=3), 7)
    assert model.seeds == [11, 11]
    assert model.prompts[0][0] == {"role": "system", "content": "Talk like a pirate."}
    assert [message["role"] for message in model.prompts[1]] == ["user", "assistant", "user"]
    assert "  top-k  3\n" in result.output


def test_without_a_seed_answers_get_different_ones(model: FakeModel) -> None:
    model.answers = [["a"], ["b"]]
    converse("hello", "hello")
    assert len(set(model.seeds)) == 2


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("/sett", "Error: no command /sett: /help lists them\n"),
        ("/", "Error: no command /: /help lists them\n"),
        ("/set topk 3", "Error: no setting 'topk': choose one of method, scheduler, high-steps, draft-tokens, "),
        ("/set top-k many", "Error: top-k: 'many' is not a valid integer"),
        ("/set top-p 2", "Error: top-p: 2.0 is not in the range 0<=x<=1\n"),
        ("/set method slow", "Error: method: 'slow' is not one of 'pmpd', 'high', 'low', 'lossless'\n"),
        ("/set scheduler fixed:3", "Error: fake: no level of precision 3: choose one of 8, 4\n"),
        ("/set scheduler best", "Error: no scheduler 'best': choose static, "),
        ("/regen", "Error: nothing to answer again: write a message first\n"),
    ],
)
def test_bad_commands_get_one_helpful_line_and_change_nothing(model: FakeModel, line: str, complaint: str) -> None:
    model.answers = [["ok"]]
    result = converse(line, "/set scheduler", "hello")
    assert result.stderr.startswith(complaint)
    assert result.stderr.count("\n") == 2  # the complaint and the answer's summary
    assert result.stdout == "  scheduler  static\nok\n"
    assert result.exit_code == 1  # nobody watches: the status says that a line failed


def test_help_names_every_command(model: FakeModel) -> None:
    result = converse("/help")
    for command in ("/set", "/stats", "/regen", "/clear", "/exit"):
        assert f"  {command}" in result.stdout


def test_regen_answers_the_last_message_again_in_place_of_the_first_answer(model: FakeModel) -> None:
    model.answers = [["one"], ["two"], ["three"]]
    assert converse("hello", "/regen", "more").stdout == "one\ntwo\nthree\n"
    assert model.prompts[1] == [{"role": "user", "content": "hello"}]
    assert model.prompts[2][1]["content"] == "two"


def test_a_regen_that_fails_keeps_the_answer(model: FakeModel) -> None:
    model.answers = [["one"], [PmpdError("the evaluation failed")], ["three"]]
    assert "Error: the evaluation failed" in converse("hello", "/regen", "more").stderr
    assert model.prompts[2][1]["content"] == "one"


@pytest.mark.parametrize("word", ["/quit", "/bye"])
def test_the_words_of_other_chats_leave_too(model: FakeModel, word: str) -> None:
    assert converse(word, "never").stdout == ""
    assert model.prompts == []


def test_two_slashes_begin_a_message_that_begins_with_one(model: FakeModel) -> None:
    model.answers = ["yes"]
    converse("//usr/bin is a path")
    assert model.prompts[-1][-1]["content"] == "/usr/bin is a path"


def test_clear_forgets_and_exit_leaves(model: FakeModel) -> None:
    model.answers = [["one"], ["two"]]
    result = converse("hello", "/clear", "hello", "/exit", "never")
    assert result.stdout == "one\ntwo\n" and result.exit_code == 0
    assert len(model.prompts[1]) == 1


def test_stats_shows_all_figures(model: FakeModel) -> None:
    model.answers = [["a", "b", "c", "d"]]
    assert (
        converse("one two", "/stats").stdout
        == """\
abcd
  method              pmpd
  prompt              2 tokens, 0 kept from before
  prefill             0.010 s, 200.0 t/s, precision 8
  decode              0.020 s, 150.0 t/s, 3 steps
  steps by precision  8: 2, 4: 1
  average             6.67 bits, 7.17 bpw
  switches            4 at step 3
"""
    )


def test_stats_before_the_first_answer(model: FakeModel) -> None:
    assert converse("/stats").exit_code == 0


def test_the_oldest_turns_go_when_the_context_is_full_and_the_system_message_stays(model: FakeModel) -> None:
    model.answers = [["x " * 10] for _ in range(4)]
    result = converse("a " * 8, "b " * 3, "c", "d", options=["--system", "Be brief."])
    # 40 tokens, 10 of them for the answer: 2 + 8 + 10 + 3 = 23 fit, + 10 + 1 = 34 do not
    assert "The context is full: the oldest turn is left out.\n" in result.stderr
    assert result.exit_code == 0
    asked = [[message["content"].split()[0] for message in prompt] for prompt in model.prompts]
    assert asked == [
        ["Be", "a"],
        ["Be", "a", "x", "b"],
        ["Be", "a", "x", "b", "x", "c"],
        ["Be", "b", "x", "c"],
        ["Be", "b", "x", "c", "x", "d"],
    ]


def test_room_for_the_answer_is_at_most_half_of_the_context(model: FakeModel) -> None:
    model.answers = [["ok"]]
    assert converse("a " * 20, options=["--max-new-tokens", "1000"]).stdout == "ok\n"


def test_a_message_that_does_not_fit_gets_one_line_and_the_chat_goes_on(model: FakeModel) -> None:
    model.answers = [["one"], ["two"]]
    result = converse("hello", "a " * 31, "more")
    assert "Error: a prompt of 31 tokens does not fit: the context has 40, of which 10 are kept" in result.stderr
    assert result.stdout == "one\ntwo\n"
    assert len(model.prompts[-1]) == 3  # nothing was forgotten for a message that could not be answered


def test_prompt_gives_one_answer(model: FakeModel) -> None:
    model.answers = [["one"]]
    result = converse("no", "message", options=["--prompt", "hello"])
    assert (result.stdout, result.exit_code) == ("one\n", 0)


def test_prompt_dash_reads_all_of_standard_input_as_one_message(model: FakeModel) -> None:
    model.answers = [["one"]]
    converse("first", "second", options=["--prompt", "-"])
    assert model.prompts == [[{"role": "user", "content": "first\nsecond"}]]


def test_json_is_one_document_and_nothing_else(model: FakeModel) -> None:
    model.answers = [[" A", " dög", ""]]
    result = converse(options=["--prompt", "hello", "--json"])
    document = json.loads(result.stdout)
    assert document["text"] == " A dög"
    assert document["tokens"][1] == {"id": 1, "text": " dög", "precision": 8}
    assert set(document) == {"text", "tokens", "stats"}
    assert document["stats"] == model.stats.to_dict()
    assert result.stderr == ""


@pytest.mark.parametrize("options", [["--prompt", "hello"], ["--prompt", "hello", "--json"], []])
def test_ctrl_c_where_nobody_types_leaves_with_130(model: FakeModel, options: list[str]) -> None:
    model.answers = [["a", KeyboardInterrupt()]]
    result = converse("hello", "never", options=options)
    assert result.exit_code == 130
    assert result.stderr == ""


def test_a_model_without_a_template_says_so(model: FakeModel) -> None:
    model.metadata, model.chat_format = {}, "llama-2"
    assert "fake has no chat template: messages are continued as plain text." in converse("/exit").stderr


def test_bytes_that_are_not_utf8_do_not_end_the_chat(model: FakeModel) -> None:
    model.answers = [["ok"]]
    converse(options=["--prompt", "a\udcff"])
    assert model.prompts[0][0]["content"] == "a?"


def test_loading_says_so_only_when_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with cli_ui.loading("quick"):
        pass
    monkeypatch.setattr(cli_ui, "SHOW_AFTER", 0.01)
    with cli_ui.loading("slow"):
        time.sleep(0.2)
    assert capsys.readouterr().err == "Loading slow ...\n"


def test_on_a_terminal_control_characters_of_the_answer_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with cli_ui.answer_view(4) as view:
        for token in (Token(0, "a\x1b[2J\x07", 8), Token(1, "\u009bb", 4), Token(2, "c\n", 4), Token(3, "d", 8)):
            view.add(token)
    assert capsys.readouterr().out == f"a[2J{cli_ui.ORANGE}bc\n{cli_ui.RESET}d\n"


# The real model


@pytest.fixture(scope="module")
def llm() -> Iterator[Any]:
    from pmpd_edge import Pmpd

    model = Pmpd.from_bundle(n_threads=1, n_ctx=16384)
    yield model
    model.close()


class TestTemplate:
    TALK: Sequence[Message] = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Ein Hund."},
        {"role": "assistant", "content": " A dog."},
        {"role": "user", "content": "Zwei Hunde <s> 🙂"},
    )

    @pytest.mark.parametrize("chat_format", ["chat_template.default", "chatml", "llama-2", "llama-3", "zephyr"])
    def test_the_prompt_is_that_of_create_chat_completion(
        self, llm: Any, chat_format: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(llm, "chat_format", chat_format)
        prompt = render(llm, self.TALK)
        llm.create_chat_completion(list(self.TALK), max_tokens=1)
        assert prompt.tokens == llm.input_ids[: llm.stats.prompt_tokens].tolist()
        if chat_format == "chat_template.default":
            assert prompt.stop == ("<|end|>",)
            assert prompt.tokens[:2] == [1, 3]  # one <s>, then <|user|>

    def test_a_refusal_of_the_template_is_one_error(self, llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        formatter = Jinja2ChatFormatter("{{ raise_exception('no system here') }}", "", "")
        monkeypatch.setitem(llm._chat_handlers, "picky", formatter.to_chat_handler())
        monkeypatch.setattr(llm, "chat_format", "picky")
        with pytest.raises(PmpdError, match="template refuses the conversation"):
            render(llm, self.TALK)

    def test_without_a_template_the_messages_are_plain_text(self, llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(llm, "metadata", {})
        monkeypatch.setattr(llm, "chat_format", "llama-2")
        expected = llm.tokenize("Be brief.\nEin Hund.\n A dog.\nZwei Hunde <s> 🙂".encode(), special=False)
        assert render(llm, self.TALK) == Prompt(expected)


class TestInterrupt:
    def test_ctrl_c_stops_a_prefill_and_the_chat_goes_on(self, llm: Any, capsys: pytest.CaptureFixture[str]) -> None:
        conversation = chat.Conversation(llm, chat.Settings(max_new_tokens=20))
        session = chat.Session(conversation, {}, interactive=True)
        timer = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT])
        timer.start()
        session.say("Ein Hund läuft im Park. " * 2000)
        timer.join()
        assert capsys.readouterr().err == "Stopped before the first token.\n"
        assert conversation.turns == []
        session.say("Ein Mann geht mit seinem Hund im Park spazieren.")
        assert capsys.readouterr().out == "A man walking his dog in a park.\n"


CONTROLLING = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A chat on a pseudo-terminal of its own, where Ctrl-C is what it is on a real one."""

    def __init__(self, *options: str, **environment: str) -> None:
        import pty

        self._master, slave = pty.openpty()
        command = [sys.executable, "-m", "pmpd_edge", "chat", "--threads", "1", *options]
        env = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CONTROLLING, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**env, "TERM": "xterm", **environment},
        )
        os.close(slave)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str, timeout: float = 30) -> str:
        """Read until `text` appears; returns what was read before it, and forgets it."""
        deadline = time.monotonic() + timeout
        while text not in self.seen:
            readable, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
            try:
                assert readable, f"no {text!r} in {self.seen!r}"
                self.seen += self._decoder.decode(os.read(self._master, 4096))
            except OSError:  # the other end is closed
                raise AssertionError(f"no {text!r} in {self.seen!r}") from None
        before, _, self.seen = self.seen.partition(text)
        return before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_terminal(*options: str, **environment: str) -> Terminal:
        opened.append(Terminal(*options, **environment))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


ENDLESS = [
    *("--ctx-size", "8192", "--max-new-tokens", "8000"),
    *("--temperature", "1000000", "--top-k", "0", "--top-p", "1", "--min-p", "0", "--seed", "2"),  # 2564 random words
]


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are Unix's")
class TestTerminal:
    def test_a_session(self, terminal: Callable[..., Terminal]) -> None:
        session = terminal("--high-steps", "1")
        assert "translator-7m · pmpd · 8 → 4" in session.wait_for("> ")
        session.type("Ein Mann geht mit seinem Hund im Park spazieren.\n")
        session.wait_for("spazieren.\r\n")
        answer = session.wait_for("bpw)")
        assert f"\n{cli_ui.DIM}prefill" in answer
        assert "A man walking his dog" in answer.replace(cli_ui.ORANGE, "").replace(cli_ui.RESET, "")
        assert answer.count(cli_ui.ORANGE) == 1 == answer.partition(cli_ui.DIM)[0].count(cli_ui.RESET)
        session.wait_for("> ")
        session.type("/set method low\n")
        session.wait_for("method  low")
        session.wait_for("> ")
        session.type("Ein \\\n")
        session.wait_for("… ")
        session.type("Hund.\n")
        session.wait_for("Hund.\r\n")
        assert cli_ui.ORANGE not in session.wait_for("all at 2")
        session.wait_for("> ")
        session.type("\x04")
        assert session.process.wait(10) == 0

    def test_ctrl_c_stops_the_answer_and_leaves_at_the_prompt(self, terminal: Callable[..., Terminal]) -> None:
        session = terminal(*ENDLESS)
        session.wait_for("> ")
        session.type("Ein Hund.\n")
        session.wait_for("Hund.\r\n")
        session.wait_for(" ")
        session.type("\x03")
        assert f"{cli_ui.DIM}prefill" in session.wait_for("· stopped")
        session.wait_for("> ")
        time.sleep(0.3)  # Python hears no Ctrl-C in the moment between drawing the prompt and waiting for input
        session.type("\x03")
        assert session.process.wait(10) == 130
        with pytest.raises(AssertionError):  # the end of the output
            session.wait_for("Traceback")

    def test_a_second_ctrl_c_right_after_the_first_leaves(self, terminal: Callable[..., Terminal]) -> None:
        session = terminal(*ENDLESS)
        session.wait_for("> ")
        session.type("Ein Hund.\n")
        session.wait_for("Hund.\r\n")
        session.wait_for(" ")
        for _ in range(3):  # one may come in that moment
            session.type("\x03")
            time.sleep(0.1)
        assert session.process.wait(10) == 130

    def test_ctrl_c_leaves_where_a_single_answer_was_asked_for(self, terminal: Callable[..., Terminal]) -> None:
        session = terminal(*ENDLESS, "--prompt", "Ein Hund.")
        session.wait_for(" ")
        session.type("\x03")
        assert session.process.wait(10) == 130

    def test_no_color_is_heard(self, terminal: Callable[..., Terminal]) -> None:
        session = terminal(
            "--prompt", "Ein Mann geht mit seinem Hund im Park spazieren.", "--high-steps", "1", NO_COLOR="1"
        )
        assert "\x1b[3" not in session.wait_for("bpw)")
        assert session.process.wait(10) == 0

    def test_a_pipe_gets_the_answer_alone(self) -> None:
        command = [sys.executable, "-m", "pmpd_edge", "chat", "--threads", "1", "--high-steps", "1"]
        done = subprocess.run(command, input=b"Ein Hund.\n\xff\xfe\n", capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert b"\x1b" not in done.stdout + done.stderr and b"> " not in done.stdout
        assert done.stdout.startswith(b"A dog") and done.stdout.count(b"\n") == 2
        assert done.stderr.count(b"prefill ") == 2
