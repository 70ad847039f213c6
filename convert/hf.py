"""A Hugging Face checkpoint to a 16-bit GGUF, by upstream's own converter."""

from __future__ import annotations

import ast
import difflib
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from pmpd_edge import gguf_info, native
from pmpd_edge.convert import child, tokens
from pmpd_edge.errors import ConvertError, DiskFullError

_CODE = "from pmpd_edge.convert.upstream import main; main()"

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

_SHOWN = 6  # names in a message


def to_gguf(
    source: Path,
    out: Path,
    type_16: str | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
    *,
    name: str | None = None,
    pre_tokenizer: str | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Convert a checkpoint to one GGUF file of 16 bits per weight.

    Args:
        source: a directory with config.json, tokenizer and weights.
        out: the file to write.
        type_16: "F16" or "BF16"; None keeps the type of the checkpoint.
        progress: called with the fraction that is written.
        name: the model's, for the file's metadata, where the directory's name is none.
        pre_tokenizer: what to write where upstream would look for a byte-level BPE tokenizer's rule by a hash.
        note: called with a line where the file's tokenizer is not quite the checkpoint's.

    Raises:
        ConvertError: upstream's converter cannot convert it; with its reason.
    """
    if pre_tokenizer:
        check_pre_tokenizer(pre_tokenizer)

    def on_line(line: str) -> None:
        if match := _WRITTEN.search(line):
            progress(int(match[1]) / 100)

    arguments = ["--outtype", type_16.lower() if type_16 else "auto", "--outfile", str(out)]
    with tempfile.TemporaryDirectory() as directory:
        ids = Path(directory) / "ids.json"
        try:
            _run_upstream(_named(source, Path(directory), name), arguments, on_line, pre_tokenizer, ids)
        except child.ChildError as error:
            raise _explain(source, error, ids) from None
        if not out.is_file():
            raise ConvertError(f"{source}: upstream's converter wrote no file", "report this with the model's name")
        _end_context_with_window(source, out, note)
        _note_differences(out, ids, pre_tokenizer, note)


def _named(source: Path, directory: Path, name: str | None) -> Path:
    """The checkpoint by a path that ends in its name: upstream writes what that says into the file's metadata."""
    source = source.resolve()
    if name is None or name == source.name:
        return source
    link = directory / name
    try:
        link.symlink_to(source, target_is_directory=True)
    except OSError:  # Windows, without the right to do so: the name is not worth more
        return source
    return link


# llama.cpp's names of architectures some of whose models have a sliding window, which it does not keep to.
_WINDOW_IGNORED = ("llama", "phi3", "phimoe", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "starcoder2")


def _end_context_with_window(source: Path, out: Path, note: Callable[[str], None]) -> None:
    """Let a model's context end where llama.cpp would begin to compute something else than the model."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    info = gguf_info.read(out)
    if info.architecture in _WINDOW_IGNORED and isinstance(window, int) and 0 < window < info.context_length:
        note(
            f"context of {window} tokens instead of {info.context_length}: llama.cpp does not keep to this model's "
            "sliding window, and longer texts would give other answers than the model's"
        )
        gguf_info.write_u32(out, f"{info.architecture}.context_length", window)


def check_pre_tokenizer(name: str) -> None:
    """Raise ConvertError where llama.cpp does not know a pre-tokenizer."""
    known = tokens.known_pre_tokenizers(native.upstream_dir())
    if name not in known:
        close = difflib.get_close_matches(name, known, _SHOWN, 0.4) or known[:_SHOWN]
        raise ConvertError(f"pre-tokenizer {name!r}: llama.cpp knows none of that name", f"it knows {_names(close)}")


def architectures() -> tuple[str, ...]:
    """The architectures of text models that upstream converts, as config.json names them."""
    tree = ast.parse((native.upstream_dir() / "conversion" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id == "TEXT_MODEL_MAP" and isinstance(node, ast.AnnAssign):
            return tuple(ast.literal_eval(node.value)) if node.value else ()
    return ()


def _run_upstream(
    source: Path,
    arguments: Sequence[str],
    on_line: Callable[[str], None] = lambda line: None,
    pre_tokenizer: str | None = None,
    ids: Path | None = None,
) -> None:
    """Run upstream's converter; the Hugging Face tokenizer's ids of `tokens.SAMPLES` go to the file `ids` first."""
    job = {
        "upstream": str(native.upstream_dir()),
        "source": os.path.abspath(source),
        "texts": tokens.SAMPLES,
        "ids": str(ids) if ids else None,
        "pre_tokenizer": pre_tokenizer,
    }
    child.run(_CODE, [json.dumps(job), *arguments, "--", os.path.abspath(source)], on_line, _ENV)


def _read_ids(path: Path) -> tuple[tokens.Ids | None, str]:
    """The ids that upstream's process left, and why there are none."""
    if not path.is_file():
        return None, "no ids"
    document = json.loads(path.read_text(encoding="utf-8"))
    return (tokens.parse(document["ids"]), "") if "ids" in document else (None, document["error"])


def _note_differences(out: Path, ids: Path, pre_tokenizer: str | None, note: Callable[[str], None]) -> None:
    """Compare the tokens of what was written with those of Hugging Face's tokenizer."""
    expected, reason = _read_ids(ids)
    if expected is None:
        note(f"token ids were not compared with those of Hugging Face's tokenizer, which does not load ({reason})")
    else:
        try:
            difference = tokens.difference(expected, tokens.tokenize(out)[""])
        except child.ChildError:
            return  # the whole file is checked next, with better words
        if difference:
            note(difference)
    if pre_tokenizer and gguf_info.read(out).metadata.get("tokenizer.ggml.pre") != pre_tokenizer:
        note(f"the pre-tokenizer {pre_tokenizer} was not used: this tokenizer is no byte-level BPE one")


def _explain(source: Path, error: child.ChildError, ids: Path) -> ConvertError:
    log = "\n".join(error.lines)
    # numpy writes less than it was asked to where a disk is full, and then speaks of numbers of elements.
    if error.reason == child.NO_SPACE or re.search(r"^\d+ requested and \d+ written", error.reason):
        return DiskFullError(str(source))
    if match := re.search(r"No module named '([\w.]+)'", error.reason):
        package = match[1].partition(".")[0]
        wanted = "'pmpd-edge[convert]'" if package in _EXTRA else package
        return ConvertError(f"{source}: converting needs the Python package {package}", f"pip install {wanted}")
    if "pre-tokenizer was not recognized" in log:
        found = re.search(r"chkhsh:\s+(\w+)", log)
        return _explain_pre_tokenizer(source, f" (hash {found[1][:16]}...)" if found else "", ids)
    if match := re.search(r"Model (\S+) is not supported", log):
        return _explain_architecture(source, match[1])
    return ConvertError(f"{source}: not convertible ({error.reason})")


def _explain_architecture(source: Path, name: str) -> ConvertError:
    # Most names end alike; what they begin with says which model it is.
    close = difflib.get_close_matches(name, architectures(), 3, 0.75)
    hint = f"the closest that it supports: {_names(close)}" if close else ""
    return ConvertError(f"{source}: llama.cpp does not support the architecture {name}", hint)


def _explain_pre_tokenizer(source: Path, which: str, ids: Path) -> ConvertError:
    """Say which known pre-tokenizers give the tokens of the Hugging Face tokenizer."""
    message = f"{source}: unrecognised pre-tokenizer: llama.cpp does not know how this tokenizer splits words{which}"
    derived = "use the tokenizer of the model that this one was derived from"
    expected, _ = _read_ids(ids)
    agreements = _try_pre_tokenizers(source, expected) if expected else []
    if not agreements:
        return ConvertError(message, f"{derived}, or name a known one with --pre-tokenizer NAME")
    best = agreements[0]
    equal = [agreement.name for agreement in agreements if agreement.equal == best.equal]
    if best.equal == best.of:
        agree = f"those that give Hugging Face's tokens for all {best.of} sample texts: {_names(equal)}"
        return ConvertError(f"{message}; {agree}", f"go on with --pre-tokenizer {best.name}")
    closest = f"none that it knows gives Hugging Face's tokens for all {best.of} sample texts"
    return ConvertError(
        f"{message}; {closest}, the closest for {best.equal}: {_names(equal)}",
        f"{derived}, or accept the differences with --pre-tokenizer {best.name}",
    )


def _try_pre_tokenizers(source: Path, expected: tokens.Ids) -> list[tokens.Agreement]:
    names = tokens.known_pre_tokenizers(native.upstream_dir())
    with tempfile.TemporaryDirectory() as directory:
        vocabulary = Path(directory) / "vocabulary.gguf"
        try:
            _run_upstream(source, ["--vocab-only", "--outfile", str(vocabulary)], pre_tokenizer=names[0])
            return tokens.compare_pre_tokenizers(vocabulary, expected, names)
        except child.ChildError:  # a tokenizer that llama.cpp cannot use with any of them
            return []


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
