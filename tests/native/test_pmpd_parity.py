"""libpmpd against the Python package: the same tokens, bytes, precisions and statistics for the same prompts."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from libpmpd import GPU_LAYERS, Session, Stats, Token
from predictors import random_network
from talk import SENTENCES

from pmpd_edge import Pmpd
from pmpd_edge import bundle as bundles
from pmpd_edge.bench.random_model import quantize, write_llama
from pmpd_edge.bundle import Bundle, Level, PredictorFile, StaticSchedule, Switch, WeightsFile
from pmpd_edge.calibrate import network
from pmpd_edge.calibrate.network import Shape, Trained
from pmpd_edge.chat_template import render
from pmpd_edge.gguf_info import read
from pmpd_edge.stats import DraftingStats
from pmpd_edge.stream import Sampling, stream

GREEDY = Sampling()
SEEDED = Sampling(temperature=0.8, top_k=50, top_p=0.9, min_p=0.02, repeat_penalty=1.1)
SCHEDULES: list[dict[str, Any]] = [
    {"scheduler": "static"},
    {"scheduler": "static:4@1,8@3,2@9"},
    {"scheduler": "static", "high_steps": 2},
    {"scheduler": "static", "high_steps": 0},
    {"scheduler": "fixed:4"},
    {"scheduler": "fixed:2", "prefill": 4},
    {"scheduler": "learned"},
    {"scheduler": "learned:8-4,0.97"},
    {"method": "high"},
    {"method": "low"},
    {"method": "lossless", "draft_tokens": 1},
    {"method": "lossless", "draft_tokens": 3, "draft": 4},
    {"method": "lossless", "draft_tokens": 8},
    {"method": "lossless", "draft_tokens": 4, "scheduler": "static:8@1,4@4,2@10"},
    {"method": "lossless", "draft_tokens": 5, "scheduler": "fixed:4", "prefill": 8},
    {"method": "lossless", "draft_tokens": 2, "high_steps": 3},
]
WORDS = [
    "ein",
    "der",
    "Hund",
    "Frau",
    "läuft",
    "über",
    "Wiese",
    "im",
    "1999",
    ",",
    ".",
    "😀",
    "日本",
    "\t<|user|>",
    "ß",
]


def prompts(n: int) -> list[str]:
    """Texts of all lengths: sentences, and words thrown together."""
    rng = random.Random(0)
    return [*SENTENCES, *(" ".join(rng.choices(WORDS, k=rng.randrange(1, 60))) for _ in range(n - len(SENTENCES)))]


def with_predictor(made: Bundle, llm: Pmpd) -> Bundle:
    """The bundle with a predictor of random weights for 8-2 and 8-4: a switch after 0, 3 or 6 high steps, or none."""
    keys, values = native_shape(llm)
    shape = Shape(n_head_kv=keys[0], head_dim_k=keys[1], head_dim_v=values[1], n_hidden=8, n_classes=4)
    path, pairs = made.path / "predictor.gguf", ((8, 2), (8, 4))
    network.write(
        path,
        trained=[Trained(pair, random_network(shape, seed), 1.0, (0.25,) * 4) for seed, pair in enumerate(pairs)],
        classes=(0.0, 0.25, 0.5, 1.0),
        max_new_tokens=13,
        layer=-1,
        fingerprint=made.fingerprint,
    )
    entry = PredictorFile(path.name, bundles.sha256_file(path), pairs, {"prefill": made.prefill})
    return bundles.update(made, predictor=entry)


def native_shape(llm: Pmpd) -> tuple[tuple[int, int], tuple[int, int]]:
    llm.eval([1, 2])
    keys, values = llm.keys_values(-1)
    return keys.shape[1:], values.shape[1:]  # type: ignore[return-value]


def nested(folder: Path) -> Bundle:
    """A bundle of random weights, all matrices divisible by 256: 8 is a sum of three files, 4 of two, 2 a base."""
    kinds = {"base": ("Q2_K", 1.0), "middle": ("Q4_K", 0.3), "top": ("Q8_0", 0.05)}
    files = {}
    for seed, (name, (kind, scale)) in enumerate(kinds.items()):
        source = write_llama(
            folder / "f32.gguf", hidden=256, layers=3, ff=768, seed=seed, weights=lambda _, w, scale=scale: scale * w
        )
        path = quantize(source, folder / f"{name}.gguf", kind)
        files[path.name] = WeightsFile(kind, path.stat().st_size, bundles.sha256_file(path), read(path).bpw)
        source.unlink()
    made = Bundle(
        path=folder,
        name="nested",
        source={"repo": "random", "revision": ""},
        architecture="llama",
        parameters=read(path).parameters,
        context_length=512,
        tokenizer_sha256=read(path).tokenizer_sha256,
        layout="nested",
        files=files,
        levels=(Level(8, tuple(files)), Level(4, tuple(files)[:2]), Level(2, tuple(files)[:1])),
        prefill=8,
        schedule=StaticSchedule((Switch(1, 8), Switch(4, 4), Switch(9, 2)), 24),
    )
    bundles.write(made)
    return made


@pytest.fixture(scope="module", params=["default", "nested"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pmpd, Session]]:
    """A bundle in Python and in C."""
    folder = tmp_path_factory.mktemp("bundle") / request.param
    if request.param == "default":
        shutil.copytree(bundles.default_bundle(), folder)
    else:
        folder.mkdir()
        nested(folder)
    with_predictor(bundles.load(folder), llm := Pmpd(folder, n_threads=1, n_gpu_layers=GPU_LAYERS))
    llm.close()
    llm = Pmpd(folder, n_threads=1, n_gpu_layers=GPU_LAYERS)
    session = Session(folder)
    yield llm, session
    session.close()
    llm.close()


def in_python(llm: Pmpd, tokens: list[int], sampling: Sampling, n: int, stop: list[str], seed: int) -> list[Token]:
    llm.set_seed(seed)
    given = stream(llm, tokens, sampling, n, stop, n_likeliest=0)
    return [Token(t.id, t.precision, logprob(t), t.finish, t.text.encode(), t.drafted) for t in given]


def logprob(token: Any) -> float:
    return float(token.sampled.logprob)


def text(tokens: list[Token]) -> str:
    return b"".join(token.bytes for token in tokens).decode("utf-8", "replace")


def assert_same(both: tuple[Pmpd, Session], tokens: list[int], sampling: Sampling, n: int = 12, seed: int = 7) -> str:
    """One answer of each is the same in all that can be seen of it; returns its text."""
    llm, session = both
    chosen = {f.name: getattr(sampling, f.name) for f in dataclasses.fields(sampling)}
    chosen = {name: value for name, value in chosen.items() if name not in ("frequency_penalty", "presence_penalty")}
    expected = in_python(llm, tokens, sampling, n, [], seed)
    got = session.generate(tokens, n, seed=seed, **chosen)

    assert [t.id for t in got] == [t.id for t in expected]
    assert [t.precision for t in got] == [t.precision for t in expected]
    assert [t.drafted for t in got] == [t.drafted for t in expected]
    assert [t.finish for t in got] == [t.finish for t in expected]
    assert [math.log(t.probability) for t in got] == pytest.approx([t.probability for t in expected], abs=1e-4)
    assert text(got) == text(expected)

    for name in ("prompt_tokens", "reused_tokens", "prefill_precision"):
        assert getattr(session.stats, name) == getattr(llm.stats, name), name
    assert session.stats.decode_steps == len(llm.stats.decode_precisions)
    assert session.stats.n_switches == len(llm.stats.switches)
    assert session.stats.average_bitwidth == pytest.approx(llm.stats.average_bitwidth or 0)
    assert session.stats.average_bpw == pytest.approx(llm.stats.average_bpw or 0)
    assert_same_drafting(llm.stats.drafting, session.stats)
    return text(got)


def assert_same_drafting(expected: DraftingStats | None, got: Stats) -> None:
    told = expected.to_dict() if expected else {}
    assert got.drafted_tokens == told.get("drafted", 0)
    assert got.kept_tokens == told.get("kept", 0)
    assert got.verifications == told.get("verifications", 0)
    assert got.tokens_per_verification == pytest.approx(told.get("tokens_per_verification") or 0)


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_fifty_prompts_give_the_same_tokens_and_switches(both, sampling):
    """Schedules by turns, so that what one answer leaves in the KV cache is the next one's to reuse, or not."""
    llm, session = both
    for (i, prompt), options in zip(enumerate(prompts(50)), itertools.cycle(SCHEDULES), strict=False):
        llm.configure(**options)
        session.configure(**options)
        tokens = session.render([{"role": "user", "content": prompt}])
        assert tokens == render(llm, [{"role": "user", "content": prompt}]).tokens
        assert_same(both, tokens, sampling, seed=i)


