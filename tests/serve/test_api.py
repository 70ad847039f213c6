"""OpenAI's interface, by their own client, against what the model gives without a server."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import numpy as np
import pytest
from serving import SENTENCE, Server, chat_body, chunks, long_format
from talk import SENTENCES, messages

from pmpd_edge import Pmpd
from pmpd_edge.chat_template import render
from pmpd_edge.stream import Sampling, Token, stream

openai = pytest.importorskip("openai")

CASES: list[dict[str, Any]] = [
    {},
    {"high_steps": 2},
    {"method": "high"},
    {"method": "low"},
    {"scheduler": "confidence"},
    {"scheduler": "static:8@1,2@4,4@7"},
    {"scheduler": "alternate:0.5"},
]

WARM = {"temperature": 1.9, "top_p": 1.0, "extra_body": {"min_p": 0.0, "top_k": 0}}
SCHEMA = {
    "type": "object",
    "properties": {
        "animal": {"enum": ["cat", "dog"]},
        "legs": {"type": "integer"},
        "tags": {"$ref": "#/$defs/tags"},
    },
    "required": ["animal", "legs", "tags"],
    "$defs": {"tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2}},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "set_light",
        "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]},
    },
}
NAMED = {"type": "function", "function": {"name": "set_light"}}


@pytest.fixture
def client(server: Server) -> Any:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def expected(llm: Pmpd, text: str, n: int = 40, options: dict[str, Any] | None = None, **more: Any) -> list[Token]:
    """The answer that the model gives to a message."""
    llm.configure(**(options or {}))
    prompt = render(llm, messages(text))
    return list(stream(llm, prompt.tokens, Sampling(), n, prompt.stop, **more))


def text_of(tokens: list[Token]) -> str:
    return "".join(token.text for token in tokens)


def ask(client: Any, text: str = SENTENCE, pmpd: dict[str, Any] | None = None, **fields: Any) -> Any:
    fields = {"max_tokens": 40, **fields}
    extra = {"pmpd": pmpd} if pmpd else None
    return client.chat.completions.create(model="any", messages=messages(text), extra_body=extra, **fields)


class TestChat:
    @pytest.mark.parametrize("options", CASES, ids=str)
    def test_text_and_precisions_are_those_of_the_model_alone(self, client: Any, model: Pmpd, options: Any) -> None:
        for sentence in SENTENCES:
            right = expected(model, sentence, options=options)
            got = ask(client, sentence, options)
            assert got.choices[0].message.content == text_of(right)
            assert got.pmpd["precisions"] == [token.precision for token in right]
            assert [token["text"] for token in got.pmpd["tokens"]] == [token.text for token in right]
            assert got.pmpd["average_bitwidth"] == model.stats.average_bitwidth
            assert got.pmpd["average_bpw"] == model.stats.average_bpw
            assert got.pmpd["switches"] == [vars(switch) for switch in model.stats.switches]

    @pytest.mark.parametrize("options", CASES[:3], ids=str)
    def test_a_stream_carries_the_same_token_by_token(self, client: Any, model: Pmpd, options: Any) -> None:
        right = expected(model, SENTENCE, options=options)
        *parts, last = ask(client, SENTENCE, options, stream=True)
        assert "".join(part.choices[0].delta.content or "" for part in parts) == text_of(right)
        tokens = [token for part in parts if hasattr(part, "pmpd") for token in part.pmpd["tokens"]]
        shown = [token for token in right if token.text]
        assert [(token["text"], token["precision"]) for token in tokens] == [(t.text, t.precision) for t in shown]
        assert all(0 < token["probability"] <= 1 for token in tokens)
        assert last.choices[0].finish_reason == "stop"
        assert last.pmpd["precisions"] == [token.precision for token in right]
        assert last.timings["predicted_n"] == len(right) and last.timings["predicted_per_second"] > 0

    def test_the_average_bitwidth_grows_with_the_stream(self, client: Any) -> None:
        parts = [part for part in ask(client, pmpd={"high_steps": 2}, stream=True) if hasattr(part, "pmpd")]
        precisions: list[int] = parts[-1].pmpd["precisions"]
        for i, part in enumerate(parts[1:-1], start=1):
            assert part.pmpd["average_bitwidth"] == pytest.approx(sum(precisions[1 : i + 1]) / i)

    def test_usage_counts_every_sampled_token(self, client: Any, model: Pmpd) -> None:
        right = expected(model, SENTENCE)
        usage = ask(client).usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (model.stats.prompt_tokens, len(right))
        *_, last = ask(client, stream=True, stream_options={"include_usage": True})
        assert last.choices == [] and last.usage.completion_tokens == len(right)

    def test_max_tokens_end_an_answer(self, client: Any) -> None:
        choice = ask(client, max_tokens=2).choices[0]
        assert choice.finish_reason == "length" and len(choice.message.content.split()) == 2
        assert ask(client, max_tokens=openai.NOT_GIVEN, max_completion_tokens=2).usage.completion_tokens == 2

    def test_the_context_ends_an_answer_too(self, client: Any) -> None:
        got = ask(client, max_tokens=100_000, response_format=long_format())
        assert got.choices[0].finish_reason == "length" and got.usage.total_tokens == 512

    def test_a_stop_string_ends_an_answer_and_is_no_part_of_it(self, client: Any, model: Pmpd) -> None:
        text = text_of(expected(model, SENTENCE))
        word = text.split()[3]
        for stop in (word, [word, "zzz"]):
            choice = ask(client, stop=stop).choices[0]
            assert (choice.message.content, choice.finish_reason) == (text.partition(word)[0], "stop")
        parts = list(ask(client, stop=word, stream=True))
        assert "".join(part.choices[0].delta.content or "" for part in parts) == text.partition(word)[0]

    def test_the_async_client_works(self, server: Server, model: Pmpd) -> None:
        async def answers() -> list[str]:
            async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
                asked = [client.chat.completions.create(model="m", messages=messages(text)) for text in SENTENCES]
                texts = [one.choices[0].message.content for one in await asyncio.gather(*asked)]
                parts = await client.chat.completions.create(model="m", messages=messages(SENTENCE), stream=True)
                return [*texts, "".join([part.choices[0].delta.content or "" async for part in parts])]

        assert asyncio.run(answers()) == [text_of(expected(model, text, 64)) for text in [*SENTENCES, SENTENCE]]

    def test_the_model_is_listed(self, client: Any) -> None:
        assert [one.id for one in client.models.list()] == ["translator-7m"]
        assert client.models.retrieve("translator-7m").object == "model"
        with pytest.raises(openai.NotFoundError, match="no such model"):
            client.models.retrieve("gpt-4")

    def test_parts_of_text_are_joined_and_pictures_refused(self, client: Any) -> None:
        part = {"type": "text", "text": SENTENCE}
        joined = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": [part]}], max_tokens=40
        )
        assert joined.choices[0].message.content == ask(client).choices[0].message.content
        picture = {"type": "image_url", "image_url": {"url": "data:,"}}
        with pytest.raises(openai.BadRequestError, match=r"content.0.type: Input should be 'text'"):
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": [picture]}])

    def test_what_other_clients_send_besides_does_not_matter(self, server: Server) -> None:
        """Open WebUI's bodies carry fields of their own, and nulls."""
        more = {"stream_options": None, "chat_id": "x", "session_id": "y", "metadata": {}, "stop": None, "seed": None}
        assert server.chat(**more).status == 200


