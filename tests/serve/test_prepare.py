"""From requests to answers to make (pmpd_edge/serve/prepare.py)."""

from __future__ import annotations

from typing import Any

import pytest
from llama_cpp.llama_chat_format import Jinja2ChatFormatter
from serving import chat_body

from pmpd_edge import Pmpd
from pmpd_edge.schedule.static import StaticScheduler
from pmpd_edge.serve.errors import ApiError
from pmpd_edge.serve.prepare import SEEDS, Task, chat_tasks, schedulers
from pmpd_edge.serve.requests import ChatRequest
from pmpd_edge.stream import Sampling

TEMPLATE = "{% for m in messages %}[{{ m.role }}|{{ m.content }}]{% endfor %}{{ tools|tojson if tools else 'none' }}"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


@pytest.fixture
def shown(model: Pmpd, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a template sees of a request."""
    formatter = Jinja2ChatFormatter(TEMPLATE, eos_token="", bos_token="")
    monkeypatch.setitem(model._chat_handlers, model.chat_format, formatter.to_chat_handler())

    def show(**fields: Any) -> str:
        task, *_ = tasks(model, **fields)
        return model.detokenize(task.prompt.tokens).decode()

    return show


def tasks(llm: Pmpd, **fields: Any) -> list[Task]:
    return chat_tasks(llm, ChatRequest(**{**chat_body("x"), **fields}))


def test_templates_see_roles_and_joined_texts(shown: Any) -> None:
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "c", "tool_call_id": "1"},
    ]
    assert shown(messages=messages).replace(" ", "") == "[system|bekind][user|a\nb][assistant|][tool|c]none"


def test_templates_see_tools_unless_none_may_be_called(shown: Any) -> None:
    assert '"look"' in shown(tools=[TOOL]) and '"look"' in shown(tools=[TOOL], tool_choice="required")
    assert shown(tools=[TOOL], tool_choice="none").endswith("none")


def test_what_is_not_said_is_the_command_lines(model: Pmpd) -> None:
    (task,) = tasks(model)
    assert task.sampling == Sampling() and task.max_new_tokens == model.bundle.schedule.max_new_tokens
    assert task.scheduler == StaticScheduler(model.bundle.schedule) and task.method == "pmpd"
    assert 0 <= task.seed < SEEDS and task.grammar is None


def test_what_is_said_counts(model: Pmpd) -> None:
    fields = {"temperature": 1.5, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "repeat_penalty": 1.2}
    penalties = {"frequency_penalty": 0.5, "presence_penalty": -0.5}
    (task,) = tasks(model, **fields, **penalties, stop=["a", "b"], max_completion_tokens=5, max_tokens=7)
    assert task.sampling == Sampling(**fields, **penalties)
    assert task.prompt.stop[-2:] == ("a", "b") and task.max_new_tokens == 5


@pytest.mark.parametrize("seed", [-1, 0, 2**32 - 1, 2**63 - 1])
def test_no_seed_means_another_one_each_time(model: Pmpd, seed: int) -> None:
    seeds = [task.seed for task in tasks(model, seed=seed, n=8)]
    assert len(set(seeds)) == 8 and all(0 <= one < SEEDS for one in seeds)


def test_logprobs_are_asked_for_by_both_fields(model: Pmpd) -> None:
    numbers = [tasks(model, **fields)[0].n_likeliest for fields in ({}, {"top_logprobs": 5}, {"logprobs": True})]
    assert numbers == [0, 0, 0] and tasks(model, logprobs=True, top_logprobs=5)[0].n_likeliest == 5


def test_only_schedulers_that_work_are_offered(model: Pmpd) -> None:
    offered = schedulers(model.bundle)
    assert {"static", "confidence", "fixed:8"} <= {*offered} and "learned" not in offered
    for name in offered:
        assert tasks(model, pmpd={"scheduler": name})
    with pytest.raises(ApiError):
        tasks(model, pmpd={"scheduler": "learned"})
