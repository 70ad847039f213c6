"""libpmpd's C API: what it refuses, how it is stopped, and what it does with several threads (native/pmpd/pmpd.h)."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from libpmpd import (
    ARGUMENT,
    BUNDLE,
    BUSY,
    CANCELLED,
    CONTEXT_FULL,
    DEFAULT,
    Bundle,
    PmpdFailure,
    Session,
    Token,
    assert_same,
    library,
    refused,
    single_level,
)
from talk import SENTENCES

from pmpd_edge import bundle as bundles
from pmpd_edge.bench.random_model import quantize, write_llama

END = 5  # the default model's end-of-answer token


@pytest.fixture
def session() -> Session:
    return Session(DEFAULT)


def prompt(session: Session, text: str = SENTENCES[0]) -> list[int]:
    return session.render([{"role": "user", "content": text}])


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "fast"}, "no method 'fast': choose one of pmpd, high, low, lossless"),
        ({"method": None}, "no method: begin with pmpd_default_options"),
        ({"scheduler": "confidence"}, "no scheduler 'confidence'"),
        ({"scheduler": ""}, "no scheduler ''"),
        ({"scheduler": "static:"}, "no scheduler 'static:'"),
        ({"scheduler": "static:8"}, "'8' in a schedule"),
        ({"scheduler": "static:8@1,"}, "'' in a schedule"),
        ({"scheduler": "static:8@1,4@-3"}, "'4@-3' in a schedule"),
        ({"scheduler": "static:8@99999999999"}, "in a schedule"),
        ({"scheduler": "static:8@2"}, "the first step is 1"),
        ({"scheduler": "static:16@1"}, "no level of precision 16: choose one of 8, 4, 2"),
        ({"scheduler": "fixed"}, "no scheduler 'fixed'"),
        ({"scheduler": "fixed:3"}, "no level of precision 3"),
        ({"scheduler": "fixed:4", "high_steps": 3}, "high steps have no meaning"),
        ({"scheduler": "learned:8"}, "no scheduler 'learned:8'"),
        ({"scheduler": "learned:8-2,x"}, "no scheduler 'learned:8-2,x'"),
        ({"scheduler": "learned:8-2,0"}, "give a confidence above 0"),
        ({"high_steps": -2}, "high_steps -2"),
        ({"prefill": 3}, "no level of precision 3"),
        ({"method": "lossless", "draft": 3}, "no level of precision 3"),
        ({"method": "lossless", "draft_tokens": -1}, "draft_tokens -1: give one in .0, 16."),
        ({"method": "lossless", "draft_tokens": 17}, "draft_tokens 17"),
        ({"method": "lossless", "scheduler": "fixed:3"}, "no level of precision 3"),
        ({"n_ctx": -1}, "n_ctx -1"),
        ({"n_batch": 0}, "n_batch 0"),
        ({"n_threads": 100_000}, "n_threads 100000"),
        ({"n_gpu_layers": -2}, "n_gpu_layers -2"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    refused(ARGUMENT, message, lambda: Session(DEFAULT, options))
    refused(ARGUMENT, message, lambda: Bundle(DEFAULT).memory(**options))


def test_a_predictor_that_is_not_there_is_refused():
    refused(BUNDLE, "no predictor: train one", lambda: Session(DEFAULT, {"scheduler": "learned"}))


def test_a_configuration_that_fails_changes_nothing(session):
    before = session.generate(prompt(session), 20)
    refused(ARGUMENT, "no level", lambda: session.configure(scheduler="fixed:3"))
    session.clear()
    assert session.generate(prompt(session), 20) == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -0.5}, "min_p"),
        ({"repeat_penalty": 0.0}, "repeat_penalty"),
        ({"max_new_tokens": -1}, "max_new_tokens -1"),
    ],
)
def test_requests_that_make_no_sense_are_refused(session, given, message):
    refused(ARGUMENT, message, lambda: session.generate([1, 2], **given))
    refused(ARGUMENT, "an empty prompt", lambda: session.generate([]))
    refused(ARGUMENT, "token 4096, which is not in the vocabulary", lambda: session.generate([1, 4096]))
    refused(ARGUMENT, "token -1", lambda: session.generate([-1]))


def test_only_what_is_needed_is_loaded():
    """A method of one level takes less memory, and is estimated to."""
    bundle = Bundle(DEFAULT)
    sizes = {
        level.precision: bundles.load(DEFAULT).files[level.weights[0]].bytes for level in bundles.load(DEFAULT).levels
    }
    low, high, both = (bundle.memory(**given) for given in ({"method": "low"}, {"method": "high"}, {}))
    # Embeddings that are the output, too, are held twice where a CPU repacks them.
    embeddings = 4096 * 256 * 34 // 32
    assert high - low == sizes[8] - sizes[2]
    assert 0 <= both - high - sizes[4] - sizes[2] <= 2 * embeddings
    assert 0 <= bundle.memory(method="lossless") - high - sizes[2] <= embeddings
    assert 0 <= bundle.memory(method="lossless", draft=4) - high - sizes[4] <= embeddings
    assert bundle.memory(n_ctx=8192) > bundle.memory(n_ctx=256)


MEASURE = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import psutil
from libpmpd import Bundle, Session
bundle = Bundle(Path(sys.argv[2]))
options = {"method": sys.argv[3], "n_ctx": 1024}
estimate = bundle.memory(**options)
before = psutil.Process().memory_info().rss
session = Session(bundle, options)
session.generate(list(range(300, 1200)), 4)
print(estimate, psutil.Process().memory_info().rss - before)
"""


