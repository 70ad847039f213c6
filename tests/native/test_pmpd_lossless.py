"""Lossless answers of libpmpd: what the verifier alone says, however they end, and no trace of the drafts.

That they are Python's, token by token and seed by seed, is in test_pmpd_parity.py.
"""

from __future__ import annotations

import itertools
import shutil
import threading
from typing import Any

import gguf
import numpy as np
import pytest
from caches import WINDOW, write_gemma4, write_lfm2
from libpmpd import (
    ARGUMENT,
    BUSY,
    CANCELLED,
    DEFAULT,
    FAILED,
    PmpdFailure,
    Session,
    Token,
    assert_same,
    refused,
    separate_levels,
    single_level,
)
from talk import SENTENCES

from pmpd_edge import bundle as bundles
from pmpd_edge.bench.random_model import quantize, write_llama, write_mamba

HOT = {"temperature": 3.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
DRAFTING = ("drafted_tokens", "kept_tokens", "verifications", "tokens_per_verification", "drafting_seconds",
            "verifying_seconds")  # fmt: skip


@pytest.fixture
def session() -> Session:
    return Session(DEFAULT, {"method": "lossless", "draft_tokens": 4})


@pytest.fixture(scope="module")
def alone() -> Session:
    """The highest level without drafts."""
    return Session(DEFAULT, {"method": "high"})


def prompt(session: Session, text: str = SENTENCES[0]) -> list[int]:
    return session.render([{"role": "user", "content": text}])


def answer(session: Session, tokens: list[int], n: int = 24, **options: Any) -> list[Token]:
    """An answer in an empty KV cache."""
    session.clear()
    return session.generate(tokens, n, **options)


def ids(tokens: list[Token]) -> list[int]:
    return [token.id for token in tokens]


def test_logits_that_are_not_numbers_are_an_error(tmp_path):
    source = write_llama(tmp_path / "f32.gguf", layers=1)
    paths = {bits: quantize(source, tmp_path / f"q{bits}.gguf", kind) for bits, kind in ((8, "Q8_0"), (4, "Q4_0"))}
    reader = gguf.GGUFReader(paths[8], "r+")
    (norm,) = (tensor for tensor in reader.tensors if tensor.name == "output_norm.weight")
    norm.data[:] = np.nan
    reader.data.flush()
    separate_levels(tmp_path, paths)
    session = Session(tmp_path, {"method": "lossless", "draft_tokens": 4, "prefill": 4})
    refused(FAILED, "the logits are not finite", lambda: session.generate([5, 6, 7], 12, seed=1, **HOT))
    session.configure(method="low")
    assert len(session.generate([5, 6, 7], 4)) == 4


# Tokens


@pytest.mark.parametrize("draft", [0, 4])
def test_the_likeliest_tokens_are_the_highest_levels(session, alone, draft):
    for draft_tokens in (*range(9), 16):  # 0: as many as pay
        session.configure(method="lossless", draft_tokens=draft_tokens, draft=draft)
        for text in SENTENCES:
            found = answer(session, prompt(session, text))
            assert_same(found, answer(alone, prompt(alone, text)))
            assert session.stats.kept_tokens == sum(token.drafted for token in found)
            assert not draft_tokens or session.stats.kept_tokens > 0


@pytest.mark.parametrize("scheduler", ["static:8@1,4@5", "static:8@1,2@4,8@6,4@9", "fixed:4"])
def test_a_schedule_says_at_which_level_each_token_is_verified(session, scheduler):
    scheduled = Session(DEFAULT, {"scheduler": scheduler})
    session.configure(method="lossless", draft_tokens=4, scheduler=scheduler)
    for text in SENTENCES:
        found = answer(session, prompt(session, text))
        # llama.cpp rounds the activations of 4 rows of Q4_K otherwise than those of one: logits move by up to 0.25.
        assert_same(found, answer(scheduled, prompt(session, text)), noise=0.3)
        assert not any(token.drafted for token in found if token.precision == 2), "drafts of the same level"


def test_the_prompt_is_evaluated_at_the_highest_level_where_no_schedule_is_asked_for(tmp_path):
    shutil.copytree(DEFAULT, tmp_path / "bundle")
    bundles.update(bundles.load(tmp_path / "bundle"), prefill=4)
    session = Session(tmp_path / "bundle")
    cases: list[tuple[dict[str, Any], int]] = [
        ({}, 8),
        ({"prefill": 2}, 2),
        ({"scheduler": "static"}, 4),
        ({"high_steps": 1}, 4),
    ]
    for options, expected in cases:
        session.configure(method="lossless", draft_tokens=2, **options)
        found = answer(session, prompt(session), 6)
        assert found[0].precision == session.stats.prefill_precision == expected


def test_a_cache_of_a_sliding_window_takes_drafts_back(tmp_path):
    """It holds all rows here."""
    write_gemma4(tmp_path / "f32.gguf")
    low = quantize(tmp_path / "f32.gguf", tmp_path / "q8.gguf", "Q8_0")
    separate_levels(tmp_path, {16: tmp_path / "f32.gguf", 8: low})
    session = Session(tmp_path, {"method": "lossless", "draft_tokens": 3})
    high = Session(tmp_path, {"method": "high"})
    for start in (300, 700):
        tokens = list(range(start, start + 2 * WINDOW))
        found = answer(session, tokens, 2 * WINDOW)
        assert session.stats.kept_tokens > 0
        assert_same(found, answer(high, tokens, 2 * WINDOW))


@pytest.mark.parametrize("write", [write_mamba, write_lfm2])
def test_a_memory_that_cannot_take_drafts_back_is_refused(tmp_path, write):
    single_level(tmp_path, write(tmp_path / "m.gguf"))
    message = "lossless takes drafts back, which is not possible with recurrent layers: use another method"
    refused(ARGUMENT, message, lambda: Session(tmp_path, {"method": "lossless"}))
    session = Session(tmp_path, {"method": "high"})
    before = session.generate([300, 301], 4)
    refused(ARGUMENT, message, lambda: session.configure(method="lossless"))
    assert session.generate([300, 301], 4) == before


# Endings


def test_the_longest_answer_may_end_within_a_draft(session):
    whole = answer(session, prompt(session), 20)
    kinds = set()
    for n in range(1, len(whole)):
        found = answer(session, prompt(session), n)
        assert ids(found) == ids(whole[:n]) and found[-1].finish == "length"
        assert [token.drafted for token in found] == [token.drafted for token in whole[:n]]
        kinds.add(found[-1].drafted)
    assert kinds == {False, True}


def test_the_end_of_an_answer_may_be_drafted(session, alone):
    drafted = set()
    for text, draft_tokens in itertools.product(SENTENCES, range(1, 9)):
        session.configure(method="lossless", draft_tokens=draft_tokens)
        found = answer(session, prompt(session, text), 80)
        assert found[-1].finish == "stop" and found[-1].bytes == b""
        assert_same(found, answer(alone, prompt(alone, text), 80))
        drafted.add(found[-1].drafted)
    assert drafted == {False, True}


def test_a_stop_text_may_end_within_a_draft(session):
    whole = answer(session, prompt(session), 20)
    text = b"".join(token.bytes for token in whole)
    for start, size in itertools.product(range(0, len(text) - 4, 3), (1, 4)):
        stop = text[start : start + size]
        found = answer(session, prompt(session), 20, stop=[stop, b"never there"])
        assert b"".join(token.bytes for token in found) == text[: text.find(stop)]
        assert ids(found) == ids(whole[: len(found)]) and found[-1].finish == "stop"


@pytest.mark.parametrize("draft_tokens", [0, 1, 5, 16])
def test_the_context_is_used_to_its_last_row(draft_tokens):
    session = Session(DEFAULT, {"method": "lossless", "draft_tokens": draft_tokens, "n_ctx": 256})
    ends = set()
    for seed, room in itertools.product(range(4), (1, 2, 3, 9)):
        found = answer(session, [5, *range(300, 555 - room)], 40, seed=seed, **HOT)
        assert len(found) == room or found[-1].finish == "stop"
        ends.add(found[-1].finish)
    assert "context" in ends


@pytest.mark.parametrize("n_batch", [1, 2, 4])
def test_more_drafts_than_a_batch_has_room_for(alone, n_batch):
    session = Session(DEFAULT, {"method": "lossless", "draft_tokens": 9, "n_batch": n_batch})
    assert_same(answer(session, prompt(session)), answer(alone, prompt(alone)))
    stats = session.stats
    assert stats.drafted_tokens <= (n_batch - 1) * stats.verifications
    assert (stats.drafted_tokens > 0) == (n_batch > 1)


def test_left_at_any_token_it_is_as_if_nothing_had_been_drafted(session, alone):
    """The rows that stay are those of the tokens that were given, and the highest level's."""
    tokens = prompt(session)
    whole = answer(session, tokens, 14)
    for n in range(1, 14):
        seen: list[Token] = []
        session.configure(method="lossless", draft_tokens=4)
        refused(
            CANCELLED,
            "the callback ended the answer",
            lambda seen=seen, n=n: answer(session, tokens, 14, seen=lambda t: seen.append(t) or len(seen) < n),
        )
        assert seen == whole[:n]
        session.configure(method="high")
        rest = session.generate([*tokens, *ids(seen)], 8)
        assert session.stats.reused_tokens == len(tokens) + n - 1
        assert_same(rest, answer(alone, [*tokens, *ids(seen)], 8))


def test_a_turn_reuses_the_rows_of_the_answer_before_it(session, alone):
    tokens = prompt(session)
    first = answer(session, tokens, 12)
    more = [*tokens, *ids(first), 300, 301]
    second = session.generate(more, 12)
    assert session.stats.reused_tokens == len(tokens) + 11
    assert_same(second, answer(alone, more, 12))


# Cancelling


@pytest.mark.parametrize("at", [1, 2, 3, 6])
def test_cancelling_within_a_round(session, at):
    whole = answer(session, prompt(session), 12)
    seen: list[Token] = []

    def cancel(token: Token) -> None:
        seen.append(token)
        if len(seen) == at:
            session.cancel()

    refused(CANCELLED, "the answer was cancelled", lambda: answer(session, prompt(session), 12, seen=cancel))
    assert seen == whole[:at]
    assert answer(session, prompt(session), 12) == whole


def test_cancelling_from_another_thread_in_drafts_verifications_and_measurements():
    """At any time; what follows is what it would have been."""
    options = {"method": "lossless", "draft_tokens": 16, "n_ctx": 2048}
    session = Session(DEFAULT, options)
    whole = answer(session, prompt(session), 12)
    for delay in (0.0, 0.003, 0.01, 0.03, 0.1):
        session.clear()
        session.configure(method="lossless", draft_tokens=0 if delay < 0.01 else 16)
        done = threading.Event()

        def cancel(delay: float = delay, done: threading.Event = done) -> None:
            while not done.wait(delay):
                session.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        try:
            for seed in range(3):
                session.generate(prompt(session), 2000, seed=seed, **HOT)
        except PmpdFailure as failure:
            assert failure.status == CANCELLED
        finally:
            done.set()
            thread.join()
        session.configure(method="lossless", draft_tokens=16)
        assert answer(session, prompt(session), 12) == whole


# Statistics, and what drafting promises


def test_rounds_and_tokens_add_up(session):
    session.configure(method="lossless", draft_tokens=3, draft=4)
    found = answer(session, prompt(session), 14)
    stats = session.stats
    assert stats.decode_steps == len(found) - 1
    assert stats.kept_tokens < stats.drafted_tokens <= 3 * stats.verifications
    assert stats.kept_tokens == sum(token.drafted for token in found)
    assert stats.tokens_per_verification == pytest.approx((len(found) - 1) / stats.verifications)
    assert stats.drafting_seconds > 0 and stats.verifying_seconds > 0
    assert stats.drafting_seconds + stats.verifying_seconds <= stats.decode_seconds
    session.configure(method="high")
    answer(session, prompt(session), 14)
    assert not any(getattr(session.stats, name) for name in DRAFTING), "other methods have none"


def test_statistics_during_an_answer_are_those_so_far(session):
    def look(token: Token) -> None:
        kept.append(kept[-1] + token.drafted)
        assert session.stats.kept_tokens == kept[-1]
        assert session.stats.decode_steps == len(kept) - 2

    kept = [0]
    answer(session, prompt(session), 14, seen=look)
    assert kept[-1] > 0


def test_the_same_seed_gives_the_same_answer(session):
    def sampled(seed: int) -> list[int]:
        return ids(answer(session, prompt(session), 16, seed=seed, **HOT))

    assert sampled(1) == sampled(1) != sampled(2)


def test_a_forecast_says_whether_drafting_pays_and_leaves_the_cache_as_it_is(session):
    tokens = prompt(session)
    whole = answer(session, tokens, 10)
    session.configure(method="lossless")
    told = session.forecast()
    assert told.draft > 0 and 0 <= told.break_even <= 1.01
    assert (told.gain >= 1.02) if told.break_even <= 1 else (told.gain == 1)
    assert bytes(session.forecast()) == bytes(told), "it is measured once"
    session.generate([*tokens, *ids(whole)], 1)
    assert session.stats.reused_tokens == len(tokens) + 9


def test_what_was_measured_and_learned_goes_on_from_answer_to_answer(session):
    session.configure(method="lossless")
    told = bytes(session.forecast())
    answer(session, prompt(session), 10)
    learned = bytes(session.forecast())
    assert learned != told, "rounds took other times than those that were measured"
    session.configure(method="high")
    session.configure(method="lossless")
    assert bytes(session.forecast()) == learned


def test_an_answer_measures_before_its_prompt_fills_the_context():
    session = Session(DEFAULT, {"method": "lossless", "n_ctx": 256})
    session.generate([5] * 255, 1)
    assert session.forecast().draft > 0, "now there would be no room to try"


def test_there_is_no_forecast_where_there_is_nothing_to_choose(session):
    assert bytes(session.forecast()) == bytes(24)
    for options in ({"method": "high"}, {}, {"method": "lossless", "draft": 8}):
        session.configure(**options)
        assert bytes(session.forecast()) == bytes(24)
    seen: list[int] = []

    def ask(token: Token) -> None:
        with pytest.raises(PmpdFailure) as failure:
            session.forecast()
        seen.append(failure.value.status)

    answer(session, prompt(session), 2, seen=ask)
    assert seen == [BUSY, BUSY]


def test_a_context_without_room_to_measure_has_no_drafts():
    session = Session(DEFAULT, {"method": "lossless", "n_batch": 3})
    found = answer(session, prompt(session), 8)
    assert found and session.stats.verifications == 0
    assert bytes(session.forecast()) == bytes(24)
