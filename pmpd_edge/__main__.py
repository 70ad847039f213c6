"""The program's first steps: `pmpd-edge`, or `python -m pmpd_edge`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it quietly even while it is still being imported."""
    try:
        from pmpd_edge.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        # Python (-m) kills itself with SIGINT at its end, whatever the exit status is, if Ctrl-C hit it while it
        # evaluated a string, as imports of dataclasses do, even where it was caught; the next such evaluation forgets.
        exec("")


if __name__ == "__main__":
    main()