def test_the_estimate_of_memory_is_what_a_session_takes(tmp_path):
    """In a process of its own, with weights that outweigh everything around them."""
    pytest.importorskip("psutil")
    path = tmp_path / "m.gguf"
    source = write_llama(tmp_path / "f32.gguf", hidden=1024, layers=2, ff=3072, heads=8, kv_heads=4)
    quantize(source, path, "Q8_0")
    source.unlink()
    single_level(tmp_path, path)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(Path(__file__).parents[1]), str(tmp_path), "high"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    estimate, measured = map(int, done.stdout.split())
    assert measured == pytest.approx(estimate, rel=0.1)


# Stopping


def test_the_callback_ends_an_answer(session):
    expected = session.generate(prompt(session), 12)
    seen: list[Token] = []
    refused(
        CANCELLED,
        "the callback ended the answer",
        lambda: session.generate(prompt(session), 12, seen=lambda token: seen.append(token) or len(seen) < 4),
    )
    assert_same(seen, expected[:4])
    assert_same(session.generate(prompt(session), 12), expected)


def test_cancelling_while_decoding(session):
    expected = session.generate(prompt(session), 12)
    seen: list[Token] = []

    def cancel_at_three(token: Token) -> None:
        seen.append(token)
        if len(seen) == 3:
            session.cancel()

    refused(CANCELLED, "the answer was cancelled", lambda: session.generate(prompt(session), 12, seen=cancel_at_three))
    assert_same(seen, expected[:3])
    assert_same(session.generate(prompt(session), 12), expected)  # an old request is forgotten


def test_cancelling_while_the_prompt_is_evaluated():
    """From another thread, at any time; the next answer is what it would have been."""
    session = Session(DEFAULT, {"n_ctx": 8192, "n_batch": 8192})
    tokens = [300 + i % 3000 for i in range(8000)]
    expected = session.generate(prompt(session), 12)
    for delay in (0.0, 0.02, 0.1, 0.3):
        timer = threading.Timer(delay, session.cancel)
        outcome: list[int] = []
        seen: list[int] = []

        def run(outcome: list[int] = outcome, seen: list[int] = seen) -> None:
            try:
                session.generate(tokens, 2, seen=seen.append)  # which ends the answer, too: it returns None
            except PmpdFailure as failure:
                outcome.append(failure.status)

        running = threading.Thread(target=run)
        running.start()
        timer.start()
        while running.is_alive():  # the first request may have come before there was anything to cancel
            timer.join()
            session.cancel()
        assert outcome == [CANCELLED]
        session.generate(tokens[:100], 1)
        assert seen or session.stats.reused_tokens == 0  # a fast machine may have come to the end
        assert_same(session.generate(prompt(session), 12), expected)


