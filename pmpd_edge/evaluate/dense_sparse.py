"""DNS as a method: a bundle whose lowest level is the dense-and-sparse decomposition at some budget of bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pmpd_edge import gguf_info
from pmpd_edge.bundle import Bundle, Level, WeightsFile, sha256_file
from pmpd_edge.convert import dns, hf
from pmpd_edge.convert import source as sources
from pmpd_edge.convert.dns import Decomposition
from pmpd_edge.errors import PmpdError
from pmpd_edge.evaluate import methods
from pmpd_edge.evaluate.methods import Dns, Method

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class DenseSparse:
    """The method, and the bundle that it answers with.

    Attributes:
        bundle: the reference level of the original, and the decomposition at its lowest precision.
        method: everything at that.
        parts: what the decomposition is.
        bits: nominal: the dense type's, and those of the sparse part over all weights that a step reads.
    """

    bundle: Bundle
    method: Method
    parts: Decomposition
    bits: float


def find_source(source: str, out: Path, progress: Progress) -> Path:
    """The GGUF file of a model's 16-bit weights, made in `out` from a checkpoint where it is none.

    Raises:
        PmpdError: there is no such model, or it cannot be converted.
    """
    found = sources.find(source)
    if found.is_gguf:
        return found.path
    path = out / "source-16.gguf"
    if not path.exists():
        partial = out / "source-16.gguf.partial"
        hf.to_gguf(found.path, partial, progress=lambda fraction: progress("converting the source", fraction))
        partial.replace(path)
    return path


def with_16_bits(bundle: Bundle, path: Path) -> Bundle:
    """The bundle with a file that lies elsewhere as its 16-bit level; for decoding, not to be written."""
    info = gguf_info.read(path)
    name, file = _foreign(path, info.type, info.bpw)
    return replace(bundle, files={**bundle.files, name: file}, levels=(Level(16, (name,)), *bundle.levels))


def make(bundle: Bundle, asked: Dns, bpw: float, out: Path, n_threads: int | None, progress: Progress) -> DenseSparse:
    """Take the lowest level's matrices apart at a budget.

    Args:
        bundle: whose lowest level is the dense part, and whose 16-bit level has the outliers.
        asked: the method's name, and by what outliers are chosen.
        bpw: real bits per weight that the parts take together.
        out: where the file is written.
        n_threads: for quantising; None takes all cores.
        progress: called with what is being done and the fraction of it.

    Raises:
        PmpdError: the budget is too small for outliers, or too large for the decomposition to make sense.
    """
    low = bundle.precisions[-1]
    if low == 16:
        raise PmpdError(f"{bundle.path}: no level below 16 bits for dns", "convert with more: --precisions 16,4")
    (source,), (lowest,) = (bundle.paths(bundle.level(precision)) for precision in (16, low))
    path = out / f"{asked.name.replace(':', '-')}.gguf"
    parts = dns.make(
        gguf_info.read(source),
        gguf_info.read(lowest),
        path,
        bpw,
        bundle.path / bundle.imatrix.file if bundle.imatrix else None,
        n_threads,
        lambda fraction: progress(f"{asked.name}: taking matrices apart", fraction),
        by=asked.by,
    )
    foreign, file = _foreign(path, "DNS", parts.bpw)
    top = bundle.level(16)
    files = {foreign: file, **{weights: bundle.files[weights] for weights in top.weights}}
    changed = replace(bundle, files=files, levels=(top, Level(low, (foreign,))))
    return DenseSparse(changed, methods.uniform(asked.name, low, changed), parts, low + parts.sparse_bpw)


def _foreign(path: Path, kind: str, bpw: float) -> tuple[str, WeightsFile]:
    """A file of a bundle that does not lie in it: by its whole path, which joining to the bundle's leaves as it is."""
    return str(path.resolve()), WeightsFile(kind, path.stat().st_size, sha256_file(path), bpw)
