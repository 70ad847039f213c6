"""OpenAI's documents, made from answers: whole ones, and the chunks of streams."""

from __future__ import annotations

import base64
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pmpd_edge.serve.embedding import Embedded, Vector
from pmpd_edge.serve.worker import Answer, Step
from pmpd_edge.stats import GenerationStats
from pmpd_edge.stream import Candidate, Token

LEAST_LOGPROB = -9999.0  # OpenAI's word for what is impossible; JSON has no infinity

Document = dict[str, Any]


def summary(answer: Answer, scheduler: str | None) -> Document:
    """What `pmpd` says about a whole answer."""
    stats = answer.stats
    return {
        "method": stats.method,
        "scheduler": scheduler,
        "prefill_precision": stats.prefill_precision,
        "precisions": stats.precisions,
        "switches": [{"step": switch.step, "precision": switch.precision} for switch in stats.switches],
        "average_bitwidth": stats.average_bitwidth,
        "average_bpw": stats.average_bpw,
        "tokens": [_token(token) for token in answer.tokens],
        **({"drafting": stats.drafting.to_dict()} if stats.drafting else {}),
    }


def timings(stats: GenerationStats) -> Document:
    """The times of an answer, named as llama.cpp's server names them; `prompt_n` counts what was evaluated."""
    return {
        "prompt_n": stats.prompt_tokens - stats.reused_tokens,
        "prompt_reused_n": stats.reused_tokens,
        "prompt_ms": 1000 * stats.prefill_seconds,
        "prompt_per_second": stats.prefill_tokens_per_second,
        "predicted_n": len(stats.precisions),
        "predicted_ms": 1000 * stats.decode_seconds,
        "predicted_per_second": stats.decode_tokens_per_second,
    }


def usage(answers: Sequence[Answer], n: int) -> Document:
    """OpenAI's count of tokens: each prompt once, end-of-answer tokens too; `n` answers in a row share a prompt."""
    prompts = [answer.stats for answer in answers[::n]]
    prompt = sum(stats.prompt_tokens for stats in prompts)
    completion = sum(len(answer.stats.precisions) for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(stats.reused_tokens for stats in prompts)},
    }


