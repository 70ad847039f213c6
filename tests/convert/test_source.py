"""Where models come from: directories, GGUF files, and the Hub, which is a small server here that speaks as it does."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from models import TRANSLATOR, calibration_text

from pmpd_edge import gguf_info
from pmpd_edge.bundle import Bundle
from pmpd_edge.convert import convert, quantize
from pmpd_edge.convert import source as sources
from pmpd_edge.errors import ConvertError

SHA = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"


class Hub(ThreadingHTTPServer):
    """Serves the files of `org/name` as the Hub does; `org/gated` only to those who have the token."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.fetched: list[str] = []
        self.status: int | None = None  # answer everything with this


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _, _ = self.path.partition("?")
        if self.server.status:
            return self.refuse(self.server.status, "")
        repo = "/".join(path.removeprefix("/api/models/").strip("/").split("/")[:2])
        if repo not in ("org/name", "org/gated"):
            return self.refuse(404, "RepoNotFound")
        if repo == "org/gated" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(403, "GatedRepo")
        rest = path.removeprefix("/api/models/").strip("/").split("/", 2)[2:]
        if not path.startswith("/api/"):  # .../resolve/COMMIT/FILE
            return self.give_file(rest[0].split("/", 2)[2])
        if rest and rest[0].startswith("tree/"):
            listed = [
                {"type": "file", "path": name, "size": len(data), "oid": self.etag(name)}
                for name, data in self.server.files.items()
            ]
            return self.give(json.dumps(listed).encode())
        if rest and rest[0] not in ("revision/main", "revision/v1", f"revision/{SHA}"):
            return self.refuse(404, "RevisionNotFound")
        siblings = [{"rfilename": name} for name in self.server.files]
        self.give(json.dumps({"id": repo, "sha": SHA, "siblings": siblings}).encode())

    def etag(self, name: str) -> str:
        return name.replace("/", "-").ljust(40, "0")

    def give_file(self, name: str) -> None:
        if self.command == "GET":
            self.server.fetched.append(name)
        self.give(self.server.files[name], {"X-Repo-Commit": SHA, "ETag": f'"{self.etag(name)}"'})

    def give(self, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for key, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


NEEDED = {"config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "README.md", "LICENSE"}
IN_THE_WAY = ["pytorch_model.bin", "flax_model.msgpack", "onnx/model.onnx", "original/model.safetensors", "a.gguf"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {path.name: path.read_bytes() for path in TRANSLATOR.iterdir() if path.is_file()}
    files |= {name: b"x" * 100 for name in IN_THE_WAY}
    files.setdefault("LICENSE", b"free")
    server = Hub(files)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_only_the_files_that_converting_needs_are_downloaded_once(hub: Hub) -> None:
    found = sources.find("org/name")
    assert (found.repo, found.revision, found.is_gguf) == ("org/name", SHA, False)
    there = {str(path.relative_to(found.path)) for path in found.path.rglob("*") if path.is_file()}
    assert there == {*hub.fetched} and len(there) == len(hub.fetched)
    assert there >= {"model.safetensors", *NEEDED} and not there & {*IN_THE_WAY}
    assert sources.inspect(found).elements == sources.inspect(sources.find(TRANSLATOR)).elements

    fetched = len(hub.fetched)
    assert sources.find(f"org/name@{SHA}") == sources.find("org/name@v1") == found
    assert len(hub.fetched) == fetched


def test_a_model_for_embeddings_brings_how_it_pools(hub: Hub) -> None:
    """Upstream's converter opens what modules.json names."""
    hub.files |= {"modules.json": b"[]", "1_Pooling/config.json": b"{}", "2_Dense/model.safetensors": b"x"}
    found = sources.find("org/name")
    assert (found.path / "1_Pooling/config.json").is_file() and not (found.path / "2_Dense").exists()


def test_pickled_weights_only_where_there_are_no_others(hub: Hub) -> None:
    del hub.files["model.safetensors"]
    assert "pytorch_model.bin" in {path.name for path in sources.find("org/name").path.iterdir()}
    del hub.files["pytorch_model.bin"]
    with pytest.raises(ConvertError, match="org/name: no weights"):
        sources.find("org/name")
    del hub.files["config.json"]
    with pytest.raises(ConvertError, match=r"org/name: no config\.json"):
        sources.find("org/name")


def test_gated_model_needs_the_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConvertError) as caught:
        sources.find("org/gated")
    assert str(caught.value) == "org/gated: gated: accept the licence on the model's page, then set HF_TOKEN"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert sources.find("org/gated").repo == "org/gated"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("org/nothing", "org/nothing: neither a directory nor a model on the Hub: check the name"),
        ("org/name@v9", "org/name@v9: the Hub's model has no such revision"),
        ("no such place", "no such place: no such directory"),
        ("a/b/c", "a/b/c: no such directory"),
    ],
)
def test_what_is_not_there_is_one_line(hub: Hub, source: str, words: str) -> None:
    with pytest.raises(ConvertError) as caught:
        sources.find(source)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


