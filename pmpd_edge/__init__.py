"""Progressive mixed-precision decoding on llama.cpp.

`Pmpd` is loaded on first use, so that importing the package (and `pmpd-edge --help`) stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pmpd_edge.errors import PmpdError

if TYPE_CHECKING:
    from pmpd_edge.runner import GenerationStats, Pmpd

__version__ = "0.1.0"
__all__ = ["GenerationStats", "Pmpd", "PmpdError"]


def __getattr__(name: str) -> Any:
    if name in ("GenerationStats", "Pmpd"):
        from pmpd_edge import runner

        return getattr(runner, name)
    raise AttributeError(f"module 'pmpd_edge' has no attribute {name!r}")
