"""Lossless decoding gives what the verifier gives, however it is left, and leaves no trace of the drafts."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest
from agreement import agreed, noise
from sampled import GENERATE, chi_square, critical
from talk import SENTENCES, answer, prompt

from pmpd_edge import Pmpd, bundle, gguf_info
from pmpd_edge.bench.random_model import quantize, write_llama
from pmpd_edge.errors import Cancelled, ContextFullError, PmpdError
from pmpd_edge.lossless import costs
from pmpd_edge.lossless.sampling import Choice, Sampler
from pmpd_edge.schedule import Evaluation
from pmpd_edge.stream import Sampling, stream

ALL = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


@pytest.fixture
def lossless() -> Iterator[Pmpd]:
    opened = Pmpd(method="lossless", draft_tokens=3, n_threads=1)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def nested_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights and a small residual, so that the base often says what the sum does."""
    folder = tmp_path_factory.mktemp("nested")
    files, names = {}, ("base.gguf", "residual.gguf")
    for name, size in zip(names, (1.0, 0.1), strict=True):
        scale = functools.partial(lambda size, _, matrix: size * matrix, size)
        source = write_llama(folder / "f32.gguf", layers=4, seed=len(files), weights=scale)
        path = quantize(source, folder / name, kind := "Q4_K")
        files[name] = bundle.WeightsFile(kind, path.stat().st_size, bundle.sha256_file(path), 4.0)
    levels = (bundle.Level(8, names), bundle.Level(4, names[:1]))
    schedule = bundle.StaticSchedule((bundle.Switch(1, 8), bundle.Switch(9, 4)), 16)
    tokenizer = gguf_info.read(path).tokenizer_sha256
    bundle.write(bundle.Bundle(folder, "nested", {}, "llama", 1, 512, tokenizer, "nested", files, levels, 8, schedule))
    return folder


def high(llm: Pmpd, tokens: list[int], n: int = 24, **options: Any) -> list[int]:
    """What the highest level alone answers."""
    before = llm._configuration
    llm.configure(method="high")
    found = list(itertools.islice(llm.generate(tokens, **{"temp": 0.0, **options}), n))
    llm.configure(**before)
    return found


def fresh(llm: Pmpd, tokens: list[int], n: int = 24) -> list[int]:
    """An answer in an empty KV cache: the same evaluations each time."""
    llm.reset()
    return answer(llm, tokens, n)