@dataclass
class Writer:
    """Writes the documents of one request.

    Args:
        model: the model's name.
        is_chat: a chat's documents, or a plain completion's.
        scheduler: its name, or None where there is none.
        n: answers to each prompt.
        tool: the function that the answer calls; its text are the arguments.
        logprobs: whether the answer shows probabilities in OpenAI's way.
        include_usage: whether a stream ends with the usage.
    """

    model: str
    is_chat: bool
    scheduler: str | None
    n: int = 1
    tool: str | None = None
    logprobs: bool = False
    include_usage: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[Answer]) -> Document:
        """The response that is not streamed."""
        choices = [self._choice(answer) for answer in answers]
        if len(answers) > 1:
            for choice, answer in zip(choices, answers, strict=True):
                choice |= self._figures(answer)
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": usage(answers, self.n), **self._figures(answers[0])}

    def first_chunk(self, index: int) -> Document | None:
        """What a stream begins an answer with; plain completions have nothing to say then."""
        if not self.is_chat:
            return None
        delta: Document = {"role": "assistant", "content": None if self.tool else ""}
        if self.tool:
            function = {"name": self.tool, "arguments": ""}
            delta["tool_calls"] = [{"index": 0, "id": self._call(index), "type": "function", "function": function}]
        return self._chunk(self._part(index, delta))

    def text_chunk(self, steps: Sequence[Step]) -> Document:
        """The chunk of a text that the last of these steps completed; they are of one answer."""
        last, tokens = steps[-1], [step.token for step in steps]
        text = "".join(token.text for token in tokens)
        arguments = [{"index": 0, "function": {"arguments": text}}]
        delta: Document = {"tool_calls": arguments} if self.tool else {"content": text}
        chunk = self._chunk(self._part(last.index, delta if self.is_chat else text, tokens))
        chunk["pmpd"] = {
            "tokens": [_token(token) for token in tokens],
            "precision": last.token.precision,
            "average_bitwidth": last.average_bitwidth,
            "decode_tokens_per_second": last.decode_tokens_per_second,
        }
        return chunk

    def last_chunk(self, answer: Answer, unsent: Sequence[Step]) -> Document:
        """The end of an answer; `unsent` are the steps after the last that added text."""
        tokens = [step.token for step in unsent]
        part = self._part(answer.index, {} if self.is_chat else "", tokens, self._finish(answer))
        return {**self._chunk(part), **self._figures(answer)}

    def usage_chunk(self, answers: Sequence[Answer]) -> Document:
        """What a stream ends with where the usage was asked for."""
        return {**self._chunk(), "usage": usage(answers, self.n)}

    def _figures(self, answer: Answer) -> Document:
        return {"timings": timings(answer.stats), "pmpd": summary(answer, self.scheduler)}

    def _head(self, kind: str) -> Document:
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, *choices: Document) -> Document:
        head = self._head("chat.completion.chunk" if self.is_chat else "text_completion")
        return {**head, "choices": list(choices), **({"usage": None} if self.include_usage else {})}

    def _choice(self, answer: Answer) -> Document:
        choice = {
            "index": answer.index,
            "logprobs": self._logprobs(answer.tokens),
            "finish_reason": self._finish(answer),
        }
        if not self.is_chat:
            return {**choice, "text": answer.text}
        message: Document = {"role": "assistant", "content": answer.text, "refusal": None}
        if self.tool:
            function = {"name": self.tool, "arguments": answer.text}
            message["content"] = None
            message["tool_calls"] = [{"id": self._call(answer.index), "type": "function", "function": function}]
        return {**choice, "message": message}

    def _part(
        self, index: int, content: Document | str, tokens: Sequence[Token] = (), finish: str | None = None
    ) -> Document:
        """A choice of a chunk."""
        logprobs = self._logprobs(tokens) if tokens else None
        key = "delta" if self.is_chat else "text"
        return {"index": index, key: content, "logprobs": logprobs, "finish_reason": finish}

    def _finish(self, answer: Answer) -> str:
        why = answer.tokens[-1].finish
        reason = "length" if why == "context" else why  # OpenAI has one word for both
        return "tool_calls" if self.tool and reason == "stop" else reason

    def _call(self, index: int) -> str:
        return f"call_{self.id}_{index}"

    def _logprobs(self, tokens: Sequence[Token]) -> Document | None:
        if not self.logprobs:
            return None
        return _chat_logprobs(tokens) if self.is_chat else _completion_logprobs(tokens)


def embeddings(model: str, texts: Sequence[Embedded], encoding: str) -> Document:
    """The response to a request for embeddings."""
    n_tokens = sum(text.stats.prompt_tokens for text in texts)
    return {
        "object": "list",
        "model": model,
        "data": [
            {"object": "embedding", "index": text.index, "embedding": _vector(text.vector, encoding)} for text in texts
        ],
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        "pmpd": {"precision": texts[0].stats.prefill_precision},
    }


def _vector(vector: Vector, encoding: str) -> list[float] | str:
    """Numbers, or the base64 of little-endian float32: OpenAI's own client asks for that."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector.tolist()


def _token(token: Token) -> Document:
    probability = math.exp(token.sampled.logprob) if token.sampled else None
    return {"text": token.text, "precision": token.precision, "probability": probability, "drafted": token.drafted}


def _logprob(candidate: Candidate) -> float:
    return max(candidate.logprob, LEAST_LOGPROB)


def _candidate(candidate: Candidate) -> Document:
    return {
        "token": candidate.piece.decode("utf-8", "replace"),
        "logprob": _logprob(candidate),
        "bytes": list(candidate.piece),
    }


def _chat_logprobs(tokens: Sequence[Token]) -> Document:
    content = [
        {**_candidate(token.sampled), "top_logprobs": [_candidate(other) for other in token.likeliest]}
        for token in tokens
        if token.sampled
    ]
    return {"content": content, "refusal": None}


def _completion_logprobs(tokens: Sequence[Token]) -> Document:
    sampled = [token.sampled for token in tokens if token.sampled]
    pieces = [candidate.piece.decode("utf-8", "replace") for candidate in sampled]
    return {
        "tokens": pieces,
        "token_logprobs": [_logprob(candidate) for candidate in sampled],
        "top_logprobs": [
            {other.piece.decode("utf-8", "replace"): _logprob(other) for other in token.likeliest} for token in tokens
        ],
        "text_offset": [sum(map(len, pieces[:i])) for i in range(len(pieces))],
    }
