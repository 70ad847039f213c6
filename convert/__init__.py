"""Converts a Hugging Face model to a bundle of precisions."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pmpd_edge import bundle
from pmpd_edge.bundle import Bundle, Fallback, Level, StaticSchedule, WeightsFile
from pmpd_edge.convert import gguf_info, hf, plan, quantize, residual, staging, values
from pmpd_edge.convert import source as sources
from pmpd_edge.convert.gguf_info import GgufInfo
from pmpd_edge.convert.source import Source
from pmpd_edge.errors import ConvertError

__all__ = ["convert"]

Progress = Callable[[str, float], None]
Note = Callable[[str], None]

# Of the whole time: when the checkpoint is checked, and when the 16-bit file is written; the levels share the rest.
_CHECKED, _READ = 0.05, 0.5


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    precisions: Sequence[int] = (8, 4),
    layout: str = "separate",
    types: Mapping[int, str] | None = None,
    name: str | None = None,
    schedule: StaticSchedule | None = None,
    max_new_tokens: int = 256,
    prefill: int | None = None,
    pre_tokenizer: str | None = None,
    threads: int | None = None,
    progress: Progress = lambda label, fraction: None,
    note: Note = lambda text: None,
    show_download: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Bundle:
    """Convert a model to a bundle; `out` appears whole or not at all.

    Args:
        source: a Hugging Face model's directory, its Hub id (`org/name` or `org/name@revision`), or a GGUF file of F32,
            F16 or BF16.
        out: the directory to make.
        precisions: nominal bits per weight of the levels, out of 16, 8, 6, 5, 4, 3, 2.
        layout: "separate", one complete file for each level, or "nested": a complete file for the lowest level and a
            residual file for each higher one, which is summed with those below; 16 bits are a complete file in both.
        types: the tensor type of a precision's file where it is not the default (`plan.DEFAULT_TYPES`, of residuals
            `plan.DEFAULT_RESIDUALS`; 16 bits: the checkpoint's own).
        name: the bundle's name, part of its file names; default: the source's.
        schedule: default: `plan.default_schedule`.
        max_new_tokens: what the default schedule is made for.
        prefill: the precision at which prompts are evaluated; default: the highest.
        pre_tokenizer: llama.cpp's name of the rule by which a byte-level BPE tokenizer splits text into words, where
            upstream's converter does not recognise it.
        threads: for quantising; default: all cores.
        progress: called with what is being made and the fraction of the whole conversion that is done.
        note: called with a line about what is not as one would expect: tokens that differ from Hugging Face's.
        show_download: draw huggingface_hub's progress of downloads.
        overwrite: replace a bundle that is there.
        trust_remote_code: run the Python code that some models bring with them.

    Raises:
        ConvertError: the model cannot be converted, or not to this; nothing is left behind then.
        NativeError: the installation is incomplete.
    """
    out = Path(out)
    if pre_tokenizer:
        hf.check_pre_tokenizer(pre_tokenizer)
    name = name or sources.default_name(source)
    planned = plan.make(name, precisions, types, schedule, max_new_tokens, prefill, layout)
    _check_apart(out, Path(source).expanduser())
    staging.check_place(out, overwrite)  # before a long download
    origin = sources.find(source, show_download=show_download, note=note)
    found = sources.inspect(origin, trust_remote_code)
    _check_apart(out, origin.path)

    with staging.staged(out, overwrite) as directory:
        staging.check_space(directory, plan.bytes_needed(planned, found))
        values.check(found.tensors, lambda fraction: progress("Checking", _CHECKED * fraction))
        base = _make_base(origin, directory, planned, pre_tokenizer, threads, progress, note)
        levels = _make_levels(base, directory, planned, threads, progress)
        if (origin.path / "README.md").is_file():
            shutil.copyfile(origin.path / "README.md", directory / "README.md")
        made = _describe(directory, origin, planned, levels)
        bundle.write(made)
    progress(planned.name, 1.0)
    return bundle.load(out)


def _check_apart(out: Path, model: Path) -> None:
    place, model = out.resolve(), model.resolve()
    if place.is_relative_to(model) or model.is_relative_to(place):
        raise ConvertError(f"{out}: inside of the model that is converted, or around it", "choose another place")


def _make_base(
    source: Source,
    directory: Path,
    planned: plan.Plan,
    pre_tokenizer: str | None,
    threads: int | None,
    progress: Progress,
    note: Note,
) -> GgufInfo:
    """Write the 16-bit file that the levels are made from; a GGUF that is no level itself is read where it lies."""
    type_16 = next((level.type for level in planned.levels if level.precision == 16), None)
    path = directory / f"{planned.name}-16.gguf"

    def on_written(fraction: float) -> None:
        progress("16 bits", _CHECKED + (_READ - _CHECKED) * fraction)

    on_written(0.0)
    if source.is_gguf:
        if pre_tokenizer:
            raise ConvertError(f"{source.path}: a GGUF file has its pre-tokenizer", "leave --pre-tokenizer out")
        quantize.check_loads(source.path, source.path)
        if 16 not in planned.precisions:
            return gguf_info.read(source.path)
        return sources.copy_gguf(source, path, type_16, threads, on_written)
    name = source.repo.rpartition("/")[2] if source.revision else None  # the directory's name is a commit
    hf.to_gguf(source.path, path, type_16, on_written, name=name, pre_tokenizer=pre_tokenizer, note=note)
    quantize.check_loads(path, source.path)
    return gguf_info.read(path)


def _make_levels(
    base: GgufInfo, directory: Path, planned: plan.Plan, threads: int | None, progress: Progress
) -> dict[str, GgufInfo]:
    """Write the GGUF file of every level below 16 bits; returns what is in each level's file by its name."""
    levels: dict[str, GgufInfo] = {}
    if planned.layout == "nested":
        residual.check(base)
    lower = [level for level in reversed(planned.levels) if level.precision != 16]  # residuals need those below
    for i, level in enumerate(lower):
        assert level.type
        label = f"{level.precision} bits, {level.type}"

        def on_tensor(fraction: float, label: str = label, i: int = i) -> None:
            progress(label, _READ + (1 - _READ) * (i + fraction) / len(lower))

        path = directory / level.file
        if level.residual:
            below = tuple(levels.values())
            levels[level.file] = residual.make(base, below, path, level.type, threads, on_tensor)
            residual.check_sum([directory / file for file in planned.weights(level)])
        else:
            levels[level.file] = quantize.quantize(base, path, level.type, threads, on_tensor)
    if 16 in planned.precisions:
        levels[base.path.name] = base
    elif base.path.parent == directory:
        base.path.unlink()
    return levels


