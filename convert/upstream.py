"""The process in which upstream's converter runs; started by hf.py. It sees upstream's own `gguf`, not the one on PyPI.

Beside converting it asks the Hugging Face tokenizer for token ids: transformers is imported here anyhow.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Do the job in the first argument; the others are upstream's."""
    job = json.loads(sys.argv.pop(1))
    sys.path.insert(0, job["upstream"])
    if job["ids"]:
        document = json.dumps(_token_ids(job["source"], job["texts"]))
        Path(job["ids"]).write_text(document, encoding="utf-8")
    if job["pre_tokenizer"]:
        _name_pre_tokenizer(job["pre_tokenizer"])
    _score_by_merges()
    runpy.run_path(job["upstream"] + "/convert_hf_to_gguf.py", run_name="__main__")


def _token_ids(source: str, texts: list[str]) -> dict[str, Any]:
    """The Hugging Face tokenizer's ids of texts, or why there are none."""
    try:
        from transformers import AutoTokenizer

        # Code that the model brings was allowed before this process began, and upstream runs it as well.
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True)
        return {"ids": [list(tokenizer.encode(text, add_special_tokens=False)) for text in texts]}
    except Exception as error:  # whatever it is, the converter may do without; it says what it needs itself
        reason = str(error).strip().splitlines()
        return {"error": f"{type(error).__name__}: {reason[0] if reason else ''}"}


def _name_pre_tokenizer(name: str) -> None:
    """Have upstream write this pre-tokenizer's name instead of looking for it by a hash."""
    from conversion.base import TextModel  # type: ignore[import-not-found]

    TextModel.get_vocab_base_pre = lambda self, tokenizer: name


def _score_by_merges() -> None:
    """Have upstream score the tokens of a sentencepiece tokenizer that comes without tokenizer.model.

    llama.cpp merges the pair with the highest score first. Upstream gives all tokens the same one, so that it merges
    from left to right, to other tokens than the model knows. In tokenizer.json the merges are in their order.
    """
    from gguf.vocab import LlamaHfVocab

    load = LlamaHfVocab.__init__

    def load_and_rank(self: Any, base_path: Path) -> None:
        load(self, base_path)
        document = json.loads(self.fname_tokenizer.read_text(encoding="utf-8"))
        ids = self.tokenizer.get_vocab()
        self.ranks = {}
        for rank, merge in enumerate(document["model"]["merges"]):
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            if (token := ids.get(left + right)) is not None:
                self.ranks.setdefault(token, rank)

    LlamaHfVocab.__init__ = load_and_rank
    LlamaHfVocab.get_token_score = lambda self, token: -float(self.ranks.get(token, 1e6))
