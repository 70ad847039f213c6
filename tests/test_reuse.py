"""What of the KV cache is reused, and that nothing is which another precision computed."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
import subprocess
import sys

import llama_cpp
import numpy as np
import pytest
from talk import SENTENCES, answer, messages, prompt

from pmpd_edge import Pmpd, bundle
from pmpd_edge.errors import PmpdError

FRESH = """
import json, sys
from pmpd_edge import Pmpd
method, text = sys.argv[1:]
llm = Pmpd(method=method, n_threads=1)
out = llm.create_chat_completion([{"role": "user", "content": text}], temperature=0, max_tokens=40)
print(json.dumps([out["choices"][0]["message"]["content"], llm.stats.precisions]))
"""


@pytest.mark.parametrize("text", SENTENCES)
def test_every_method_after_every_other_equals_a_fresh_process(llm, text):
    fresh = {}
    for method in ("pmpd", "high", "low"):
        run = subprocess.run([sys.executable, "-c", FRESH, method, text], capture_output=True, text=True, check=True)
        fresh[method] = json.loads(run.stdout)
    for order in itertools.permutations(fresh):
        for method in (*order, *order):
            llm.configure(method=method)
            out = llm.create_chat_completion(messages(text), temperature=0, max_tokens=40)
            assert [out["choices"][0]["message"]["content"], llm.stats.precisions] == fresh[method], order
    if text == SENTENCES[1]:
        assert len({answer for answer, _ in fresh.values()}) == 3, "answers that are alike would show little"


def test_the_record_says_at_which_precision_each_position_was_computed(llm):
    tokens = prompt(llm, SENTENCES[0])
    answer(llm, tokens, 14)
    n = len(tokens)
    assert llm.kv_precision[: llm.n_tokens].tolist() == [8] * n + [8] * 5 + [4] * 5 + [2] * 3


def test_only_rows_that_prefill_would_compute_are_reused(llm):
    tokens = prompt(llm, SENTENCES[0])
    longer = tokens + answer(llm, tokens, 14)
    answer(llm, longer, 1)
    assert llm.stats.reused_tokens == len(tokens) + 5, "the prompt and the five high steps"
    assert set(llm.kv_precision[: llm.n_tokens]) == {8}

    llm.configure(method="low")
    answer(llm, longer, 1)
    assert llm.stats.reused_tokens == 0


def test_keeping_low_rows_is_an_option_that_shows(llm):
    llm.keep_low_kv = True
    tokens = prompt(llm, SENTENCES[0])
    longer = tokens + answer(llm, tokens, 14)
    answer(llm, longer, 1)
    assert llm.stats.reused_tokens == len(longer) - 1
    assert llm.stats.reused_low_tokens == 8
    assert llm.stats.to_dict()["reused_low_tokens"] == 8


def test_logits_are_never_reused(llm):
    """The same prompt again, after its last token was evaluated at another precision."""
    tokens = prompt(llm, SENTENCES[0])
    answer(llm, tokens, 1)
    expected = llm.logits().copy()
    llm.n_tokens -= 1
    llm.set_precision(2)
    llm.eval(tokens[-1:])
    assert np.abs(llm.logits() - expected).max() > 0.1
    answer(llm, tokens, 1)
    assert llm.stats.reused_tokens == len(tokens) - 1
    np.testing.assert_allclose(llm.logits(), expected, atol=1e-3)
    assert llm.kv_precision[: len(tokens)].tolist() == [8] * len(tokens)


def test_saved_states_carry_the_record(llm):
    tokens = prompt(llm, SENTENCES[0])
    expected = answer(llm, tokens, 14)
    state = pickle.loads(pickle.dumps(llm.save_state()))
    answer(llm, prompt(llm, SENTENCES[1]), 10)
    llm.load_state(state)
    assert answer(llm, tokens + expected, 1)
    assert llm.stats.reused_tokens == len(tokens) + 5

    del state.kv_precision, state.kv_bundle  # as a stock Llama saves it
    llm.load_state(state)
    answer(llm, tokens, 1)
    assert llm.stats.reused_tokens == 0


def test_a_state_that_does_not_fit_leaves_an_empty_context(llm):
    tokens = prompt(llm, SENTENCES[0])
    expected = answer(llm, tokens, 14)
    cut = llm.save_state()
    cut.llama_state = cut.llama_state[: len(cut.llama_state) // 2]
    cut.llama_state_size = len(cut.llama_state)
    with pytest.raises(PmpdError, match="does not fit"):
        llm.load_state(cut)
    assert llm.n_tokens == 0
    assert answer(llm, tokens, 14) == expected


def test_states_of_larger_and_smaller_contexts(llm):
    tokens = prompt(llm, SENTENCES[0])
    expected = answer(llm, tokens, 14)
    small = Pmpd(n_threads=1, n_ctx=256)
    small.load_state(llm.save_state())
    assert answer(small, tokens, 14) == expected
    assert small.stats.reused_tokens == len(tokens) - 1
    llm.load_state(small.save_state())
    assert len(answer(llm, tokens, 300)) == 300

    answer(llm, [*tokens, *range(300, 560)], 1)
    with pytest.raises(PmpdError, match="292 tokens in a context of 256"):
        small.load_state(llm.save_state())
    assert answer(small, tokens, 14) == expected


def test_a_state_of_another_bundle_is_not_reused(llm, tmp_path):
    folder = shutil.copytree(bundle.default_bundle(), tmp_path / "bundle")
    manifest = json.loads((folder / "pmpd.json").read_text())
    manifest["files"]["translator-7m-q8.gguf"]["sha256"] = "0" * 64
    (folder / "pmpd.json").write_text(json.dumps(manifest))
    tokens = prompt(llm, SENTENCES[0])
    answer(llm, tokens, 1)
    other = Pmpd(folder, n_threads=1)
    other.load_state(llm.save_state())
    answer(other, tokens, 1)
    assert other.stats.reused_tokens == 0


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_llama_cpps_caches_do_not_mix_precisions(llm, tmp_path, kind):
    texts: dict[str, set[str]] = {"high": set(), "low": set()}

    def ask(method: str) -> int:
        """The number of tokens that were reused."""
        llm.configure(method=method)
        llm.reset()  # so that only the cache can help
        out = llm.create_chat_completion(messages(SENTENCES[1]), temperature=0, max_tokens=30)
        texts[method].add(out["choices"][0]["message"]["content"])
        assert set(llm.kv_precision[: llm.n_tokens]) == {llm.stats.prefill_precision}
        return llm.stats.reused_tokens

    assert [ask("high"), ask("low")] == [0, 0]
    llm.set_cache(llama_cpp.LlamaRAMCache() if kind == "memory" else llama_cpp.LlamaDiskCache(str(tmp_path)))
    assert ask("high") == 0
    assert ask("high") > 0, "the cache is not used at all"
    assert ask("low") == 0, "the cache has only high's state"
    ask("low")
    ask("high")
    assert all(len(found) == 1 for found in texts.values())
    assert texts["high"] != texts["low"], "answers that are alike would show nothing"


def test_embeddings_are_at_prefills_precision_and_leave_nothing_behind():
    llm = Pmpd(n_threads=1, embedding=True, n_batch=64)
    tokens = prompt(llm, SENTENCES[0])
    vector = llm.embed("Ein Hund")
    expected = answer(llm, tokens, 14)
    assert llm.embed("Ein Hund") == vector, "though the answer ended at 2 bits"
    assert answer(llm, tokens, 14) == expected
    with pytest.raises(ValueError, match="exceed batch size"):
        llm.embed(["Hund", "Hund", "Hund " * 500], truncate=False)
    assert answer(llm, tokens, 14) == expected


def test_an_interrupt_after_an_evaluation_leaves_the_record_right(llm, monkeypatch):
    tokens = prompt(llm, SENTENCES[0])
    llm.configure(method="high")
    answer(llm, tokens, 3)
    llm.configure(method="low")
    evaluate = llama_cpp.Llama.eval

    def interrupted(self, batch):
        evaluate(self, batch)
        raise KeyboardInterrupt

    monkeypatch.setattr(llama_cpp.Llama, "eval", interrupted)
    with pytest.raises(KeyboardInterrupt):
        answer(llm, tokens, 3)
    assert llm.n_tokens == len(tokens)
    assert set(llm.kv_precision[: llm.n_tokens]) == {2}


def test_what_is_evaluated_between_two_tokens_is_no_part_of_the_answer(llm):
    running = llm.generate(prompt(llm, SENTENCES[0]), temp=0.0)
    for _ in range(13):
        next(running)
    assert llm.precision == 2
    llm.set_precision(8)
    llm.eval([300])
    assert llm.kv_precision[llm.n_tokens - 1] == 8
    llm.sample(temp=0.0)
    assert len(llm.stats.precisions) == 13