def test_cancelling_what_does_not_run_changes_nothing(session):
    expected = session.generate(prompt(session), 12)
    session.cancel()
    assert_same(session.generate(prompt(session), 12), expected)


def test_a_session_that_generates_refuses_everything_else(session):
    failures: list[int] = []

    def interfere(token: Token) -> None:
        calls: list[Callable[[], Any]] = [
            lambda: session.generate([1], 1),
            session.clear,
            lambda: session.configure(method="low"),
        ]
        for call in calls:
            with pytest.raises(PmpdFailure) as failure:
                call()
            failures.append(failure.value.status)
        assert session.stats.decode_steps == token_count[0]
        token_count[0] += 1

    token_count = [0]
    expected = session.generate(prompt(session), 5)
    assert_same(session.generate(prompt(session), 5, seen=interfere), expected)
    assert failures == [BUSY] * 15


def test_loading_tells_its_progress_and_can_be_stopped():
    shares: list[float] = []
    Session(DEFAULT, loading=lambda share: bool(shares.append(share)) or True)
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1)
    refused(CANCELLED, "loading was cancelled", lambda: Session(DEFAULT, loading=lambda share: share < 0.5))
    refused(CANCELLED, "loading was cancelled", lambda: Session(DEFAULT, loading=lambda share: False))


# Room, stop texts, bytes


def test_a_prompt_that_leaves_no_room_is_refused():
    session = Session(DEFAULT, {"n_ctx": 256})
    refused(CONTEXT_FULL, "a prompt of 256 tokens in a context of 256", lambda: session.generate([5] * 256))
    (token,) = session.generate([5] * 255)
    assert token.finish in ("context", "stop")


def text(tokens: list[Token]) -> bytes:
    return b"".join(token.bytes for token in tokens)


def test_a_stop_text_ends_the_answer_wherever_it_begins(session):
    whole = session.generate(prompt(session), 20)
    answer = text(whole)
    for start in range(0, len(answer) - 4):
        for size in (1, 2, 5):
            stop = answer[start : start + size]
            got = session.generate(prompt(session), 20, stop=[stop, b"never there", b""])
            assert text(got) == answer[: answer.find(stop)]
            assert [t.id for t in got] == [t.id for t in whole[: len(got)]]
            assert [bool(t.finish) for t in got] == [False] * (len(got) - 1) + [True] and got[-1].finish == "stop"


def test_what_may_begin_a_stop_text_is_held_back_and_given_in_the_end(session):
    whole = session.generate(prompt(session), 20)
    answer = text(whole)
    nearly = answer[3:9] + b"\x01"  # never complete
    seen: list[bytes] = []
    got = session.generate(prompt(session), 20, stop=[nearly], seen=lambda token: seen.append(token.bytes))
    assert_same(got, whole)
    assert b"".join(seen) == answer


FACE = "😀".encode()