class TestTokens:
    @pytest.mark.parametrize("draft_tokens", [1, 2, 3, 5, 8, 16, "auto"])
    @pytest.mark.parametrize("draft", [2, 4])
    def test_the_likeliest_are_the_highest_levels(self, llm: Pmpd, draft_tokens: int | str, draft: int) -> None:
        for text in SENTENCES:
            tokens = prompt(llm, text)
            expected = high(llm, tokens)
            llm.configure(method="lossless", draft_tokens=draft_tokens, draft=draft)
            found, stats = answer(llm, tokens, 24), llm.stats
            assert agreed(llm, tokens, found, expected)
            assert set(stats.precisions) == {8}
            assert stats.drafting and stats.drafting.precision == draft

    def test_answers_of_another_level_would_be_told_from_it(self, llm: Pmpd) -> None:
        tokens = prompt(llm, SENTENCES[1])
        expected = high(llm, tokens)
        llm.configure(method="low")
        with pytest.raises(AssertionError, match="differs, at a gap of"):
            agreed(llm, tokens, answer(llm, tokens, 24), expected)

    def test_nested_levels_draft_with_the_base_and_verify_with_the_sum(self, nested_bundle: Path) -> None:
        llm = Pmpd(nested_bundle, n_threads=1, method="lossless", draft_tokens=3)
        for start in (300, 900, 2000):
            tokens = list(range(start, start + 20))
            found = answer(llm, tokens, 20)
            drafting = llm.stats.drafting
            assert drafting and sum(done.kept for done in drafting.rounds) > 0
            assert any(done.rejected for done in drafting.rounds)
            assert agreed(llm, tokens, found, high(llm, tokens, 20))
        llm.close()

    def test_penalties_grammar_and_processors_hold_for_drafts_and_verifier(self, lossless: Pmpd) -> None:
        tokens = prompt(lossless, SENTENCES[0])
        forbidden = high(lossless, tokens)[2]

        def forbid(ids: npt.NDArray[np.intc], scores: npt.NDArray[np.single]) -> npt.NDArray[np.single]:
            scores[forbidden] = -np.inf
            return scores

        grammar = llama_cpp.LlamaGrammar.from_string('root ::= " "? ("a" | "the") " " [b-y ]+', verbose=False)
        cases: list[dict[str, Any]] = [
            {"repeat_penalty": 1.5, "frequency_penalty": 0.3},
            {"logits_processor": llama_cpp.LogitsProcessorList([forbid])},
            {"grammar": grammar},
        ]
        plain = high(lossless, tokens)
        for options in cases:
            expected = high(lossless, tokens, 16, **options)
            assert expected != plain[:16], "else the option would not show"
            got = list(itertools.islice(lossless.generate(tokens, temp=0.0, **options), 16))
            drafting = lossless.stats.drafting
            assert agreed(lossless, tokens, got, expected, **options)
            assert drafting and drafting.acceptance and drafting.acceptance > 0.3

    def test_the_end_of_an_answer_within_a_draft(self, lossless: Pmpd) -> None:
        tokens = prompt(lossless, SENTENCES[1])
        lossless.configure(method="high")
        expected = [token.id for token in stream(lossless, tokens, Sampling(), 60)]
        assert expected[-1] == lossless.token_eos()
        ends = []
        for draft_tokens in range(1, 9):
            lossless.configure(method="lossless", draft_tokens=draft_tokens)
            given = list(stream(lossless, tokens, Sampling(), 60))
            assert given[-1].finish == "stop"
            ends.append(given[-1].drafted)
            assert lossless.stats.drafting
            assert lossless.stats.drafting.kept == [token.drafted for token in given]
            assert agreed(lossless, tokens, [token.id for token in given], expected)
        assert any(ends)

    def test_what_follows_the_end_of_an_answer_is_the_highest_levels_too(self, lossless: Pmpd) -> None:
        """llama_cpp goes on after it where its caller does."""
        tokens = prompt(lossless, SENTENCES[1])
        expected = high(lossless, tokens, 40)
        assert lossless.token_eos() in expected[:-5]
        assert agreed(lossless, tokens, answer(lossless, tokens, 40), expected)

    def test_stop_strings_and_the_longest_answer(self, lossless: Pmpd) -> None:
        lossless.configure(method="lossless", draft_tokens=4)
        tokens = prompt(lossless, SENTENCES[0])

        def complete(**options: Any) -> Any:
            lossless.reset()
            return lossless.create_completion(tokens, temperature=0, **{"max_tokens": 40, **options})

        def text(n: int) -> str:
            return lossless.detokenize(whole[:n], prev_tokens=tokens).decode()

        whole = fresh(lossless, tokens, 8)
        stop = text(8).strip()[8:11]
        assert complete(stop=[stop])["choices"][0]["text"] == text(8).split(stop)[0]
        assert complete(max_tokens=5)["choices"][0] == {
            "text": text(5), "index": 0, "logprobs": None, "finish_reason": "length"
        }  # fmt: skip
        streamed = complete(max_tokens=7, stream=True)
        assert "".join(part["choices"][0]["text"] for part in streamed) == text(7)

    def test_the_context_is_used_to_its_last_row(self) -> None:
        llm = Pmpd(n_threads=1, n_ctx=256, method="lossless", draft_tokens=5)
        tokens = prompt(llm, SENTENCES[0])
        room = 256 - len(tokens)
        expected = high(llm, tokens, room + 1)
        found = []
        with pytest.raises(ContextFullError, match="context of 256 tokens is full"):
            for token in llm.generate(tokens, temp=0.0):
                found.append(token)
        assert len(found) == room + 1
        assert llm.n_tokens == 256
        assert fresh(llm, tokens, 5) == found[:5]
        assert agreed(llm, tokens, found, expected)

    def test_more_drafts_than_a_batch_has_room_for(self) -> None:
        llm = Pmpd(n_threads=1, n_batch=4, n_ubatch=4, method="lossless", draft_tokens=9)
        tokens = prompt(llm, SENTENCES[0])
        found = answer(llm, tokens)
        assert llm.stats.drafting and max(done.drafted for done in llm.stats.drafting.rounds) == 3
        assert agreed(llm, tokens, found, high(llm, tokens, 14))

    def test_tokens_that_the_caller_sends_change_nothing(self, lossless: Pmpd) -> None:
        """To llama_cpp they are drafts."""
        tokens = prompt(lossless, SENTENCES[0])
        expected = fresh(lossless, tokens, 10)
        lossless.reset()
        running = lossless.generate(tokens, temp=0.0)
        found = [next(running), running.send([300, 301]), next(running), running.send([302])]
        assert [*found, *itertools.islice(running, 6)] == expected

    def test_what_is_evaluated_between_two_tokens_counts_as_it_does_for_the_highest_level(self, lossless: Pmpd) -> None:
        tokens = prompt(lossless, SENTENCES[0])
        expected = high(lossless, tokens)
        running = lossless.generate(tokens, temp=0.0)
        found = [next(running) for _ in range(3)]
        state = lossless.save_state()
        lossless.reset()
        lossless.set_precision(2)
        lossless.eval([300, 301])
        lossless.load_state(state)
        found += itertools.islice(running, 21)
        assert agreed(lossless, tokens, found, expected) > 3

    def test_stopping_criteria_see_every_token_and_its_logits(self, lossless: Pmpd) -> None:
        tokens = prompt(lossless, SENTENCES[0])
        expected = fresh(lossless, tokens, 7)
        seen = []

        def criteria(ids: npt.NDArray[np.intc], logits: npt.NDArray[np.single]) -> bool:
            seen.append((ids.tolist(), int(logits.argmax())))
            return len(seen) == 8

        lossless.reset()
        assert list(lossless.generate(tokens, temp=0.0, stopping_criteria=criteria)) == expected
        assert [best for _, best in seen[:7]] == expected
        assert [ids for ids, _ in seen] == [tokens + expected[:n] for n in range(8)]

    def test_logprobs_are_the_highest_levels(self) -> None:
        llm = Pmpd(n_threads=1, logits_all=True, method="lossless", draft_tokens=3)
        found = []
        for method in ("lossless", "high"):
            llm.configure(method=method, draft_tokens=3)
            said = llm.create_completion(prompt(llm, SENTENCES[1]), max_tokens=8, temperature=0, logprobs=2)
            found.append(said["choices"][0]["logprobs"])
        pairs = zip(found[0]["tokens"], found[1]["tokens"], strict=True)
        same = 1 + sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))  # and where they part
        ours, theirs = (one["token_logprobs"][:same] for one in found)
        np.testing.assert_allclose(ours, theirs, atol=1e-2)


