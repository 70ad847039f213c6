"""Prompts of libpmpd: the same token ids as Python's for every chat template, and none where a template refuses."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from libpmpd import ARGUMENT, CANCELLED, PmpdFailure, Session, single_level
from llama_cpp.llama_chat_format import (
    CHATML_CHAT_TEMPLATE,
    MISTRAL_INSTRUCT_CHAT_TEMPLATE,
    MIXTRAL_INSTRUCT_CHAT_TEMPLATE,
)

from pmpd_edge import Pmpd
from pmpd_edge.bench.random_model import quantize, write_llama
from pmpd_edge.chat_template import render
from pmpd_edge.errors import PmpdError

# Of the families that people convert, in their own words or nearly so; the first three are texts that llama_cpp knows.
TEMPLATES = {
    "openhermes": CHATML_CHAT_TEMPLATE,
    "mistral-0.1": MISTRAL_INSTRUCT_CHAT_TEMPLATE,
    "mixtral": MIXTRAL_INSTRUCT_CHAT_TEMPLATE,
    "chatml": (
        "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
    ),
    "llama-3": (
        "{{- bos_token }}\n{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = "
        "messages[0]['content']|trim %}\n    {%- set messages = messages[1:] %}\n{%- else %}\n"
        "    {%- set system_message = '' %}\n{%- endif %}\n{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}"
        "{%- if tools is not none %}{{- 'Environment: ipython\\n' }}{%- endif %}\n{{- system_message }}<|eot_id|>\n"
        "{%- for message in messages %}\n{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + "
        "message['content'] | trim + '<|eot_id|>' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
        "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n"
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ ' ' + message['content'] + eos_token }}{% else %}{{ raise_exception('no such role!') }}{% endif %}"
        "{% endfor %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
        "{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + "
        "message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}"
        "{{'<start_of_turn>model\n'}}{% endif %}"
    ),
    "qwen": (
        "{%- if tools %}\n    {{- '<|im_start|>system\\n# Tools' }}\n{%- else %}\n"
        "    {%- if messages[0].role == 'system' %}\n"
        "        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}\n    {%- endif %}\n"
        "{%- endif %}\n"
        "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}\n"
        "{%- for message in messages[::-1] %}\n    {%- set index = (messages|length - 1) - loop.index0 %}\n"
        "    {%- if ns.multi_step_tool and message.role == 'user' and message.content is string %}\n"
        "        {%- set ns.multi_step_tool = false %}\n        {%- set ns.last_query_index = index %}\n"
        "    {%- endif %}\n{%- endfor %}\n{%- for message in messages %}\n"
        "    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}\n"
        "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
        "    {%- elif message.role == 'assistant' %}\n        {%- set content = message.content %}\n"
        "        {%- if '</think>' in content %}\n            {%- set content = "
        "content.split('</think>')[-1].lstrip('\\n') %}\n        {%- endif %}\n"
        "        {{- '<|im_start|>' + message.role + '\\n' + content }}\n        {{- '<|im_end|>\\n' }}\n"
        "    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n"
        "    {%- if enable_thinking is defined and enable_thinking is false %}\n"
        "        {{- '<think>\\n\\n</think>\\n\\n' }}\n    {%- endif %}\n{%- endif %}"
    ),
    "zephyr": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + "
        "eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
        "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    "phi": (
        "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
        "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
        "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
        "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "none": None,
}
TEXTS = ["Hi!", " two  spaces\tand\n\nlines ", "<|user|></s> 😀 日本語 ß", "{{ messages }} {% if %} '\"\\", ""]


@pytest.fixture(scope="module", params=TEMPLATES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Pmpd, Session]:
    """A model with a template, in Python and in C."""
    folder = tmp_path_factory.mktemp(request.param)

    def change(fields: dict[str, Any]) -> None:
        _, *kinds = fields.pop("tokenizer.chat_template")
        if (template := TEMPLATES[request.param]) is not None:
            fields["tokenizer.chat_template"] = (template, *kinds)

    source = write_llama(folder / "f32.gguf", layers=1, tokenizer=change)
    single_level(folder, quantize(source, folder / "m.gguf", "Q8_0"))
    return request.param, Pmpd(folder, n_threads=1), Session(folder)


def conversations() -> list[list[dict[str, str]]]:
    """With and without a system message, of one to three turns, with all that text can be."""
    made = []
    for system in ([], [{"role": "system", "content": " Be brief. \n"}]):
        for first in TEXTS:
            turns = [{"role": "user", "content": first}]
            made.append([*system, *turns])
            for i, text in enumerate(TEXTS[1:3]):
                turns += [
                    {"role": "assistant", "content": f"<think>a</think>\n\n{text}"},
                    {"role": "user", "content": f"{i}{first}"},
                ]
                made.append([*system, *turns])
    return made


def test_conversations_become_the_same_tokens_or_are_refused_alike(both):
    _, llm, session = both
    for messages in conversations():
        try:
            expected = render(llm, messages).tokens
        except PmpdError as error:
            with pytest.raises(PmpdFailure, match="the model's chat template refuses the conversation") as failure:
                session.render(messages)
            assert failure.value.status == ARGUMENT and "\n" not in str(failure.value)
            assert error.hint in str(failure.value)
        else:
            assert session.render(messages) == expected, messages


def test_what_ends_a_chat_is_the_same(both):
    _, llm, session = both
    stop = render(llm, [{"role": "user", "content": "Hi!"}]).stop
    assert session.chat_stop() == "".join(stop)


def test_texts_become_the_same_tokens(both):
    _, llm, session = both
    for text in [*TEXTS, "a" * 5000, " ".join(TEXTS * 50)]:
        for add_special in (True, False):
            for parse_special in (True, False):
                expected = llm.tokenize(text.encode(), add_special, parse_special)
                assert session.tokenize(text, add_special, parse_special) == expected


N = 100_000  # more than any stack holds, where each takes a call
BROKEN = {
    "cut": "{% for message in %}{{",
    "brackets": "{{" + "(" * N + ")" * N + "}}",
    "blocks": "{% if true %}" * N + "{% endif %}" * N,
    "sets": "{% set a %}" * N + "{% endset %}" * N,
    "elifs": "{% if a %}" + "{% elif a %}{% if a %}{% endif %}" * N + "{% endif %}",
    "negations": "{{ " + "not " * N + "a }}",
    "sums": "{{ 1" + " + 1" * N + " }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "range": "{% for a in range(1000000000000) %}{% endfor %}",
    "division": "{{ 4 is divisibleby(0) }}",
}


def with_template(folder: Path, template: str) -> Session:
    def change(fields: dict[str, Any]) -> None:
        _, *kinds = fields["tokenizer.chat_template"]
        fields["tokenizer.chat_template"] = (template, *kinds)

    source = write_llama(folder / "f32.gguf", layers=1, tokenizer=change)
    single_level(folder, quantize(source, folder / "m.gguf", "Q8_0"))
    return Session(folder)


@pytest.mark.parametrize("template", BROKEN.values(), ids=BROKEN)
def test_a_broken_template_is_an_error_of_the_chat_alone(tmp_path: Path, template: str):
    session = with_template(tmp_path, template)
    with pytest.raises(PmpdFailure, match=r"chat template refuses the conversation \(\w") as failure:
        session.render([{"role": "user", "content": "Hi!"}])
    assert "\n" not in str(failure.value)
    assert len(session.generate([1, 2, 3], 4)) > 0


def test_a_template_that_takes_long_is_cancelled(tmp_path: Path):
    session = with_template(tmp_path, BROKEN["loops"])
    done = threading.Event()

    def cancel() -> None:
        while not done.wait(0.05):  # again: the template may not have begun
            session.cancel()

    other = threading.Thread(target=cancel)
    other.start()
    try:
        with pytest.raises(PmpdFailure, match="cancelled") as failure:
            session.render([{"role": "user", "content": "Hi!"}])
    finally:
        done.set()
        other.join()
    assert failure.value.status == CANCELLED
    assert len(session.generate([1, 2, 3], 4)) > 0
