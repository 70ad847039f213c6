"""/v1/embeddings by OpenAI's client, against transformers and llama_cpp's pooling (pmpd_edge/serve/embedding.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from libpmpd import single_level
from models import TRANSLATOR
from serving import SENTENCE, Server
from talk import SENTENCES

from pmpd_edge import Pmpd
from pmpd_edge.bench.random_model import quantize, write_llama
from pmpd_edge.chat_template import Prompt
from pmpd_edge.serve.embedding import BATCH, EmbeddingTask, embed
from pmpd_edge.serve.errors import ApiError
from pmpd_edge.serve.prepare import embedding_tasks
from pmpd_edge.serve.requests import EmbeddingRequest
from pmpd_edge.serve.worker import Job, Worker

openai = pytest.importorskip("openai")

TEXTS = [*SENTENCES, SENTENCE]
LONG = " ".join(SENTENCES * 4)  # of several batches
POOLING = "llama.pooling_type"


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


@pytest.fixture(scope="module")
def stock(model: Pmpd) -> Iterator[Any]:
    """llama_cpp alone, with the file that prefill uses."""
    from pmpd_edge.runner import llama_cpp

    (path,) = model.bundle.paths(model.bundle.level(model.bundle.prefill))
    with closing(llama_cpp.Llama(str(path), embedding=True, n_threads=1, flash_attn=True, verbose=False)) as opened:
        yield opened


def vectors(client: Any, texts: Any, **fields: Any) -> npt.NDArray[np.float32]:
    got = client.embeddings.create(model="any", input=texts, **fields)
    assert [one.index for one in got.data] == list(range(len(got.data)))
    return np.array([one.embedding for one in got.data], np.float32)


def unit(vector: Any) -> npt.NDArray[np.float32]:
    return np.asarray(vector, np.float32) / np.linalg.norm(vector)


def ids_of(model: Pmpd, text: str) -> list[int]:
    return model.tokenize(text.encode(), add_bos=True, special=True)


def test_they_are_the_means_of_transformers_hidden_states(client: Any, model: Pmpd) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoModel.from_pretrained(TRANSLATOR, dtype=torch.float32)
    got = vectors(client, TEXTS)
    for text, vector in zip(TEXTS, got, strict=True):
        with torch.no_grad():
            states = reference(torch.tensor([ids_of(model, text)])).last_hidden_state[0]
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        assert vector @ unit(states.mean(0)) > 0.9995  # the file has 8 bits
        assert vector @ unit(states[-1]) < 0.99
    others = got @ got.T - np.eye(len(got))
    assert others.max() < 0.99


def test_a_text_of_several_batches_is_pooled_as_one(client: Any, stock: Any, model: Pmpd) -> None:
    assert len(ids_of(model, LONG)) > 3 * BATCH
    (got,) = vectors(client, LONG)
    states = stock.embed(LONG)
    assert got @ unit(np.mean(states, 0)) > 0.9999 > got @ unit(np.mean(states[-BATCH:], 0))


@pytest.mark.parametrize(("kind", "row"), [("2", 0), ("3", -1)], ids=["first", "last"])
def test_a_model_may_pool_otherwise(
    model: Pmpd, stock: Any, monkeypatch: pytest.MonkeyPatch, kind: str, row: int
) -> None:
    monkeypatch.setitem(model.metadata, POOLING, kind)
    task = EmbeddingTask(Prompt(ids_of(model, LONG)))
    got = embed(model, task, 0, lambda: None).vector
    states = stock.embed(LONG)
    assert got @ unit(states[row]) > 0.9995 and got @ unit(np.mean(states, 0)) < 0.99


def test_a_text_ends_as_the_models_file_says(tmp_path: Path) -> None:
    """Models for embeddings whose last state counts are trained on that of the end token."""
    gguf = pytest.importorskip("gguf")

    def change(fields: dict[str, Any]) -> None:
        fields["tokenizer.ggml.add_bos_token"] = (False, gguf.GGUFValueType.BOOL, None)
        fields["tokenizer.ggml.add_eos_token"] = (True, gguf.GGUFValueType.BOOL, None)

    source = write_llama(tmp_path / "f32.gguf", layers=1, tokenizer=change)
    single_level(tmp_path, quantize(source, tmp_path / "m.gguf", "Q8_0"))
    with closing(Pmpd(tmp_path, n_threads=1)) as llm:
        (task,) = embedding_tasks(llm, EmbeddingRequest(input=SENTENCE))
        tokens = task.prompt.tokens
        assert tokens[-1] == llm.token_eos() and tokens[0] != llm.token_bos()


def test_a_model_that_ranks_gives_none(model: Pmpd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(model.metadata, POOLING, "4")
    with pytest.raises(ApiError, match="gives no embeddings") as refused:
        embedding_tasks(model, EmbeddingRequest(input="x"))
    assert refused.value.status == 404


def test_numbers_and_base64_say_the_same(client: Any, server: Server) -> None:
    packed = vectors(client, TEXTS)  # OpenAI's client asks for base64 where nothing is said
    assert np.array_equal(vectors(client, TEXTS, encoding_format="float"), packed)
    reply = server.request("POST", "/v1/embeddings", {"input": TEXTS}).json
    assert np.array_equal(np.array([one["embedding"] for one in reply["data"]], np.float32), packed)


def test_ids_and_several_texts_give_what_each_gives_alone(client: Any, model: Pmpd) -> None:
    alone = np.concatenate([vectors(client, text) for text in TEXTS])
    ids = [ids_of(model, text) for text in TEXTS]
    assert np.array_equal(vectors(client, TEXTS), alone)
    assert np.array_equal(vectors(client, ids), alone) and np.array_equal(vectors(client, ids[0]), alone[:1])


def test_they_are_computed_at_prefills_precision_and_counted(client: Any, server: Server, model: Pmpd) -> None:
    before = server.metric("prompt_tokens_total")
    got = client.embeddings.create(model="m", input=TEXTS)
    n_tokens = sum(len(ids_of(model, text)) for text in TEXTS)
    assert got.usage.prompt_tokens == got.usage.total_tokens == n_tokens
    assert got.pmpd == {"precision": model.bundle.prefill}
    assert server.metric("prompt_tokens_total") == before + n_tokens
    assert server.get("/props").json["pooling"] == "mean"


def test_answers_do_not_change_by_them(client: Any, server: Server) -> None:
    alone = server.chat().json
    for pmpd in ({}, {"method": "low"}):
        right = server.chat(pmpd=pmpd).json["choices"]
        client.embeddings.create(model="m", input=LONG)
        assert server.chat(pmpd=pmpd).json["choices"] == right
    again = client.embeddings.create(model="m", input=SENTENCE)
    assert server.chat().json["choices"] == alone["choices"]
    assert client.embeddings.create(model="m", input=SENTENCE).data == again.data


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": ""}, "input", None),
        ({"input": []}, "input", None),
        ({"input": [[]]}, "input.0", None),
        ({"input": [999_999]}, "input", None),
        ({"input": "x", "dimensions": 16}, "dimensions", None),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format", None),
        ({"input": ["x"] * 2049}, "input", None),
        ({"input": [7] * 513}, "input", "context_length_exceeded"),
    ],
    ids=str,
)
def test_what_cannot_be_embedded_is_refused(server: Server, fields: Any, param: str, code: str | None) -> None:
    reply = server.request("POST", "/v1/embeddings", fields)
    assert (reply.status, reply.code) == (400, code)
    assert reply.json["error"]["param"].startswith(param)


def test_a_text_may_fill_the_context(server: Server) -> None:
    assert server.request("POST", "/v1/embeddings", {"input": [7] * 512}).status == 200


def test_a_client_that_leaves_ends_it_within_a_batch(model: Pmpd, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[int] = []
    evaluate = model.eval

    async def scenario() -> None:
        job = Job([EmbeddingTask(Prompt(ids_of(model, LONG)))] * 2, "a")

        def counting(tokens: Any) -> None:
            evaluated.append(len(tokens))
            job.cancelled = True
            evaluate(tokens)

        monkeypatch.setattr(model, "eval", counting)
        worker = Worker(model, 1, print)
        worker.start()
        worker.submit(job)
        with pytest.raises(ApiError, match="gone"):
            async for _ in job.events():
                pass
        worker.close(lambda: None)
        worker.join()

    asyncio.run(scenario())
    assert evaluated == [BATCH]