def test_offline_takes_what_the_cache_has_and_only_a_whole_model(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConvertError, match=r"org/name: not a directory, offline .* and not in the Hub's cache: go online"
    ):
        sources.find("org/name")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    found = sources.find("org/name")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    notes: list[str] = []
    assert sources.find("org/name", note=notes.append) == found
    assert notes == [f"org/name: the Hub is not reached; converting what its cache has, commit {SHA}"]
    (found.path / "LICENSE").unlink()
    assert sources.find("org/name") == found
    (found.path / "model.safetensors").unlink()
    with pytest.raises(ConvertError, match=r"its cache has not all of the model .*: no weights") as caught:
        sources.find("org/name")
    assert "\n" not in str(caught.value)


def test_cache_of_older_versions_of_the_library(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the listing of files that newer ones keep beside it.
    folder = Path(constants.HF_HUB_CACHE) / "models--org--old"
    shutil.copytree(TRANSLATOR, folder / "snapshots" / SHA)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(SHA)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert sources.find("org/old").revision == SHA


def test_server_in_trouble_and_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.status = 500
    with pytest.raises(ConvertError, match="org/name: not a directory, and the Hub cannot be reached") as caught:
        sources.find("org/name")
    assert "\n" not in str(caught.value)
    hub.status = None
    found = sources.find("org/name")
    hub.status = 500
    assert sources.find("org/name") == found

    hub.shutdown()
    hub.server_close()
    assert sources.find("org/name") == found
    with pytest.raises(ConvertError, match=r"org/other: .* the Hub cannot be reached .*: check the network"):
        sources.find("org/other")


@pytest.mark.parametrize("show", [True, False])
def test_bars_are_shown_only_if_wanted_and_switched_on_again(
    hub: Hub, show: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled

    seen = []
    download = huggingface_hub.snapshot_download

    def watch(*arguments: Any, **options: Any) -> Any:
        seen.append(are_progress_bars_disabled())
        return download(*arguments, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", watch)
    sources.find("org/name", show_download=show)
    assert seen == [not show] and not are_progress_bars_disabled()


def test_full_disk_while_downloading(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        ConvertError, match="org/name: No space left on device while downloading: free some, or set HF_HOME"
    ):
        sources.find("org/name")


def test_names() -> None:
    assert sources.default_name("org/Some-Model.v2@main") == "Some-Model.v2"
    assert sources.default_name(TRANSLATOR) == "translator-7m"
    assert sources.default_name(TRANSLATOR / ".." / "translator-7m") == "translator-7m"


def test_a_place_that_is_taken_is_refused_before_the_download(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(ConvertError, match="exists already"):
        convert("org/name", tmp_path / "out")
    with pytest.raises(ConvertError, match="precisions 7"):
        convert("org/name", tmp_path / "new", precisions=(7,))
    assert hub.fetched == []


# With conversions: of the Hub's model, then of the GGUF that came out


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibration_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The translator at 16 and 4 bits."""
    pytest.importorskip("torch", reason="torch is needed: pip install 'pmpd-edge[convert]'")
    out = tmp_path_factory.mktemp("whole") / "out"
    return convert(TRANSLATOR, out, precisions=(16, 4), calibration_text=text, threads=1)


def test_hub_model_is_converted_as_the_directory_is(hub: Hub, whole: Bundle, text: Path, tmp_path: Path) -> None:
    made = convert("org/name@main", tmp_path / "out", precisions=(4,), calibration_text=text, threads=1)
    assert made.name == "name" and dict(made.source) == {"repo": "org/name", "revision": SHA}
    header, expected = gguf_info.read(made.path / "name-q4.gguf"), gguf_info.read(whole.path / "translator-7m-q4.gguf")
    assert header.tensors == expected.tensors and header.tokenizer_sha256 == expected.tokenizer_sha256
    assert header.metadata["general.name"] == "Name" and SHA not in str(header.metadata)


def gguf_of(whole: Bundle, folder: Path, name: str = "my-model-BF16.gguf") -> Path:
    return Path(shutil.copyfile(whole.path / "translator-7m-16.gguf", folder / name))


def test_gguf_gives_the_levels_that_the_checkpoint_gives(whole: Bundle, text: Path, tmp_path: Path) -> None:
    source = gguf_of(whole, tmp_path)
    made = convert(source, tmp_path / "out", precisions=(16, 4), calibration_text=text, threads=1)
    assert made.name == "my-model" and dict(made.source) == {"repo": source.name, "revision": ""}
    assert [file.sha256 for file in made.files.values()] == [file.sha256 for file in whole.files.values()]
    source.write_bytes(b"GGUF")  # what happens to the original does not reach the bundle
    made.verify()

    source = gguf_of(whole, tmp_path)
    low = convert(source, tmp_path / "low", precisions=(4,), calibration_text=text, threads=1)
    assert {path.name for path in low.path.iterdir()} == {"my-model-q4.gguf", "my-model-imatrix.gguf", "pmpd.json"}
    assert [file.sha256 for file in low.files.values()] == [whole.files["translator-7m-q4.gguf"].sha256]
    assert source.stat().st_size == whole.files["translator-7m-16.gguf"].bytes


def test_float32_gguf_becomes_16_bits(whole: Bundle, tmp_path: Path) -> None:
    wide = tmp_path / "wide-f32.gguf"
    job = {"source": str(gguf_of(whole, tmp_path)), "out": str(wide), "ftype": "LLAMA_FTYPE_ALL_F32"}
    quantize.run_job("quantize", {**job, "vocabulary_type": 0, "threads": 1}, wide, "F32", lambda fraction: None)
    assert {tensor.type for tensor in gguf_info.read(wide).tensors} == {"F32"}
    for asked, got in [(None, "F16"), ("BF16", "BF16")]:
        options: dict[str, Any] = {"types": {16: asked} if asked else None, "use_imatrix": False, "threads": 1}
        made = convert(wide, tmp_path / got, precisions=(16, 4), **options)
        assert made.name == "wide" and made.files["wide-16.gguf"].type == got
        assert 16 <= made.bpw(made.level(16)) < 16.1
        matrices = [tensor for tensor in gguf_info.read(made.path / "wide-16.gguf").tensors if len(tensor.shape) > 1]
        assert {tensor.type for tensor in matrices} == {got}
        if got == "BF16":  # there and back: nothing was lost
            header = gguf_info.read(made.path / "wide-16.gguf")
            original = gguf_info.read(whole.path / "translator-7m-16.gguf")
            for tensor in original.tensors[:20]:
                (other,) = [found for found in header.tensors if found.name == tensor.name]
                assert content(header, other) == content(original, tensor)


def content(info: gguf_info.GgufInfo, tensor: gguf_info.Tensor) -> bytes:
    with open(info.path, "rb") as file:
        file.seek(info.data_start + tensor.offset)
        return file.read(tensor.bytes)


def test_gguf_that_cannot_be_a_source(whole: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConvertError, match=r"q4\.gguf: tensor .* is Q._.: quantising it again would lose more"):
        convert(whole.path / "translator-7m-q4.gguf", out)
    source = gguf_of(whole, tmp_path)
    with pytest.raises(ConvertError, match="has its pre-tokenizer"):
        convert(source, out, pre_tokenizer="gpt-2")
    info = gguf_info.read(source)
    with open(source, "r+b") as file:
        file.seek(info.data_start + info.tensors[3].offset)
        file.write(b"\xc0\x7f\xc0\x7f")
    with pytest.raises(ConvertError, match=f"tensor {info.tensors[3].name} has NaN"):
        convert(source, out)
    source.write_bytes(source.read_bytes()[:100_000])
    with pytest.raises(ConvertError, match="damaged"):
        convert(source, out)
    source.write_bytes(b"GIF89a")
    with pytest.raises(ConvertError, match="not a directory or a GGUF file"):
        convert(source, out)
    assert not out.exists()