class TestSampling:
    def texts(self, client: Any, n: int, seed: int) -> list[str]:
        got = client.chat.completions.create(
            model="m", messages=messages(SENTENCE), max_tokens=12, n=n, seed=seed, **WARM
        )
        assert [choice.index for choice in got.choices] == list(range(n))
        return [choice.message.content for choice in got.choices]

    def test_a_seed_repeats_an_answer(self, client: Any) -> None:
        assert self.texts(client, 1, 7) == self.texts(client, 1, 7) != self.texts(client, 1, 8)

    def test_n_answers_have_n_seeds(self, client: Any) -> None:
        assert self.texts(client, 3, 7) == [text for seed in (7, 8, 9) for text in self.texts(client, 1, seed)]

    def test_n_answers_are_streamed_one_after_the_other(self, client: Any) -> None:
        parts = list(ask(client, n=3, stream=True))
        indices = [part.choices[0].index for part in parts]
        assert indices == sorted(indices) and set(indices) == {0, 1, 2}
        ends = [part for part in parts if part.choices[0].finish_reason]
        assert [end.choices[0].index for end in ends] == [0, 1, 2] and all(end.pmpd["precisions"] for end in ends)

    def test_each_of_n_answers_has_its_own_figures(self, client: Any) -> None:
        got = ask(client, n=2)
        assert got.choices[0].pmpd == got.pmpd and got.choices[1].timings["prompt_n"] == 1

    def test_a_tiny_temperature_takes_the_likeliest(self, client: Any) -> None:
        assert ask(client, temperature=1e-30).choices[0].message == ask(client, temperature=0).choices[0].message