class TestSchedules:
    @pytest.mark.parametrize("spec", ["static", "confidence", "alternate:0.1", "static:8@1,2@4,8@6,4@9"])
    def test_tokens_and_precisions_are_the_schedules(self, llm: Pmpd, spec: str) -> None:
        for text in SENTENCES:
            tokens = prompt(llm, text)
            llm.configure(scheduler=spec)
            expected, precisions = answer(llm, tokens, 20), llm.stats.precisions
            llm.configure(method="lossless", scheduler=spec, draft_tokens=4)
            found, stats = answer(llm, tokens, 20), llm.stats
            assert stats.to_dict()["drafting"]["verifications"] > 0
            same = agreed(llm, tokens, found, expected, precisions)
            assert stats.precisions[:same] == precisions[:same]

    def test_a_scheduler_is_asked_as_without_drafts(self, llm: Pmpd) -> None:
        class Curious:
            precisions = (8, 4)

            def __init__(self) -> None:
                self.seen: list[Any] = []

            def start(self, prefill: Evaluation) -> None:
                self.next(0, prefill)

            def next(self, step: int, last: Evaluation) -> int:
                keys, _ = last.keys_values(-1)
                self.seen.append((step, last.n_tokens, last.tokens.tolist(), int(last.logits().argmax()), len(keys)))
                return 4 if step % 7 == 3 else 8

        tokens, found = prompt(llm, SENTENCES[0]), []
        for method in ("pmpd", "lossless"):
            scheduler = Curious()
            llm.configure(method=method, scheduler=scheduler, draft_tokens=4)
            found.append((answer(llm, tokens, 16), scheduler.seen, llm.stats.precisions))
        (expected, *right), (given, *got) = found
        same = agreed(llm, tokens, given, expected, right[1])
        assert [one[:same] for one in got] == [one[:same] for one in right]

    def test_steps_at_the_drafts_level_have_no_drafts(self, llm: Pmpd) -> None:
        llm.configure(method="lossless", scheduler="static:8@1,2@9", draft_tokens=3)
        answer(llm, prompt(llm, SENTENCES[0]), 16)
        drafting = llm.stats.drafting
        assert drafting and [done.drafted for done in drafting.rounds][-7:] == [0] * 7
        assert not any(drafting.kept[9:]) and any(drafting.kept[:9])

    def test_the_static_schedule_with_high_steps(self, llm: Pmpd) -> None:
        llm.configure(method="lossless", high_steps=2, draft_tokens=3)
        answer(llm, prompt(llm, SENTENCES[0]), 9)
        assert llm.stats.precisions == [8, 8, 8, 4, 4, 4, 4, 4, 2]


