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
