"""What the Python package answers, for the Kotlin tests to compare with: one line of tab-separated fields per answer.

    python oracle.py DIRECTORY

DIRECTORY/default.tsv is of the bundle in the package, learned.tsv of the bundle that is made in DIRECTORY/learned
(learned.py). Fields: method, schedule (empty: the method's own), high steps, draft tokens, temperature, seed, messages
(separated by |); ids, precisions, which were drafted (1 or 0), logarithms of the tokens' probabilities, how much less
likely the second likeliest tokens are than the likeliest (in logarithms), each separated by spaces; text (hexadecimal
UTF-8).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import learned

from pmpd_edge import Pmpd
from pmpd_edge.chat_template import render
from pmpd_edge.stream import Sampling, Token, stream

SENTENCES = (
    "Ein Hund läuft mit einem Ball im Maul über die grüne Wiese.",
    "Zwei Männer stehen am Herd und bereiten Essen zu.",
    "Translate from French to English: Une femme âgée tricote ; elle porte un chapeau bleu.",
    "Ein 😀 lacht über einen 👨‍👩‍👧.",
)
WARM = Sampling(temperature=0.8)
HOT = Sampling(temperature=50.0, top_k=0, top_p=1.0, min_p=0.0)  # any token: single bytes, broken characters
HOT_SEEDS = range(8)


@dataclass(frozen=True)
class Asked:
    """How answers are to be decoded, as the Kotlin library is told it."""

    method: str
    scheduler: str = ""
    high_steps: int = -1
    draft_tokens: int = 0

    def configure(self, llm: Pmpd) -> None:
        options: dict[str, Any] = {"method": self.method, "scheduler": self.scheduler or None}
        if self.high_steps >= 0:
            options["high_steps"] = self.high_steps
        if self.draft_tokens > 0:
            options["draft_tokens"] = self.draft_tokens
        llm.configure(**options)


STATIC = Asked("pmpd", "static")
METHODS = (
    STATIC,
    Asked("pmpd", "static", high_steps=2),
    Asked("pmpd", "fixed:4"),
    Asked("high"),
    Asked("low"),
    Asked("lossless", draft_tokens=3),
    Asked("lossless", "static", draft_tokens=2),
)
METHODS_OF_LEARNED = (
    Asked("pmpd", "learned"),
    STATIC,
    Asked("pmpd", "fixed:4"),
    Asked("lossless", "learned", draft_tokens=4),
)


def main() -> None:
    directory = Path(sys.argv[1])
    with_predictor = learned.make(directory / "learned")
    write(directory / "default.tsv", of_default(Pmpd(n_threads=1)))
    write(directory / "learned.tsv", of_learned(Pmpd(with_predictor.path, n_threads=1)))


def write(path: Path, lines: Iterator[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def of_default(llm: Pmpd) -> Iterator[str]:
    """Conversations of two turns with every method, and sampled answers."""
    for asked in METHODS:
        for sentence in SENTENCES:
            conversation = [sentence]
            for turn in range(2):
                given = line(llm, asked, conversation, Sampling(), 0)
                conversation += [text_of(given), SENTENCES[turn]]
                yield given
        yield line(llm, asked, [SENTENCES[0]], WARM, 7)
    for seed in HOT_SEEDS:
        yield line(llm, STATIC, [SENTENCES[0]], HOT, seed)


def of_learned(llm: Pmpd) -> Iterator[str]:
    """One message each: what random weights say is not fit to be a part of a conversation."""
    for asked in METHODS_OF_LEARNED:
        for sentence in SENTENCES:
            yield line(llm, asked, [sentence], Sampling(), 0)
        yield line(llm, asked, [SENTENCES[0]], WARM, 7)


def line(llm: Pmpd, asked: Asked, conversation: list[str], sampling: Sampling, seed: int) -> str:
    """The answer to messages by turns of user and assistant, and how it was asked for."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(conversation)]
    asked.configure(llm)
    llm.set_seed(seed)
    prompt = render(llm, messages)
    longest = llm.bundle.schedule.max_new_tokens
    tokens = list(stream(llm, prompt.tokens, sampling, longest, prompt.stop, n_likeliest=2))
    columns = zip(*map(_figures, tokens), strict=True)
    text = "".join(token.text for token in tokens).encode().hex()
    how = (asked.method, asked.scheduler, asked.high_steps, asked.draft_tokens, sampling.temperature, seed)
    return "\t".join(map(str, (*how, "|".join(conversation), *map(" ".join, columns), text)))


def _figures(token: Token) -> tuple[str, ...]:
    assert token.sampled is not None  # probabilities were asked for
    first, second = token.likeliest
    gap = first.logprob - second.logprob
    return (
        str(token.id),
        str(token.precision),
        str(int(token.drafted)),
        f"{token.sampled.logprob:.6f}",
        f"{gap:.6f}",
    )


def text_of(line: str) -> str:
    return bytes.fromhex(line.rpartition("\t")[2]).decode()


if __name__ == "__main__":
    main()
