"""Converts a Hugging Face model to a bundle of precisions."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pmpd_edge import bundle
from pmpd_edge.bundle import Bundle, Level, StaticSchedule, WeightsFile
from pmpd_edge.convert import checkpoint, gguf_info, hf, plan, quantize, staging
from pmpd_edge.convert.gguf_info import GgufInfo
from pmpd_edge.errors import ConvertError

__all__ = ["convert"]

Progress = Callable[[str, float], None]

_READ_SHARE = 0.5  # of the whole time, for the 16-bit file; the levels share the rest


def convert(
    source: Path,
    out: Path,
    *,
    precisions: Sequence[int] = (8, 4),
    types: Mapping[int, str] | None = None,
    name: str | None = None,
    schedule: StaticSchedule | None = None,
    max_new_tokens: int = 256,
    prefill: int | None = None,
    threads: int | None = None,
    progress: Progress = lambda label, fraction: None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Bundle:
    """Convert a Hugging Face model to a bundle; `out` appears whole or not at all.

    Args:
        source: the model's directory: config.json, tokenizer, weights.
        out: the directory to make.
        precisions: nominal bits per weight of the levels, out of 16, 8, 6, 5, 4, 3, 2.
        types: the tensor type of a precision where it is not the default (`plan.DEFAULT_TYPES`; 16 bits: the
            checkpoint's own).
        name: the bundle's name, part of its file names; default: the source directory's.
        schedule: default: `plan.default_schedule`.
        max_new_tokens: what the default schedule is made for.
        prefill: the precision at which prompts are evaluated; default: the highest.
        threads: for quantising; default: all cores.
        progress: called with what is being made and the fraction of the whole conversion that is done.
        overwrite: replace a bundle that is there.
        trust_remote_code: run the Python code that some models bring with them.

    Raises:
        ConvertError: the model cannot be converted, or not to this; nothing is left behind then.
        NativeError: the installation is incomplete.
    """
    source, out = Path(source), Path(out)
    found = checkpoint.inspect(source, trust_remote_code)
    planned = plan.make(name or source.resolve().name, precisions, types, schedule, max_new_tokens, prefill)
    if out.resolve().is_relative_to(source.resolve()) or source.resolve().is_relative_to(out.resolve()):
        raise ConvertError(f"{out}: inside of the model that is converted, or around it", "choose another place")

    with staging.staged(out, overwrite) as directory:
        staging.check_space(directory, plan.bytes_needed(planned, found))
        levels = _make_levels(source, directory, planned, threads, progress)
        if (source / "README.md").is_file():
            shutil.copyfile(source / "README.md", directory / "README.md")
        made = _describe(directory, source, planned, levels)
        bundle.write(made)
    progress(planned.name, 1.0)
    return bundle.load(out)


def _make_levels(
    source: Path, directory: Path, planned: plan.Plan, threads: int | None, progress: Progress
) -> dict[str, GgufInfo]:
    """Write the GGUF file of every level; returns what is in them by file name."""
    type_16 = next((level.type for level in planned.levels if level.precision == 16), None)
    base_path = directory / f"{planned.name}-16.gguf"
    progress("16 bits", 0.0)
    hf.to_gguf(source, base_path, type_16, lambda fraction: progress("16 bits", _READ_SHARE * fraction))
    quantize.check_loads(base_path, source)
    base = gguf_info.read(base_path)

    levels = {}
    lower = [level for level in planned.levels if level.precision != 16]
    for i, level in enumerate(lower):
        assert level.type
        label = f"{level.precision} bits, {level.type}"

        def on_tensor(fraction: float, label: str = label, i: int = i) -> None:
            progress(label, _READ_SHARE + (1 - _READ_SHARE) * (i + fraction) / len(lower))

        levels[level.file] = quantize.quantize(base, directory / level.file, level.type, threads, on_tensor)
    if 16 in planned.precisions:
        levels[base_path.name] = base
    else:
        base_path.unlink()
    return levels


def _describe(directory: Path, source: Path, planned: plan.Plan, levels: Mapping[str, GgufInfo]) -> Bundle:
    info = levels[planned.levels[0].file]
    files = {}
    for level in planned.levels:
        path = directory / level.file
        header = levels[level.file]
        if header.tokenizer_sha256 != info.tokenizer_sha256:
            raise ConvertError(f"{level.file}: its tokenizer is not that of {planned.levels[0].file}")
        files[level.file] = WeightsFile(
            type=level.type or header.type,
            bytes=path.stat().st_size,
            sha256=bundle.sha256_file(path),
            bpw=round(header.bpw, 4),
        )
    return Bundle(
        path=directory,
        name=planned.name,
        source={"repo": source.resolve().name, "revision": ""},
        architecture=info.architecture,
        parameters=info.parameters,
        context_length=info.context_length,
        tokenizer_sha256=info.tokenizer_sha256,
        layout="separate",
        files=files,
        levels=tuple(Level(level.precision, (level.file,)) for level in planned.levels),
        prefill=planned.prefill,
        schedule=planned.schedule,
    )