@pytest.mark.parametrize("options", SCHEDULES, ids=lambda options: "-".join(str(v) for v in options.values()))
def test_every_schedule_gives_the_same_over_a_conversation(both, options):
    llm, session = both
    llm.configure(**options)
    session.configure(**options)
    session.clear()
    llm.reset()
    messages = [{"role": "system", "content": "Translate to English."}]
    for sentence in (SENTENCES[0], SENTENCES[1], "Ja 😀."):
        messages.append({"role": "user", "content": sentence})
        tokens = session.render(messages)
        assert tokens == render(llm, messages).tokens
        answer = assert_same(both, tokens, SEEDED if sentence == SENTENCES[1] else GREEDY, n=16)
        messages.append({"role": "assistant", "content": answer})
    assert session.stats.reused_tokens > 0


def test_the_learned_schedule_depends_on_the_prompt(both):
    """Else its parity would show nothing."""
    _, session = both
    session.configure(scheduler="learned:8-2,0.6")
    found = set()
    for prompt in prompts(12):
        tokens = session.generate(session.render([{"role": "user", "content": prompt}]), 40, temperature=1.5, seed=1)
        found.add(sum(token.precision == 8 for token in tokens[1:]))
    assert len(found) > 1


@pytest.mark.parametrize("draft_tokens", range(1, 9))
def test_drafts_of_every_number_stand_and_fall_alike(both, draft_tokens):
    """At a temperature at which many fall, so that all numbers of drafts are kept, and all random numbers matter."""
    llm, session = both
    llm.configure(method="lossless", draft_tokens=draft_tokens)
    session.configure(method="lossless", draft_tokens=draft_tokens)
    llm.reset()
    session.clear()
    hot = dataclasses.replace(SEEDED, temperature=2.0, top_k=0, top_p=1.0, min_p=0.0)
    kept = set()
    for seed, sampling in enumerate((GREEDY, SEEDED, hot, hot, hot)):
        tokens = session.render([{"role": "user", "content": SENTENCES[seed % 3]}])
        assert_same(both, tokens, sampling, n=24, seed=seed)
        assert llm.stats.drafting
        kept |= {done.kept for done in llm.stats.drafting.rounds}
    assert {0, 1} <= kept


def test_a_prompt_of_several_batches_is_the_same(both):
    folder = both[0].bundle.path
    with_batches = Pmpd(folder, n_threads=1, n_batch=16, n_gpu_layers=GPU_LAYERS)
    session = Session(folder, {"n_batch": 16})
    tokens = with_batches.tokenize(" ".join(prompts(12)).encode())[:200]
    assert_same((with_batches, session), tokens, SEEDED)
    with_batches.close()


def test_the_context_ends_answers_alike(both):
    folder = both[0].bundle.path
    small, session = Pmpd(folder, n_threads=1, n_ctx=1, n_gpu_layers=GPU_LAYERS), Session(folder, {"n_ctx": 1})
    assert session.n_ctx == small.n_ctx() == 256
    tokens = small.tokenize(b" und".ljust(2000, b"."))[:250]
    hot = dataclasses.replace(SEEDED, temperature=3.0, top_k=0, top_p=1.0, min_p=0.0)
    assert_same((small, session), tokens, hot, n=20)
    for draft_tokens in (2, 8):
        small.configure(method="lossless", draft_tokens=draft_tokens)
        session.configure(method="lossless", draft_tokens=draft_tokens)
        assert_same((small, session), tokens, hot, n=20)
    small.close()