class TestLogprobs:
    def test_they_are_the_models(self, client: Any, model: Pmpd) -> None:
        right = expected(model, SENTENCE, n_likeliest=3)
        content = ask(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
        assert len(content) == len(right)
        for got, token in zip(content, right, strict=True):
            assert bytes(got.bytes) == token.sampled.piece
            assert got.logprob == pytest.approx(token.sampled.logprob)
            assert [bytes(other.bytes) for other in got.top_logprobs] == [one.piece for one in token.likeliest]
            assert got.top_logprobs[0].logprob == got.logprob >= got.top_logprobs[1].logprob  # greedy

    def test_they_are_the_logarithms_of_the_softmax(self, client: Any, model: Pmpd) -> None:
        model.reset()
        model.set_precision(8)
        model.eval(render(model, messages(SENTENCE)).tokens)
        logits = model.logits().astype(np.float64)
        right = np.sort(logits - logits.max() - np.log(np.exp(logits - logits.max()).sum()))[::-1]
        first = ask(client, logprobs=True, top_logprobs=20, temperature=2, seed=3).choices[0].logprobs.content[0]
        assert [other.logprob for other in first.top_logprobs] == pytest.approx(right[:20], abs=1e-4)

    def test_they_come_with_a_stream_as_well(self, client: Any) -> None:
        whole = ask(client, logprobs=True).choices[0].logprobs.content
        parts = [part.choices[0].logprobs for part in ask(client, logprobs=True, stream=True)]
        assert [one for part in parts if part for one in part.content] == whole

    def test_plain_completions_have_them_in_their_own_form(self, client: Any) -> None:
        got = client.completions.create(model="m", prompt="Ein Hund", max_tokens=5, logprobs=2).choices[0].logprobs
        assert len(got.tokens) == len(got.token_logprobs) == len(got.top_logprobs) == len(got.text_offset) == 5
        for logprob, top in zip(got.token_logprobs, got.top_logprobs, strict=True):
            assert len(top) == 2 and max(top.values()) == logprob


class TestCompletions:
    def test_text_is_continued_as_create_completion_does(self, client: Any, model: Pmpd) -> None:
        model.configure()
        right = model.create_completion("A man is", max_tokens=10, temperature=0)["choices"][0]
        got = client.completions.create(model="m", prompt="A man is", max_tokens=10, temperature=0).choices[0]
        assert (got.text, got.finish_reason) == (right["text"], right["finish_reason"])
        parts = client.completions.create(model="m", prompt="A man is", max_tokens=10, stream=True)
        assert "".join(part.choices[0].text for part in parts) == right["text"]

    def test_several_prompts_and_token_ids(self, client: Any, model: Pmpd) -> None:
        prompts = ["A man is", "Two dogs"]
        single = [client.completions.create(model="m", prompt=one, max_tokens=8).choices[0].text for one in prompts]
        several = client.completions.create(model="m", prompt=prompts, max_tokens=8, n=2)
        assert [choice.text for choice in several.choices] == [single[0]] * 2 + [single[1]] * 2
        ids = [model.tokenize(one.encode(), add_bos=model._model.add_bos_token()) for one in prompts]
        assert several.usage.prompt_tokens == sum(map(len, ids))
        by_ids = client.completions.create(model="m", prompt=ids, max_tokens=8)
        assert [choice.text for choice in by_ids.choices] == single
        assert client.completions.create(model="m", prompt=ids[0], max_tokens=8).choices[0].text == single[0]

    def test_an_id_outside_of_the_vocabulary_is_refused(self, client: Any) -> None:
        with pytest.raises(openai.BadRequestError, match="ids below"):
            client.completions.create(model="m", prompt=[1, 999_999])


class TestJson:
    def test_an_answer_keeps_to_a_schema(self, client: Any) -> None:
        wanted = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True}}
        for fields in ({}, {"temperature": 2.0, "seed": 1}, {"logprobs": True}):
            made = json.loads(ask(client, max_tokens=200, response_format=wanted, **fields).choices[0].message.content)
            assert made["animal"] in ("cat", "dog") and isinstance(made["legs"], int)
            assert len(made["tags"]) <= 2 and all(len(tag) <= 5 for tag in made["tags"])

    def test_llama_cpps_form_works_too(self, server: Server) -> None:
        wanted = {"type": "json_object", "schema": {"const": {"a": [1, None, "ä"]}}}
        answer = server.chat(response_format=wanted, max_tokens=100).json["choices"][0]
        assert json.loads(answer["message"]["content"]) == {"a": [1, None, "ä"]} and answer["finish_reason"] == "stop"

    def test_any_object_begins_as_one(self, client: Any) -> None:
        text = ask(client, response_format={"type": "json_object"}).choices[0].message.content
        assert text.startswith("{")

    def test_the_text_says_nothing_of_the_grammar_once_it_is_gone(self, client: Any, model: Pmpd) -> None:
        ask(client, response_format={"type": "json_object"})
        assert ask(client).choices[0].message.content == text_of(expected(model, SENTENCE))