def _describe(directory: Path, source: Source, planned: plan.Plan, levels: Mapping[str, GgufInfo]) -> Bundle:
    info = levels[planned.levels[0].file]
    base = levels[planned.levels[-1].file]
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
            bpw=round(residual.bpw(header, base) if level.residual else header.bpw, 4),
            fallbacks=_fallbacks(level, header, base),
        )
    return Bundle(
        path=directory,
        name=planned.name,
        source={"repo": source.repo, "revision": source.revision},
        architecture=info.architecture,
        parameters=info.parameters,
        context_length=info.context_length,
        tokenizer_sha256=info.tokenizer_sha256,
        layout=planned.layout,
        files=files,
        levels=tuple(Level(level.precision, planned.weights(level)) for level in planned.levels),
        prefill=planned.prefill,
        schedule=planned.schedule,
    )


def _fallbacks(level: plan.LevelPlan, header: GgufInfo, base: GgufInfo) -> tuple[Fallback, ...]:
    """What has another type than the level's. What a residual does not add to is stored as zeros of any type."""
    by_type: dict[str, list[str]] = {}
    added = {tensor.name for tensor in base.tensors if residual.holds_remainder(tensor)}
    for tensor in header.fallbacks(level.type or header.type):
        if not level.residual or tensor.name in added:
            by_type.setdefault(tensor.type, []).append(tensor.name)
    return tuple(Fallback(type_name, tuple(names)) for type_name, names in by_type.items())
