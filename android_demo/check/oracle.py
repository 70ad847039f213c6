"""What the Python package answers, for the Kotlin tests to compare with: one line of tab-separated fields per answer.

    python oracle.py FILE

Method, schedule, high steps, temperature, seed, messages (separated by |); ids, precisions, logarithms of the tokens'
probabilities, ids of the second likeliest tokens, how much less likely those are than the likeliest (in logarithms),
each separated by spaces; text (hexadecimal UTF-8).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pmpd_edge import Pmpd
from pmpd_edge.chat_template import render
from pmpd_edge.stream import Sampling, Token, stream

SENTENCES = (
    "Ein Hund läuft mit einem Ball im Maul über die grüne Wiese.",
    "Zwei Männer stehen am Herd und bereiten Essen zu.",
    "Translate from French to English: Une femme âgée tricote ; elle porte un chapeau bleu.",
    "Ein 😀 lacht über einen 👨‍👩‍👧.",
)
METHODS = (
    ("pmpd", "static", -1),
    ("pmpd", "static", 2),
    ("pmpd", "fixed:4", -1),
    ("high", "static", -1),
    ("low", "static", -1),
)
MAX_NEW_TOKENS = 64  # of the default bundle
WARM = Sampling(temperature=0.8)
HOT = Sampling(temperature=50.0, top_k=0, top_p=1.0, min_p=0.0)  # any token: single bytes, broken characters
HOT_SEEDS = range(8)


def main() -> None:
    llm = Pmpd(n_threads=1)
    lines = []
    for method, scheduler, high_steps in METHODS:
        options: dict[str, Any] = {"method": method}
        if method == "pmpd":
            options |= {"scheduler": scheduler, "high_steps": None if high_steps < 0 else high_steps}
        llm.configure(**options)
        asked = (method, scheduler, high_steps)
        for sentence in SENTENCES:
            conversation = [sentence]
            for turn in range(2):
                lines.append(line(llm, asked, conversation, Sampling(), 0))
                conversation += [text_of(lines[-1]), SENTENCES[turn]]
        lines.append(line(llm, asked, [SENTENCES[0]], WARM, 7))
    llm.configure()
    lines += [line(llm, METHODS[0], [SENTENCES[0]], HOT, seed) for seed in HOT_SEEDS]
    Path(sys.argv[1]).write_text("\n".join(lines) + "\n", encoding="utf-8")


def line(llm: Pmpd, asked: tuple[object, ...], conversation: list[str], sampling: Sampling, seed: int) -> str:
    """The answer to messages by turns of user and assistant, and how it was asked for."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(conversation)]
    llm.set_seed(seed)
    prompt = render(llm, messages)
    tokens = list(stream(llm, prompt.tokens, sampling, MAX_NEW_TOKENS, prompt.stop, n_likeliest=2))
    columns = zip(*map(_figures, tokens), strict=True)
    text = "".join(token.text for token in tokens).encode().hex()
    fields = (*asked, sampling.temperature, seed, "|".join(conversation), *map(" ".join, columns), text)
    return "\t".join(map(str, fields))


def _figures(token: Token) -> tuple[str, ...]:
    assert token.sampled is not None  # probabilities were asked for
    first, second = token.likeliest
    gap = first.logprob - second.logprob
    return (str(token.id), str(token.precision), f"{token.sampled.logprob:.6f}", str(second.id), f"{gap:.6f}")


def text_of(line: str) -> str:
    return bytes.fromhex(line.rpartition("\t")[2]).decode()


if __name__ == "__main__":
    main()
