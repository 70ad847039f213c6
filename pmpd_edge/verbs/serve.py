"""pmpd-edge serve, and pmpd-edge demo"""

from __future__ import annotations

from typing import Any

import click

from pmpd_edge.verbs.chat import model_options
from pmpd_edge.verbs.options import debug, number, options

_PMPD = {  # options of the command line by those of Pmpd
    "threads": "n_threads",
    "n_gpu_layers": "n_gpu_layers",
    "ctx_size": "n_ctx",
    "cache_type_k": "type_k",
    "cache_type_v": "type_v",
    "flash_attn": "flash_attn",
    "keep_low_kv": "keep_low_kv",
    "verbose": "verbose",
}

server_options = options(
    click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen at."),
    number("--port", click.IntRange(0, 65535), "Port to listen at; 0: any free one.", default=8080),
    click.option(
        "--api-key",
        envvar="PMPD_API_KEY",
        show_envvar=True,
        metavar="KEY",
        help="Refuse requests without this key; others can see it on the command line, but not in the environment.",
    ),
    click.option(
        "--cors-origin",
        "cors_origins",
        multiple=True,
        metavar="ORIGIN",
        help="Let pages of this site use the server, like https://example.org; may be repeated.",
    ),
    number("--max-queue", click.IntRange(0, 100_000), "Requests that may wait; more are refused.", default=16),
    click.option("--log-text", is_flag=True, help="Log prompts and answers too."),
)


@click.command()
@click.argument("bundle", required=False)
@server_options
@model_options
@debug
def serve(bundle: str | None, **given: Any) -> None:
    """Serve a bundle over HTTP, as OpenAI does, and a page to chat with it.

    BUNDLE is a directory or a Hub id; without it, the small model in the package is served.

    Requests are answered one after the other. SIGTERM and Ctrl-C let the running answer end; a second one does not.
    """
    _run(bundle, given)


@click.command()
@click.argument("bundle", required=False)
@model_options
@debug
def demo(bundle: str | None, **given: Any) -> None:
    """Open the page to chat with a bundle in a browser.

    BUNDLE is a directory or a Hub id; without it, the small model in the package answers: it translates sentences from
    German or French to English. The same as serve, on any free port.
    """
    _run(bundle, {"port": 0, **given}, browse=True)


def _run(bundle: str | None, given: dict[str, Any], browse: bool = False) -> None:
    from importlib.util import find_spec

    from pmpd_edge.errors import PmpdError

    missing = [name for name in ("fastapi", "uvicorn") if not find_spec(name)]
    if missing:
        raise PmpdError(f"the server needs {' and '.join(missing)}", "pip install 'pmpd-edge[serve]'")
    from pmpd_edge.serve import run as serving

    model = {_PMPD[name]: given.pop(name) for name in _PMPD}
    serving.run(bundle, model, serving.Options(**given), browse)
