"""Tokens and their text (pmpd_edge/stream.py)."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from pmpd_edge import bundle as bundles
from pmpd_edge import native, stream
from pmpd_edge.errors import ContextFullError
from pmpd_edge.stats import GenerationStats
from pmpd_edge.stream import Sampling, Token

BOS, END = 0, 1


class FakeModel:
    """Generates what it is told to; a token's id is its place in the vocabulary."""

    def __init__(self, *answer: bytes, end: bool = True, n_ctx: int = 100) -> None:
        self.vocabulary = [b" ", b"</s>", *answer]
        self.answer = [*range(2, len(self.vocabulary)), *([END] if end else [])]
        self.stats = GenerationStats("high")
        self.n_ctx = lambda: n_ctx
        self._model = SimpleNamespace(vocab=self.vocabulary)
        self.closed = False

    def token_bos(self) -> int:
        return BOS

    def generate(self, tokens: Sequence[int], **options: Any) -> Generator[int, None, None]:
        self.stats.precisions = []
        try:
            for i, token in enumerate(self.answer):
                self.stats.precisions.append(8 if i < 2 else 4)
                yield token
        finally:
            self.closed = True


def _piece(vocabulary: list[bytes], token: int, buffer: Any, size: int, lstrip: int, special: bool) -> int:
    piece = vocabulary[token]
    if len(piece) > size:
        return -len(piece)
    buffer[: len(piece)] = piece
    return len(piece)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(llama_vocab_is_eog=lambda vocabulary, token: token == END, llama_token_to_piece=_piece)
    monkeypatch.setattr(native, "load", lambda: fake)


def tokens(model: Any, max_new_tokens: int = 50, stop: Sequence[str] = (), prompt: Sequence[int] = (BOS,)) -> list:
    return list(stream.stream(model, list(prompt), Sampling(), max_new_tokens, stop))


@pytest.mark.usefixtures("library")
class TestText:
    def test_a_character_of_several_tokens_appears_whole_with_its_last_one(self) -> None:
        model = FakeModel(b"a", *(bytes([byte]) for byte in "🙂".encode()), b"b")
        assert [token.text for token in tokens(model)] == ["a", "", "", "", "🙂", "b", ""]

    def test_an_incomplete_character_at_the_end_becomes_a_replacement_character(self) -> None:
        assert "".join(token.text for token in tokens(FakeModel(b"a", "🙂".encode()[:3]))) == "a\ufffd"
        assert "".join(token.text for token in tokens(FakeModel(b"a", b"\xf0", end=False), 2)) == "a\ufffd"

    def test_an_invalid_byte_does_not_swallow_what_follows(self) -> None:
        assert "".join(token.text for token in tokens(FakeModel(b"\xff", b"ok"))) == "\ufffdok"

    def test_a_piece_longer_than_the_buffer_is_whole(self) -> None:
        assert tokens(FakeModel(b" " * 300))[0].text == " " * 300

    def test_the_leading_space_stays_except_that_of_a_bos_token(self) -> None:
        assert tokens(FakeModel(b" A"))[0].text == " A"
        model = FakeModel(b"A")
        model.answer = [BOS, *model.answer]
        assert [token.text for token in tokens(model)] == ["", "A", ""]

    def test_every_sampled_token_comes_with_its_precision_the_end_included(self) -> None:
        model = FakeModel(b"a", b"b", b"c")
        assert tokens(model) == [Token(2, "a", 8), Token(3, "b", 8), Token(4, "c", 4), Token(END, "", 4, "stop")]
        assert len(model.stats.precisions) == 4


@pytest.mark.usefixtures("library")
class TestEnd:
    def test_the_last_token_says_why(self) -> None:
        assert tokens(FakeModel(b"a", b"b"))[-1].finish == "stop"
        assert [token.finish for token in tokens(FakeModel(b"a", b"b"), 2)] == ["", "length"]
        assert [token.finish for token in tokens(FakeModel(b"a", b"b", b"c", n_ctx=3))] == ["", "context"]
        assert tokens(FakeModel(b"a", b"<x>", b"c"), stop=["<x>"])[-1].finish == "stop"

    def test_nothing_is_generated_after_the_last_token(self) -> None:
        model = FakeModel(b"a", b"b", b"c")
        tokens(model, 2)
        assert model.stats.precisions == [8, 8] and model.closed

    def test_closing_the_iterator_stops_generating(self) -> None:
        model = FakeModel(b"a", b"b", b"c")
        iterator = stream.stream(model, [BOS], Sampling(), 50)  # type: ignore[arg-type]
        next(iterator)
        iterator.close()
        assert model.closed and model.stats.precisions == [8]

    def test_a_prompt_that_leaves_no_room_is_refused_before_it_is_evaluated(self) -> None:
        model = FakeModel(b"a", n_ctx=3)
        with pytest.raises(ContextFullError, match="a prompt of 3 tokens in a context of 3"):
            tokens(model, prompt=[BOS] * 3)
        assert not model.closed


