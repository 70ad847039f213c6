"""Converts a Hugging Face model to a bundle of precisions."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pmpd_edge import __version__, bundle, gguf_info
from pmpd_edge.bundle import Bundle, Fallback, ImatrixFile, Level, StaticSchedule, WeightsFile
from pmpd_edge.convert import hf, imatrix, plan, quantize, report, residual, staging, values
from pmpd_edge.convert import source as sources
from pmpd_edge.convert.plan import LevelPlan, Plan, TensorType
from pmpd_edge.convert.source import Source
from pmpd_edge.convert.staging import Place
from pmpd_edge.errors import ConvertError
from pmpd_edge.gguf_info import GgufInfo

__all__ = ["TensorType", "convert"]

Progress = Callable[[str, float], None]
Note = Callable[[str], None]


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    precisions: Sequence[int] = (8, 4),
    layout: str = "separate",
    types: Mapping[int, str] | None = None,
    tensor_types: Sequence[TensorType] = (),
    shared_type: str = gguf_info.SHARED_TYPE,
    imatrix_file: str | os.PathLike[str] | None = None,
    calibration_text: str | os.PathLike[str] | None = None,
    use_imatrix: bool = True,
    name: str | None = None,
    schedule: StaticSchedule | None = None,
    max_new_tokens: int = 256,
    prefill: int | None = None,
    pre_tokenizer: str | None = None,
    with_report: bool = False,
    report_text: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress = lambda label, fraction: None,
    note: Note = lambda text: None,
    show_download: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Bundle:
    """Convert a model to a bundle; `out` appears whole or not at all.

    A conversion that is stopped keeps what it has finished in `OUT.partial`; the next one goes on from there.

    Args:
        source: a Hugging Face model's directory, its Hub id (`org/name` or `org/name@revision`), or a GGUF file of F32,
            F16 or BF16.
        out: the directory to make.
        precisions: nominal bits per weight of the levels, out of 16, 8, 6, 5, 4, 3, 2.
        layout: "separate", one complete file for each level, or "nested": a complete file for the lowest level and a
            residual file for each higher one, which is summed with those below; 16 bits are a complete file in both.
        types: the tensor type of a precision's file where it is not the default (`plan.DEFAULT_TYPES`, of residuals
            `plan.DEFAULT_RESIDUALS`; 16 bits: the checkpoint's own).
        tensor_types: the types of single matrices, by regular expressions; the first that matches counts.
        shared_type: of token embeddings and output at all levels below 16 bits.
        imatrix_file: an importance matrix that llama-imatrix made of this model.
        calibration_text: a text file to compute one from; default: one that comes with this package.
        use_imatrix: whether levels and residuals of 4 bits and below are made with an importance matrix.
        name: the bundle's name, part of its file names; default: the source's.
        schedule: default: `plan.default_schedule`.
        max_new_tokens: what the default schedule is made for.
        prefill: the precision at which prompts are evaluated; default: the highest.
        pre_tokenizer: llama.cpp's name of the rule by which a byte-level BPE tokenizer splits text into words, where
            upstream's converter does not recognise it.
        with_report: whether the levels are measured, see `report.make`.
        report_text: a text file to measure them on; default: one that comes with this package.
        threads: for quantising; default: all cores.
        progress: called with what is being made and the fraction of the whole conversion that is done.
        note: called with a line about what is not as one would expect: tokens that differ from Hugging Face's.
        show_download: draw huggingface_hub's progress of downloads.
        overwrite: replace a bundle that is there.
        trust_remote_code: run the Python code that some models bring with them.

    Raises:
        ConvertError: the model cannot be converted, or not to this; nothing half-written is left behind then.
        NativeError: the installation is incomplete.
    """
    out = Path(out)
    if pre_tokenizer:
        hf.check_pre_tokenizer(pre_tokenizer)
    name = name or sources.default_name(source)
    planned = plan.make(
        name, precisions, types, schedule, max_new_tokens, prefill, layout, tensor_types, shared_type, use_imatrix
    )
    importance = None
    if planned.uses_imatrix:
        importance = imatrix.choose(_path(imatrix_file), _path(calibration_text))
    elif imatrix_file or calibration_text:
        note("the importance matrix is not used: no level has 4 bits or less")
    if with_report:
        report.check_installation()
    text = _path(report_text) or report.DEFAULT_TEXT
    if not text.is_file():
        raise ConvertError(f"{text}: no such file", "give the path of a text")
    _check_apart(out, Path(source).expanduser())
    staging.check_place(out, overwrite)  # before a long download
    origin = sources.find(source, show_download=show_download, note=note)
    found = sources.inspect(origin, trust_remote_code)
    _check_apart(out, origin.path)

    with staging.staged(out, overwrite, note) as place:
        staging.check_space(place.directory, plan.bytes_needed(planned, found))
        making = _Making(origin, place, planned, threads, _Steps(planned, with_report, progress), note)
        with making.steps.step("Checking", 0.1) as done:
            values.check(found.tensors, done)
        making.make_base(pre_tokenizer)
        if not found.tensors:  # pickled: only now can they be read
            values.check(sources.stored(making.base))
        making.make_imatrix(importance)
        making.make_levels()
        making.copy_words()
        made = making.describe(importance)
        bundle.write(made)
        if with_report:
            with making.steps.step("Measuring", _Steps.REPORT) as done:
                report.make(making.base, made, text, threads, done)
        making.clear_away()
    progress(planned.name, 1.0)
    return bundle.load(out)


def _path(given: str | os.PathLike[str] | None) -> Path | None:
    return Path(given).expanduser() if given else None


def _check_apart(out: Path, model: Path) -> None:
    place, model = out.resolve(), model.resolve()
    if place.is_relative_to(model) or model.is_relative_to(place):
        raise ConvertError(f"{out}: inside of the model that is converted, or around it", "choose another place")


class _Step:
    """A part of the conversion: called with the fraction of it that is done."""

    def __init__(self, steps: _Steps, label: str, weight: float) -> None:
        self._steps, self._label, self._weight = steps, label, weight

    def __enter__(self) -> _Step:
        self(0.0)
        return self

    def __call__(self, fraction: float) -> None:
        self._steps.show(self._label, self._weight * fraction)

    def __exit__(self, *_: object) -> None:
        self._steps.done += self._weight


class _Steps:
    """How far a whole conversion is, its parts weighed by the time that they take."""

    BASE, IMATRIX, LEVEL, REPORT = 1.0, 2.0, 0.5, 3.0

    def __init__(self, planned: Plan, with_report: bool, progress: Progress) -> None:
        self.done = 0.0
        self._total = 0.1 + self.BASE + self.LEVEL * len(planned.lower)
        self._total += self.IMATRIX * planned.uses_imatrix + self.REPORT * with_report
        self._progress = progress

    def step(self, label: str, weight: float) -> _Step:
        return _Step(self, label, weight)

    def show(self, label: str, weight: float) -> None:
        self._progress(label, (self.done + weight) / self._total)


@dataclass
class _Making:
    """A conversion under way: makes its files in their order, or finds those that an earlier run has finished.

    Attributes:
        base: the 16-bit file.
        imatrix: the importance matrix's file.
        headers: what is in each level's file, by its name.
    """

    origin: Source
    place: Place
    planned: Plan
    threads: int | None
    steps: _Steps
    note: Note

    def __post_init__(self) -> None:
        self.base: GgufInfo
        self.imatrix: Path | None = None
        self.headers: dict[str, GgufInfo] = {}
        self._base_key = self._imatrix_key = ""

    @property
    def n_threads(self) -> int:
        return self.threads or os.cpu_count() or 1

    def make_base(self, pre_tokenizer: str | None) -> None:
        """Write the 16-bit file that the levels are made from; a GGUF that is no level itself is read where it lies."""
        type_16 = next((level.type for level in self.planned.levels if level.precision == 16), None)
        name = f"{self.planned.name}-16.gguf"
        code = [__version__, metadata.version("llama-cpp-python")]
        self._base_key = staging.key_of(code, sources.fingerprint(self.origin), type_16, pre_tokenizer)

        def write(path: Path) -> None:
            if self.origin.is_gguf:
                sources.copy_gguf(self.origin, path, type_16, self.threads, done)
            else:
                # Where it is cached, the Hub's model has a directory that is named by a commit.
                model = self.origin.repo.rpartition("/")[2] if self.origin.revision else None
                hf.to_gguf(
                    self.origin.path, path, type_16, done, name=model, pre_tokenizer=pre_tokenizer, note=self.note
                )
            quantize.check_loads(path, self.origin.path)

        with self.steps.step("16 bits", _Steps.BASE) as done:
            if self.origin.is_gguf and pre_tokenizer:
                raise ConvertError(
                    f"{self.origin.path}: a GGUF file has its pre-tokenizer", "leave --pre-tokenizer out"
                )
            if self.origin.is_gguf and 16 not in self.planned.precisions:
                quantize.check_loads(self.origin.path, self.origin.path)
                self.base = gguf_info.read(self.origin.path)
            else:
                self.base = gguf_info.read(self._make(name, self._base_key, write))
        if 16 in self.planned.precisions:
            self.headers[name] = self.base
        for level in self.planned.lower:
            _check_patterns(level, self.base)
        if self.planned.layout == "nested":
            residual.check(self.base)

    def copy_words(self) -> None:
        """Copy what the model's makers say about it, and what they allow."""
        for pattern in ("README.md", "LICENSE*", "LICENCE*", "NOTICE*"):
            for path in self.origin.path.glob(pattern):
                shutil.copyfile(path, self.place.directory / path.name)

    def make_imatrix(self, importance: imatrix.Importance | None) -> None:
        """Compute or copy the importance matrix, where a level uses one."""
        if not importance:
            return

        def write(path: Path) -> None:
            if importance.file:
                imatrix.take(importance.file, self.base, path)
            else:
                assert importance.text
                imatrix.compute(self.base, importance.text, path, self.n_threads, done)

        self._imatrix_key = staging.key_of(self._base_key, importance.key)
        with self.steps.step("Importance matrix", _Steps.IMATRIX) as done:
            self.imatrix = self._make(f"{self.planned.name}-imatrix.gguf", self._imatrix_key, write)

    def make_levels(self) -> None:
        """Write the GGUF file of every level below 16 bits."""
        below: list[GgufInfo] = []
        key = self._base_key
        for level in self.planned.lower:
            recipe = level.recipe(self.imatrix)
            used = self._imatrix_key if level.uses_imatrix else ""
            key = staging.key_of(key if level.residual else self._base_key, used, *recipe.key())

            def write(path: Path, level: LevelPlan = level, recipe: quantize.Recipe = recipe) -> None:
                if level.residual:
                    residual.make(self.base, below, path, recipe, self.threads, done)
                else:
                    quantize.quantize(self.base, path, recipe, self.threads, done)

            with self.steps.step(f"{level.precision} bits, {level.type}", _Steps.LEVEL) as done:
                below.append(gguf_info.read(self._make(level.file, key, write)))
            self.headers[level.file] = below[-1]
            if level.residual:
                residual.check_sum([self.place.directory / file for file in self.planned.weights(level)])

    def _make(self, name: str, key: str, write: Callable[[Path], None]) -> Path:
        if self.place.has(name, key):
            self.note(f"{name}: finished by an earlier run")
        return self.place.make(name, key, write)

    def describe(self, importance: imatrix.Importance | None) -> Bundle:
        """The manifest of what was made."""
        info = self.headers[self.planned.levels[0].file]
        imatrix_file = None
        if importance and self.imatrix:
            imatrix_file = ImatrixFile(
                file=self.imatrix.name,
                sha256=bundle.sha256_file(self.imatrix),
                text=bundle.in_one_line((importance.file or importance.text or Path()).name),
                chunks=imatrix.chunks(self.imatrix),
            )
        return Bundle(
            path=self.place.directory,
            name=self.planned.name,
            source={"repo": bundle.in_one_line(self.origin.repo), "revision": self.origin.revision},
            architecture=info.architecture,
            parameters=info.parameters,
            context_length=info.context_length,
            tokenizer_sha256=info.tokenizer_sha256,
            layout=self.planned.layout,
            files={level.file: self._describe_file(level) for level in self.planned.levels},
            levels=tuple(Level(level.precision, self.planned.weights(level)) for level in self.planned.levels),
            prefill=self.planned.prefill,
            schedule=self.planned.schedule,
            imatrix=imatrix_file,
        )

    def _describe_file(self, level: LevelPlan) -> WeightsFile:
        header = self.headers[level.file]
        lowest = self.headers[self.planned.levels[-1].file]
        first = self.headers[self.planned.levels[0].file]
        if header.tokenizer_sha256 != first.tokenizer_sha256:
            raise ConvertError(f"{level.file}: its tokenizer is not that of {first.path.name}")
        base = lowest if level.residual else None
        path = self.place.directory / level.file
        return WeightsFile(
            type=level.type or header.type,
            bytes=path.stat().st_size,
            sha256=bundle.sha256_file(path),
            bpw=round(residual.bpw(header, base) if base else header.bpw, 4),
            fallbacks=_fallbacks(level, header, lowest),
            bpw_by_class=residual.bpw_by_class(header, base),
            overrides=level.overrides,
            imatrix=level.uses_imatrix,
        )

    def clear_away(self) -> None:
        """Delete the 16-bit file where it is no level."""
        if self.base.path.parent == self.place.directory and 16 not in self.planned.precisions:
            self.place.remove(self.base.path.name)


def _check_patterns(level: LevelPlan, base: GgufInfo) -> None:
    """Raise ConvertError where a regular expression for tensors' types matches none: it has a slip."""
    names = [tensor.name for tensor in base.tensors if residual.is_summed(tensor)]
    for pattern, type_name in level.overrides:
        if not any(re.search(pattern, name) for name in names):
            raise ConvertError(
                f"{pattern!r} for {type_name} matches no matrix of the layers", f"a matrix's name is like {names[0]}"
            )


def _fallbacks(level: LevelPlan, header: GgufInfo, base: GgufInfo) -> tuple[Fallback, ...]:
    """What has another type than it should. What a residual does not add to is stored as zeros of any type."""
    if level.type is None:
        return ()
    by_type: dict[str, list[str]] = {}
    added = {tensor.name for tensor in base.tensors if residual.holds_remainder(tensor)}
    for tensor in header.fallbacks(level.recipe(None).type_of):
        if not level.residual or tensor.name in added:
            by_type.setdefault(tensor.type, []).append(tensor.name)
    return tuple(Fallback(type_name, tuple(names)) for type_name, names in by_type.items())
