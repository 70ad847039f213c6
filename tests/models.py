"""Models for tests: the translator in tests/data, tiny random checkpoints, and GGUF files of given tensors."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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


def part_of(name: str) -> str:
    """The part of a Llama that a tensor of a GGUF belongs to."""
    stem = name.removesuffix(".weight").rpartition(".")[2]
    if stem in ("token_embd", "output"):
        return {"token_embd": "embeddings", "output": "output"}[stem]
    return "other" if stem.endswith("_norm") else {"attn": "attention", "ffn": "feed-forward"}[stem.partition("_")[0]]


def calibration_text(path: Path, size: int = 6000) -> Path:
    """Write the beginning of the text that importance matrices are computed from: less is quicker.

    Args:
        path: the file to write.
        size: in bytes; the default is four chunks of 512 tokens of the translator's.
    """
    from pmpd_edge.convert import imatrix

    path.write_bytes(imatrix.DEFAULT_TEXT.read_bytes()[:size].decode(errors="ignore").encode())
    return path


BPE_SIZE = 512  # of the vocabulary that `write_bpe_tokenizer` trains
BPE_NAME = "gpt-2"  # llama.cpp's name for its pre-tokenizer


def random_checkpoint(path: Path, config: Any, *, tokenizer: str = "sentencepiece", seed: int = 0) -> Path:
    """Write a checkpoint of any architecture with random bfloat16 weights; the same for the same seed.

    Unlike transformers' own initial values, these make everything count: attention is peaked, and norms and biases
    differ from one and zero. A swapped half of a rotary dimension or a forgotten bias changes the logits visibly.

    Args:
        path: the directory to make.
        config: a transformers configuration of a causal language model.
        tokenizer: `sentencepiece` is the translator's, with 4096 tokens; `sentencepiece-only` the same without
            tokenizer.json (for architectures where upstream takes that for byte-level BPE); `bpe` is of our own making.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, weights in model.named_parameters():
            _randomize(name, weights.data, config.tie_word_embeddings)
        model.to(torch.bfloat16).save_pretrained(path)
    if tokenizer == "bpe":
        write_bpe_tokenizer(path)
    else:
        for name in _TOKENIZER_FILES:
            if not (tokenizer == "sentencepiece-only" and name == "tokenizer.json"):
                shutil.copyfile(TRANSLATOR / name, path / name)
    return path


def _randomize(name: str, weights: Any, tied: bool) -> None:
    """Fill a parameter in place, according to what it is."""
    import torch

    noise = torch.randn_like(weights)
    if name.endswith(("A_log", "dt_proj.bias")):  # a state space's decay: keep its range
        weights.add_(0.1 * noise)
    elif "embed" in name and not tied:  # tied ones would let every token predict itself, whatever the layers do
        weights.copy_(noise)
    elif weights.dim() == 1:
        weights.add_(0.2 * noise)  # norms around one (Gemma's: around zero, it adds the one), biases around zero
    else:
        weights.copy_(noise * weights.shape[-1] ** -0.5)


def write_bpe_tokenizer(path: Path) -> None:
    """Train a small byte-level BPE tokenizer that splits words as GPT-2's does, and write its files to a directory."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_SIZE,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(Path(__file__).read_text(encoding="utf-8").splitlines(), trainer)
    special = {f"{role}_token": "<|endoftext|>" for role in ("bos", "eos", "unk")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)


def write_like(like: Path, out: Path, weights: Mapping[str, npt.NDArray[np.float32]]) -> Path:
    """Write a float32 file of tensors, `[..., columns]`, with the metadata of another file."""
    import gguf

    reader = gguf.GGUFReader(like)
    writer = gguf.GGUFWriter(out, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind, *element = field.types
            writer.add_key_value(key, field.contents(), kind, sub_type=element[-1] if element else None)
    for name, array in weights.items():
        writer.add_tensor(name, np.ascontiguousarray(array, np.float32))
    return _finish(writer, out)


def write_matrix(path: Path, values: Mapping[str, npt.NDArray[np.float32]]) -> Path:
    """Write an importance matrix: the mean squares of each matrix's inputs, `[n_matrices, columns]`."""
    import gguf

    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_string("general.type", "imatrix")
    for name, means in values.items():
        writer.add_tensor(f"{name}.in_sum2", np.ascontiguousarray(means, np.float32))
        writer.add_tensor(f"{name}.counts", np.ones((len(means), 1), np.float32))
    return _finish(writer, path)


def _finish(writer: Any, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
