"""The default model's prompts, and answers to them."""

from __future__ import annotations

import itertools

from pmpd_edge import Pmpd

SENTENCES = [
    "Ein Mann in einem blauen Hemd steht auf einer Leiter und putzt ein Fenster.",
    "Ein Kletterer hängt an einem Seil unter einem Felsvorsprung.",  # high, low and pmpd differ
    "Translate from French to English: Une femme joue de la guitare dans la rue.",
]


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def prompt(llm: Pmpd, text: str) -> list[int]:
    return llm.tokenize(f"<|user|>Translate from German to English: {text}<|assistant|>".encode(), special=True)


def answer(llm: Pmpd, tokens: list[int], n: int = 14) -> list[int]:
    return list(itertools.islice(llm.generate(tokens, temp=0.0), n))


def answer_text(llm: Pmpd, text: str, n: int = 24) -> str:
    """The answer to a message, as the model is configured, likeliest tokens only."""
    from pmpd_edge.chat_template import render
    from pmpd_edge.stream import Sampling, stream

    tokens = render(llm, messages(text)).tokens
    return "".join(token.text for token in stream(llm, tokens, Sampling(), n)).strip()