class TestState:
    def test_left_at_any_token_it_is_as_if_nothing_had_been_drafted(self, lossless: Pmpd) -> None:
        tokens = prompt(lossless, SENTENCES[0])
        lossless.configure(method="lossless", draft_tokens=4)
        expected = fresh(lossless, tokens, 14)
        bound = noise(lossless, tokens + expected)
        for n in range(1, 14):
            lossless.reset()
            lossless.configure(method="lossless", draft_tokens=4)
            running = lossless.generate(tokens, temp=0.0)
            assert list(itertools.islice(running, n)) == expected[:n]
            running.close()
            whole = tokens + expected[: n - 1]
            assert lossless.tokens.tolist() == whole
            assert lossless.kv_precision[: len(whole)].tolist() == [8] * len(whole)
            left = lossless.logits().copy()
            assert lossless.sample(temp=0.0) == expected[n - 1]
            keys, values = lossless.keys_values(-1)
            lossless.reset()
            lossless.set_precision(8)
            for token in whole:
                lossless.eval([token])
            assert np.abs(left - lossless.logits()).max() <= 2 * bound
            for found, serial in zip((keys, values), lossless.keys_values(-1), strict=True):
                np.testing.assert_allclose(found, serial, atol=0.05)

            running = lossless.generate(tokens, temp=0.0)
            list(itertools.islice(running, n))
            running.close()
            lossless.configure(method="high")
            rest = answer(lossless, [*whole, expected[n - 1]], 14 - n)
            assert lossless.stats.reused_tokens == len(whole), "they are what the highest level would compute"
            agreed(lossless, [*whole, expected[n - 1]], rest, expected[n:])

    def test_an_answer_after_an_answer_reuses_only_what_prefill_computed(self, lossless: Pmpd) -> None:
        first, second = (prompt(lossless, text) for text in SENTENCES[:2])
        for method in ("high", "low", "pmpd", "lossless"):
            expected, precisions = _alone(method, second)
            lossless.configure(method="lossless", draft_tokens=4)
            answer(lossless, first, 11)
            lossless.configure(method=method, draft_tokens=4)
            assert agreed(lossless, second, answer(lossless, second), expected, precisions)

    @pytest.mark.parametrize("keep_low_kv", [False, True])
    def test_the_next_turn_keeps_the_rows_of_the_answer(self, keep_low_kv: bool) -> None:
        llm = Pmpd(n_threads=1, method="lossless", draft_tokens=4, keep_low_kv=keep_low_kv)
        tokens = prompt(llm, SENTENCES[0])
        first = answer(llm, tokens, 12)
        answer(llm, tokens + first + [300, 301], 3)
        assert llm.stats.reused_tokens == len(tokens) + 11
        assert llm.stats.reused_low_tokens == 0

    @pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
    def test_an_error_in_any_evaluation_leaves_tokens_and_record_right(
        self, lossless: Pmpd, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
    ) -> None:
        tokens = prompt(lossless, SENTENCES[0])
        expected = fresh(lossless, tokens, 14)
        decode = Pmpd._decode
        for n in range(2, 12):
            count = itertools.count(1)

            def failing(self: Pmpd, *args: Any, n: int = n, count: Iterator[int] = count) -> None:
                decode(self, *args)
                if next(count) == n:
                    raise error

            lossless.reset()
            found = []
            with monkeypatch.context() as patch:
                patch.setattr(Pmpd, "_decode", failing)
                with pytest.raises(error):
                    for token in lossless.generate(tokens, temp=0.0):
                        found.append(token)
            assert found == expected[: len(found)]
            kept = lossless.n_tokens
            assert kept >= len(tokens) + len(found) - 1
            assert set(lossless.kv_precision[:kept]) == {8}, "no draft's row is left"
            rest = answer(lossless, tokens + found, 14 - len(found))
            agreed(lossless, tokens + found, rest, expected[len(found) :])

    @pytest.mark.parametrize("at", [1, 2, 9])
    def test_cancelling_the_prefill_or_the_measuring_before_it(
        self, llm: Pmpd, monkeypatch: pytest.MonkeyPatch, at: int
    ) -> None:
        """The first answer measures (the prompt is evaluated after that), a later one evaluates its prompt at once."""
        tokens = prompt(llm, SENTENCES[0])
        expected = high(llm, tokens, 14)
        llm.configure(method="lossless")
        decode, calls = llm._decode, 0

        def cancelling(*args: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                llm.cancel()
            decode(*args)

        monkeypatch.setattr(llm, "_decode", cancelling)
        with pytest.raises(Cancelled):
            answer(llm, tokens)
        assert calls == at
        assert agreed(llm, tokens, answer(llm, tokens), expected)

    def test_a_request_to_cancel_what_does_not_run_is_forgotten(self, lossless: Pmpd) -> None:
        tokens = prompt(lossless, SENTENCES[0])
        expected = fresh(lossless, tokens)
        lossless.cancel()
        assert fresh(lossless, tokens) == expected

    @pytest.mark.parametrize("kind", ["_is_recurrent", "_is_hybrid"])
    def test_a_memory_that_cannot_take_drafts_back_is_refused(
        self, llm: Pmpd, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        monkeypatch.setattr(llm, kind, True)
        llm.configure(method="lossless")
        with pytest.raises(PmpdError, match=r"lossless takes drafts back, which is not possible with recurrent layers"):
            next(llm.generate([1, 2, 3]))

    def test_a_sliding_window_is_refused_unless_the_cache_has_room_for_all(
        self, lossless: Pmpd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(llama_cpp, "llama_model_n_swa", lambda model: 64)
        lossless.context_params.swa_full = True
        assert answer(lossless, [1, 2, 3], 3)
        lossless.context_params.swa_full = False
        with pytest.raises(PmpdError, match="a sliding window"):
            next(lossless.generate([1, 2, 3]))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"draft_tokens": 0}, "0 draft tokens: give a number from 1 on, or auto"),
            ({"draft_tokens": "many"}, "'many' draft tokens"),
            ({"draft": 3}, "no level of precision 3"),
        ],
    )
    def test_options_that_do_not_fit(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(PmpdError, match=message):
            Pmpd(n_threads=1, method="lossless", **options)


def _alone(method: str, tokens: list[int]) -> tuple[list[int], list[int]]:
    """A method's answer in a context of its own, and the precisions of its tokens."""
    llm = Pmpd(n_threads=1, method=method, draft_tokens=4)
    found = answer(llm, tokens)
    llm.close()
    return found, llm.stats.precisions


class TestSampling:
    def test_the_same_seed_gives_the_same_answer(self, lossless: Pmpd) -> None:
        def sampled(seed: int) -> list[int]:
            lossless.reset()
            lossless.set_seed(seed)
            return list(itertools.islice(lossless.generate(prompt(lossless, SENTENCES[0]), temp=1.5, **ALL), 16))

        assert sampled(1) == sampled(1) != sampled(2)

    def test_without_drafts_the_tokens_are_those_of_the_highest_level_and_seed(self, llm: Pmpd) -> None:
        tokens = prompt(llm, SENTENCES[0])
        llm.set_seed(3)
        expected = high(llm, tokens, temp=1.5, **ALL)
        llm.reset()
        llm.configure(method="lossless", draft=8, draft_tokens=4)
        assert list(itertools.islice(llm.generate(tokens, temp=1.5, **ALL), 24)) == expected

    @pytest.mark.parametrize("options", [{}, {"repeat_penalty": 1.4, "presence_penalty": 1.0}])
    def test_sequences_have_the_highest_levels_probabilities(self, lossless: Pmpd, options: dict[str, Any]) -> None:
        """All sequences of three tokens after the first: their probabilities computed one step at a time."""
        tokens = prompt(lossless, SENTENCES[1])
        sampling = {"temp": 5.0, "top_k": 3, "top_p": 1.0, "min_p": 0.0, **options}
        first = high(lossless, tokens, 1)[0]
        tokens = [*tokens, first]
        expected = dict(_sequences(lossless, tokens, sampling, 3))
        assert sum(expected.values()) == pytest.approx(1)
        n = 300
        found = dict.fromkeys(expected, 0)
        lossless.configure(method="lossless", draft_tokens=2)
        for seed in range(n):
            lossless.set_seed(seed)
            found[tuple(itertools.islice(lossless.generate(tokens, **sampling), 3))] += 1
        rare = [sequence for sequence, p in expected.items() if n * p < 8]
        common = [sequence for sequence in expected if sequence not in rare]
        counts = [found[sequence] for sequence in common] + [sum(found[sequence] for sequence in rare)]
        means = [n * expected[sequence] for sequence in common] + [n * sum(expected[sequence] for sequence in rare)]
        assert len(common) >= 5
        assert chi_square(counts, means) < critical(len(counts) - 1)

    def test_the_sequences_probabilities_could_be_missed(self, lossless: Pmpd) -> None:
        """The drafts' own distribution is another one: keeping them unjudged would show."""
        tokens = prompt(lossless, SENTENCES[1])
        sampling = {"temp": 5.0, "top_k": 3, "top_p": 1.0, "min_p": 0.0}
        tokens = [*tokens, high(lossless, tokens, 1)[0]]
        given = dict(_sequences(lossless, tokens, sampling, 3))
        drafted = dict(_sequences(lossless, tokens, sampling, 3, precision=2))
        apart = sum(300 * (drafted.get(s, 0) - p) ** 2 / p for s, p in given.items() if 300 * p >= 8)
        assert apart > critical(len(given))


def _sequences(
    llm: Pmpd, tokens: list[int], sampling: dict[str, Any], length: int, precision: int = 8
) -> Iterator[tuple[tuple[int, ...], float]]:
    """All sequences that can be sampled, with their probabilities."""

    def choose(sequence: tuple[int, ...]) -> Choice:
        llm.reset()
        llm.set_precision(precision)
        llm.eval(tokens)
        sampler = Sampler(llm, GENERATE | sampling)
        for token in sequence:  # one by one, as it is generated: longer evaluations have other last bits
            llm.eval([token])
            sampler.accept(token)
        return sampler.choose()

    known: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    for _ in range(length):
        known = [
            ((*sequence, int(token)), p * float(q))
            for sequence, p in known
            for made in [choose(sequence)]
            for token, q in zip(made.ids, made.probabilities, strict=True)
        ]
    yield from known


class TestStatistics:
    def test_rounds_and_tokens_add_up(self, lossless: Pmpd) -> None:
        lossless.configure(method="lossless", draft_tokens=3, draft=4)
        given = answer(lossless, prompt(lossless, SENTENCES[0]), 14)
        stats = lossless.stats
        assert stats.drafting
        rounds = stats.drafting.rounds
        assert sum(done.tokens for done in rounds) == len(given) - 1 == len(stats.decode_precisions)
        assert sum(done.kept for done in rounds) == sum(stats.drafting.kept)
        assert all(done.tokens == done.kept + 1 for done in rounds[:-1])
        assert len(stats.drafting.kept) == 14 and not stats.drafting.kept[0]
        told = stats.to_dict()["drafting"]
        assert told["draft_tokens"] == [3] * len(rounds)
        assert told["acceptance"] == pytest.approx(sum(stats.drafting.kept) / (3 * len(rounds)))
        assert told["acceptance"] > 0.4
        assert told["tokens_per_verification"] == pytest.approx(13 / len(rounds))
        seconds = told["drafting_seconds"] + told["verifying_seconds"]
        assert 0 < seconds <= stats.decode_seconds
        assert told["drafting_seconds"] > 0 < told["verifying_seconds"]

    def test_other_methods_have_none(self, llm: Pmpd) -> None:
        answer(llm, prompt(llm, SENTENCES[0]), 3)
        assert llm.stats.drafting is None and "drafting" not in llm.stats.to_dict()

    def test_what_was_measured_and_learned_goes_on_from_answer_to_answer(
        self, llm: Pmpd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        measured = []
        measure = costs.measure
        monkeypatch.setattr(costs, "measure", lambda llm, *pair: (measured.append(pair), measure(llm, *pair))[1])
        for method in ("lossless", "high", "lossless"):
            llm.configure(method=method)
            answer(llm, prompt(llm, SENTENCES[0]), 4)
        llm.configure(method="lossless", scheduler="static:8@1,4@3")
        answer(llm, prompt(llm, SENTENCES[0]), 4)
        assert measured == [(2, 8), (2, 4)]

    def test_measuring_leaves_tokens_and_rows_as_they_were(self, llm: Pmpd) -> None:
        tokens = prompt(llm, SENTENCES[0])
        llm.configure(method="high")
        expected = answer(llm, tokens, 10)
        llm.configure(method="lossless")
        assert llm.forecast().startswith("drafting ")
        assert llm.tokens.tolist() == tokens + expected[:9]
        llm.configure(method="high")
        assert answer(llm, tokens + expected, 1)
        assert llm.stats.reused_tokens == len(tokens) + 9
