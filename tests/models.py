"""Hugging Face checkpoints for tests: the translator in tests/data, and tiny random ones with its tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

TRANSLATOR = Path(__file__).parent / "data" / "translator-7m"

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")


def tiny_llama(
    path: Path,
    *,
    hidden: int = 256,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    ff: int = 256,
    tie: bool = False,
    seed: int = 0,
) -> Path:
    """Write a Llama checkpoint with random bfloat16 weights and the translator's tokenizer; the same for the same seed.

    Args:
        path: the directory to make.
        hidden: width; divisible by `heads`.
        ff: width of the feed-forward layer.
        tie: whether the output matrix is the token embeddings.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=hidden,
        intermediate_size=ff,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=256,
        tie_word_embeddings=tie,
        bos_token_id=1,
        eos_token_id=5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    for name in _TOKENIZER_FILES:
        shutil.copyfile(TRANSLATOR / name, path / name)
    return path