@pytest.mark.usefixtures("library")
class TestStopStrings:
    @pytest.mark.parametrize("text", ["one <end> two", "one <en<end>", "<end>", "one <en", "one <<end>>", "no stop"])
    def test_they_never_leak_however_the_text_is_cut_into_tokens(self, text: str) -> None:
        for pieces in _cuts(text):
            model = FakeModel(*(piece.encode() for piece in pieces))
            given = tokens(model, stop=["<end>"])
            assert "".join(token.text for token in given) == text.partition("<end>")[0], pieces
            assert len(given) == len(model.stats.precisions)
            assert [bool(token.finish) for token in given] == [False] * (len(given) - 1) + [True]

    def test_the_earliest_of_several_counts(self) -> None:
        assert "".join(t.text for t in tokens(FakeModel(b"a#b|c"), stop=["|", "#", ""])) == "a"

    def test_only_what_may_begin_one_is_held_back(self) -> None:
        iterator = stream.stream(FakeModel(b"a", b"b <", b"e", b"x"), [BOS], Sampling(), 50, ["<end>"])  # type: ignore[arg-type]
        assert next(iterator).text == "a"
        assert [token.text for token in iterator] == ["b <", "e", "x", ""]


def _cuts(text: str) -> Iterator[list[str]]:
    """The text cut into pieces of every pattern of six lengths."""
    for pattern in range(64):
        pieces, rest = [], text
        for bit in range(6):
            length = 1 + (pattern >> bit & 1) * 3
            pieces.append(rest[:length])
            rest = rest[length:]
        yield [piece for piece in [*pieces, rest] if piece]


SENTENCES = [
    "Ein Mann geht mit seinem Hund im Park spazieren.",
    "Zwei Kinder spielen im Schnee.",
    "Eine Frau in einem roten Kleid sitzt auf einer Bank.",
    "Ein Hund springt über einen Zaun.",
    "Drei Männer arbeiten auf einem Dach.",
    "Translate from French to English: Un homme joue de la guitare.",
    "Translate from French to English: Deux chiens courent dans l'herbe.",
    "Translate from French to English: Une femme lit un journal dans un café.",
    "🙂 Ein Junge 🙂",
    "Café, naïve, 東京",
    "Ein Mädchen isst ein Eis",
    "Leute stehen an einer Haltestelle.",
    "Ein alter Mann mit Hut verkauft Obst auf dem Markt in der Stadt.",
    "Ein Fahrrad",
    "Der Surfer reitet auf einer großen Welle.",
    "a",
    "Eine Gruppe von Menschen steht vor einem Gebäude und wartet auf den Bus, während es regnet.",
    "Ein Baby lacht.",
    "1 2 3 4",
    "Zwei Frauen unterhalten sich an einem Tisch in einem Restaurant.",
]


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    from pmpd_edge import Pmpd

    if not bundles.default_bundle().is_dir():
        pytest.skip("the model of the package is not here")
    llm = Pmpd.from_bundle(n_threads=1)
    yield llm
    llm.close()


def _prompt(llm: Any, sentence: str) -> list[int]:
    return llm.tokenize(f"<s><|user|>Translate from German to English: {sentence}<|assistant|>".encode(), False, True)


class TestModel:
    def test_the_text_is_that_of_create_completion(self, model: Any) -> None:
        for sentence in SENTENCES:
            prompt = _prompt(model, sentence)
            expected = model.create_completion(prompt, max_tokens=40, temperature=0)["choices"][0]["text"]
            precisions = list(model.stats.precisions)
            given = list(stream.stream(model, prompt, Sampling(), 40))
            assert "".join(token.text for token in given) == expected
            assert [token.precision for token in given] == precisions

    def test_a_stop_string_ends_as_in_create_completion(self, model: Any) -> None:
        prompt = _prompt(model, SENTENCES[2])
        expected = model.create_completion(prompt, max_tokens=40, temperature=0, stop=["dress"])["choices"][0]["text"]
        given = list(stream.stream(model, prompt, Sampling(), 40, ["dress"]))
        assert "".join(token.text for token in given) == expected != ""
        assert given[-1].finish == "stop"

    def test_the_same_seed_gives_the_same_answer(self, model: Any) -> None:
        def sampled(seed: int) -> list[int]:
            model.set_seed(seed)
            warm = Sampling(temperature=3.0, top_k=0, top_p=1.0, min_p=0.0)
            return [token.id for token in stream.stream(model, _prompt(model, "Ein Hund"), warm, 12)]

        assert sampled(1) == sampled(1) != sampled(2)

    def test_every_method_after_every_other_gives_what_it_gives_alone(self, model: Any) -> None:
        from pmpd_edge import Pmpd

        prompt = _prompt(model, SENTENCES[16])

        def ids(llm: Any, method: str) -> list[int]:
            llm.configure(method=method, high_steps=3)
            return [token.id for token in stream.stream(llm, prompt, Sampling(), 30)]

        alone = {}
        for method in ("high", "pmpd", "low"):
            fresh = Pmpd.from_bundle(n_threads=1)
            alone[method] = ids(fresh, method)
            fresh.close()
        assert len({tuple(answer) for answer in alone.values()}) > 1  # else the test could not fail
        for first in alone:
            for second in alone:
                assert (ids(model, first), ids(model, second)) == (alone[first], alone[second])
        model.configure()