@pytest.fixture(scope="module")
def writes_a_face(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A model that writes 😀 after `a`: without layers to speak of, each token's embedding points at the next one."""
    folder = tmp_path_factory.mktemp("face")
    default = Session(DEFAULT)
    chain = [default.tokenize("a", add_special=False)[-1], *default.tokenize("😀", add_special=False)[-4:], END]

    def weights(name: str, matrix: Any) -> Any:
        matrix = matrix * (0 if name.endswith(("embd.weight", "output.weight", "ffn_down.weight")) else 1)
        for i, token in enumerate(chain):
            if name == "token_embd.weight":
                matrix[token, i] = 1
            elif name == "output.weight" and i > 0:
                matrix[token, i - 1] = 1
        return matrix

    source = write_llama(folder / "f32.gguf", layers=1, tied=False, weights=weights)
    single_level(folder, quantize(source, folder / "m.gguf", "Q8_0"))
    return Session(folder)


def test_a_character_comes_in_the_bytes_of_its_tokens(writes_a_face):
    tokens = writes_a_face.generate(writes_a_face.tokenize("a"))
    assert [token.bytes for token in tokens] == [bytes([byte]) for byte in FACE] + [b""]
    assert [token.finish for token in tokens] == ["", "", "", "", "stop"]
    assert tokens[-1].id == END


def test_a_stop_text_may_begin_within_a_character_and_end_within_one(writes_a_face):
    for start in range(4):
        for end in range(start + 1, 5):
            got = writes_a_face.generate(writes_a_face.tokenize("a"), stop=[FACE[start:end]])
            assert text(got) == FACE[:start]
            assert len(got) == end and got[-1].finish == "stop"
    assert text(writes_a_face.generate(writes_a_face.tokenize("a"), stop=["😁".encode()])) == FACE


# Several at once


def test_sessions_in_threads_of_their_own_give_what_each_gives_alone():
    bundle = Bundle(DEFAULT)
    options: list[dict[str, Any]] = [
        {"scheduler": "static"},
        {"method": "low"},
        {"method": "lossless", "draft_tokens": 3},
        {"method": "lossless", "draft_tokens": 5, "draft": 4},
    ]
    alone = []
    for given in options:
        session = Session(bundle, given)
        alone.append([session.generate(prompt(session, sentence), 20) for sentence in SENTENCES])
    sessions = [Session(bundle, given) for given in options]
    found: list[Any] = [None] * len(options)

    def run(i: int) -> None:
        for _ in range(3):
            sessions[i].clear()
            found[i] = [sessions[i].generate(prompt(sessions[i], sentence), 20) for sentence in SENTENCES]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(options))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_errors_belong_to_their_thread(session):
    refused(ARGUMENT, "an empty prompt", lambda: session.generate([]))
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append(library().pmpd_error().decode()))
    thread.start()
    thread.join()
    assert seen == [""] and "an empty prompt" in library().pmpd_error().decode()
    session.clear()
    assert library().pmpd_error() == b""


def test_a_session_outlives_its_bundle():
    bundle = Bundle(DEFAULT)
    session = Session(bundle)
    expected = session.generate(prompt(session), 12)
    session.bundle = DEFAULT
    del bundle
    gc.collect()
    session.configure(method="low")
    session.configure()
    session.clear()
    assert_same(session.generate(prompt(session), 12), expected)


def test_threads_bound_to_cores_compute_the_same(session):
    assert 1 <= library().pmpd_fast_cores() <= 1024
    bound = Session(DEFAULT, {"pin_threads": True})
    assert bound.generate(prompt(bound), 12) == session.generate(prompt(session), 12)


LOG = """
import ctypes, sys, threading
sys.path.insert(0, sys.argv[1])
from libpmpd import DEFAULT, Bundle, PmpdFailure, Session, library
bundle = Bundle(DEFAULT)
seen = []
log = ctypes.CFUNCTYPE(None, ctypes.c_int32, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, _: seen.append(text))
library().pmpd_log_set(log, None)
session = Session(bundle, {"n_ctx": 1024})
before, done = len(seen), threading.Event()
def cancel():
    while not done.wait(0.01):
        session.cancel()
threading.Thread(target=cancel, daemon=True).start()
try:
    session.generate([5] * 1000, 1)
except PmpdFailure:
    pass
finally:
    done.set()
assert len(seen) == before, seen  # what is cancelled is no error
print(b"".join(seen).decode())
library().pmpd_log_set(None, None)
Session(bundle, {"n_ctx": 1024})
"""


def test_what_the_library_warns_of_goes_to_the_log_and_nowhere_else(tmp_path):
    """A context larger than the model's is worth a warning. In a process of its own, as the log is shared by all."""
    command = [sys.executable, "-c", LOG, str(Path(__file__).parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.count("n_ctx_train (512)") == 1
    assert done.stderr == ""
