"""A Hugging Face checkpoint to a 16-bit GGUF, by upstream's own converter."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from pmpd_edge import native
from pmpd_edge.convert import child
from pmpd_edge.errors import ConvertError

_CODE = """
import runpy, sys
upstream = sys.argv.pop(1)
sys.path.insert(0, upstream)  # its `gguf` before the one on PyPI, which is older
runpy.run_path(upstream + "/convert_hf_to_gguf.py", run_name="__main__")
"""

_ENV = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "NO_LOCAL_GGUF": "1",  # `gguf` lies beside the script, not in gguf-py/gguf
}

_WRITTEN = re.compile(r"Writing:\s*(\d+)%")

# Brought by the optional dependencies `pmpd-edge[convert]`.
_EXTRA = {"gguf", "google", "numpy", "requests", "safetensors", "sentencepiece", "torch", "tqdm", "transformers"}


def to_gguf(
    source: Path, out: Path, type_16: str | None = None, progress: Callable[[float], None] = lambda fraction: None
) -> None:
    """Convert a checkpoint to one GGUF file of 16 bits per weight.

    Args:
        source: a directory with config.json, tokenizer and weights.
        out: the file to write.
        type_16: "F16" or "BF16"; None keeps the type of the checkpoint.
        progress: called with the fraction that is written.

    Raises:
        ConvertError: upstream's converter cannot convert it; with its reason.
    """

    def on_line(line: str) -> None:
        if match := _WRITTEN.search(line):
            progress(int(match[1]) / 100)

    outtype = type_16.lower() if type_16 else "auto"
    arguments = [str(native.upstream_dir()), "--outtype", outtype, "--outfile", str(out), "--", str(source.resolve())]
    try:
        child.run(_CODE, arguments, on_line, _ENV)
    except child.ChildError as error:
        raise _explain(source, error) from None
    if not out.is_file():
        raise ConvertError(f"{source}: upstream's converter wrote no file", "report this with the model's name")


def _explain(source: Path, error: child.ChildError) -> ConvertError:
    log = "\n".join(error.lines)
    # numpy writes less than it was asked to where a disk is full, and then speaks of numbers of elements.
    if error.reason == child.NO_SPACE or re.search(r"^\d+ requested and \d+ written", error.reason):
        return ConvertError(f"{source}: {child.NO_SPACE}", "free some, or convert to another disk")
    if match := re.search(r"No module named '([\w.]+)'", error.reason):
        package = match[1].partition(".")[0]
        wanted = "'pmpd-edge[convert]'" if package in _EXTRA else package
        return ConvertError(f"{source}: converting needs the Python package {package}", f"pip install {wanted}")
    if "pre-tokenizer was not recognized" in log:
        found = re.search(r"chkhsh:\s+(\w+)", log)
        which = f" (hash {found[1][:16]}...)" if found else ""
        return ConvertError(
            f"{source}: unrecognised pre-tokenizer: llama.cpp does not know how this tokenizer splits words{which}",
            "use the tokenizer of the model that this one was derived from",
        )
    if match := re.search(r"Model (\S+) is not supported", log):
        return ConvertError(f"{source}: llama.cpp does not support the architecture {match[1]}")
    return ConvertError(f"{source}: not convertible ({error.reason})")