class TestTools:
    @pytest.mark.parametrize("choice", [NAMED, "required"], ids=["named", "required"])
    def test_a_settled_tool_is_called_with_its_parameters(self, client: Any, choice: Any) -> None:
        got = ask(client, tools=[TOOL], tool_choice=choice).choices[0]
        assert got.finish_reason == "tool_calls" and got.message.content is None
        (call,) = got.message.tool_calls
        assert call.function.name == "set_light" and isinstance(json.loads(call.function.arguments)["on"], bool)

    def test_a_call_is_streamed(self, client: Any) -> None:
        parts = list(ask(client, tools=[TOOL], tool_choice=NAMED, stream=True))
        calls = [part.choices[0].delta.tool_calls[0] for part in parts if part.choices[0].delta.tool_calls]
        assert calls[0].function.name == "set_light" and calls[0].id
        assert isinstance(json.loads("".join(call.function.arguments for call in calls))["on"], bool)
        assert parts[-1].choices[0].finish_reason == "tool_calls"

    @pytest.mark.parametrize("choice", ["auto", "none", None])
    def test_otherwise_the_answer_is_text(self, client: Any, choice: Any) -> None:
        got = ask(client, tools=[TOOL], tool_choice=choice or openai.NOT_GIVEN).choices[0]
        assert got.message.content and not got.message.tool_calls

    def test_a_tool_that_is_not_there_is_refused(self, client: Any) -> None:
        with pytest.raises(openai.BadRequestError, match="not among tools"):
            ask(client, tools=[TOOL], tool_choice={"type": "function", "function": {"name": "other"}})


class TestReuse:
    """The default model's template writes the last message only, so turns are token ids here."""

    @pytest.mark.parametrize("options", [{"method": "high"}, {"method": "low"}, {}, {"high_steps": 0}], ids=str)
    def test_a_prefix_is_kept_across_turns_as_the_model_alone_does(
        self, server: Server, model: Pmpd, options: dict[str, Any]
    ) -> None:
        server.request("POST", "/v1/completions", {"prompt": [7, 8, 9], "max_tokens": 1})
        model.reset()
        model.configure(**options)
        said, reused = render(model, messages(SENTENCE)).tokens, []
        for _ in range(3):
            body = {"prompt": said, "max_tokens": 30, "pmpd": options}
            timings = server.request("POST", "/v1/completions", body).json["timings"]
            answer = [token.id for token in stream(model, said, Sampling(), 30)]
            assert timings["prompt_reused_n"] == model.stats.reused_tokens
            assert timings["prompt_n"] == len(said) - model.stats.reused_tokens
            reused.append(model.stats.reused_tokens)
            said = [*said, *answer[:-1], *said[1:6]]
        assert reused[0] < reused[1] < reused[2]

    def test_a_conversation_is_answered_as_in_a_fresh_process(self, server: Server, model: Pmpd) -> None:
        said = [*messages(SENTENCE), {"role": "assistant", "content": "A man."}, *messages(SENTENCES[1])]
        for options in ({"method": "low"}, {"method": "high"}, {}, {"method": "low"}):
            model.reset()
            model.configure(**options)
            prompt = render(model, said)
            right = text_of(list(stream(model, prompt.tokens, Sampling(), 64, prompt.stop)))
            reply = server.request("POST", "/v1/chat/completions", {"messages": said, "pmpd": options}).json
            assert reply["choices"][0]["message"]["content"] == right


class TestInformation:
    def test_props_say_what_requests_may_choose(self, server: Server, model: Pmpd) -> None:
        said = server.get("/props").json
        assert (said["model"], said["n_ctx"]) == (model.bundle.name, model.n_ctx())
        assert [level["precision"] for level in said["levels"]] == list(model.bundle.precisions)
        assert all(level["bytes"] > 0 and level["types"] for level in said["levels"])
        for scheduler in said["schedulers"]:
            assert server.chat(max_tokens=3, pmpd={"scheduler": scheduler}).status == 200, scheduler
        assert "learned" not in said["schedulers"] and said["methods"] == ["pmpd", "high", "low", "lossless"]
        assert said["memory"]["resident"] >= said["memory"]["anonymous"] > 0

    def test_metrics_count_tokens(self, server: Server) -> None:
        before = server.metric("predicted_tokens_total"), server.metric("requests_total")
        made = server.chat().json["usage"]["completion_tokens"]
        assert server.metric("predicted_tokens_total") == before[0] + made
        assert server.metric("requests_total") >= before[1] + 3

    def test_probabilities_are_the_exponentials_of_logprobs(self, server: Server) -> None:
        said = server.chat(logprobs=True).json
        content = said["choices"][0]["logprobs"]["content"]
        shown = [token["probability"] for token in said["pmpd"]["tokens"]]
        assert shown == pytest.approx([math.exp(token["logprob"]) for token in content])

    def test_a_stream_is_one_of_server_sent_events(self, server: Server) -> None:
        connection = server.connect()
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(chat_body(stream=True)), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        assert response.getheader("Content-Type", "").startswith("text/event-stream")
        assert all(part["object"] == "chat.completion.chunk" for part in chunks(response))
        connection.close()
