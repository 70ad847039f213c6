"""From a request to the answers that it asks for: prompts as tokens, and how each answer is made.

Nothing here evaluates anything, so that a request that cannot be answered is refused before it waits for its turn.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pmpd_edge.bundle import Bundle
from pmpd_edge.chat_template import Prompt, render
from pmpd_edge.errors import ContextFullError, PmpdError
from pmpd_edge.lossless.drafter import obstacle
from pmpd_edge.schedule import METHODS, Scheduler
from pmpd_edge.schedule.patterns import PATTERNS
from pmpd_edge.schedule.spec import make_scheduler
from pmpd_edge.serve import embedding, schema
from pmpd_edge.serve.embedding import EmbeddingTask
from pmpd_edge.serve.errors import ApiError, bad_request
from pmpd_edge.serve.grammar import Grammar
from pmpd_edge.serve.requests import (
    MAX_PROMPTS,
    AnswerRequest,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    NamedTool,
    PmpdOptions,
    ResponseFormat,
    Tool,
    one_by_one,
)
from pmpd_edge.stream import Sampling

if TYPE_CHECKING:
    from pmpd_edge.runner import Pmpd

SEEDS = 2**32 - 1  # the last of 32 bits means another seed each time to llama.cpp
COMPLETION_TOKENS = 16  # OpenAI's default
LEAST_TEMPERATURE = 0.01  # logits divided by less overflow; what is sampled then is the likeliest anyway
_KINDS = ("static", "learned", "confidence", "random", "fixed", *PATTERNS)  # not a module of the user's own


@dataclass(frozen=True)
class Task:
    """One answer to make.

    Attributes:
        method, scheduler, draft_tokens: as `Pmpd.configure` takes them.
        grammar: in llama.cpp's notation, or None.
        n_likeliest: how many of the likeliest tokens come with each.
    """

    prompt: Prompt
    sampling: Sampling
    seed: int
    max_new_tokens: int
    method: str
    scheduler: Scheduler | None
    draft_tokens: int | str = "auto"
    grammar: str | None = None
    n_likeliest: int = 0


def chat_tasks(llm: Pmpd, request: ChatRequest) -> list[Task]:
    """The answers that a chat request asks for; raises ApiError."""
    tool = called_tool(request)
    tools = request.tools if request.tool_choice != "none" else None
    try:
        messages = [message.to_template() for message in request.messages]
        prompt = render(llm, messages, [one.model_dump(exclude_none=True) for one in tools] if tools else None)
    except PmpdError as error:
        raise bad_request(error, "messages") from None
    grammar = _grammar(llm, request.response_format, tool)
    longest = request.max_completion_tokens or request.max_tokens or llm.bundle.schedule.max_new_tokens
    likeliest = request.top_logprobs or 0 if request.logprobs else 0
    return _tasks(llm, request, [prompt], longest, grammar, likeliest, "messages")


def completion_tasks(llm: Pmpd, request: CompletionRequest) -> list[Task]:
    """The answers that a completion request asks for, all of the first prompt first; raises ApiError."""
    prompts = [Prompt(_tokens(llm, prompt)) for prompt in one_by_one(request.prompt)]
    if len(prompts) * (request.n or 1) > MAX_PROMPTS:
        raise ApiError(400, f"more than {MAX_PROMPTS} answers to one request: ask for fewer", param="n")
    longest = request.max_tokens or COMPLETION_TOKENS
    return _tasks(llm, request, prompts, longest, None, request.logprobs or 0, "prompt")


def embedding_tasks(llm: Pmpd, request: EmbeddingRequest) -> list[EmbeddingTask]:
    """The texts that a request wants embedded; raises ApiError."""
    if embedding.pooling(llm) is None:
        text = f"{llm.bundle.name} ranks texts, and gives no embeddings"
        raise ApiError(404, text, code="model_not_found", param="model")
    prompts = [Prompt(_tokens(llm, text, "input", add_special=True)) for text in one_by_one(request.input)]
    for prompt in prompts:
        _check_length(llm, prompt, llm.n_ctx(), "input")
    return [EmbeddingTask(prompt) for prompt in prompts]


def called_tool(request: ChatRequest) -> Tool | None:
    """The tool that the answer has to call, if it is settled which one; raises ApiError where there is no such."""
    tools, choice = request.tools or [], request.tool_choice
    if isinstance(choice, NamedTool):
        for tool in tools:
            if tool.function.name == choice.function.name:
                return tool
        raise ApiError(400, "tool_choice names a function that is not among tools", param="tool_choice")
    if choice == "required":
        if len(tools) != 1:
            raise ApiError(400, "tool_choice 'required' needs exactly one tool: name one", param="tool_choice")
        return tools[0]
    return None


def schedulers(bundle: Bundle) -> list[str]:
    """The schedulers that work for a bundle, as requests name them."""
    fixed = [f"fixed:{precision}" for precision in bundle.precisions]
    candidates = ["static", "learned", "confidence", "random", *(f"{name}:0.5" for name in PATTERNS), *fixed]
    return [name for name in candidates if _works(name, bundle)]


def _works(name: str, bundle: Bundle) -> bool:
    try:
        make_scheduler(name, bundle)
    except PmpdError:
        return False
    return True


def _tasks(
    llm: Pmpd,
    request: AnswerRequest,
    prompts: Sequence[Prompt],
    longest: int,
    grammar: str | None,
    n_likeliest: int,
    param: str,
) -> list[Task]:
    """`n` tasks for each prompt, each with another seed."""
    for prompt in prompts:
        if not prompt.tokens:
            raise ApiError(400, "an empty prompt: give at least one token", param=param)
        _check_length(llm, prompt, llm.n_ctx() - 1, param)
    if request.pmpd.method == "lossless" and (found := obstacle(llm)):
        raise ApiError(400, f"lossless is not possible with {found}: use another method", param="pmpd.method")
    seed = random.randrange(SEEDS) if request.seed is None else request.seed
    task = Task(
        prompt=prompts[0],
        sampling=_sampling(request),
        seed=seed,
        max_new_tokens=min(longest, llm.n_ctx()),
        method=request.pmpd.method,
        scheduler=_scheduler(llm.bundle, request.pmpd),
        draft_tokens=request.pmpd.draft_tokens,
        grammar=grammar,
        n_likeliest=min(n_likeliest, llm.n_vocab()),
    )
    made = []
    for prompt in prompts:
        stopped = Prompt(prompt.tokens, (*prompt.stop, *request.stops))
        for i in range(request.n or 1):
            made.append(replace(task, prompt=stopped, seed=(seed + i) % SEEDS))
    return made


def _check_length(llm: Pmpd, prompt: Prompt, longest: int, param: str) -> None:
    if len(prompt.tokens) > longest:
        text = f"a prompt of {len(prompt.tokens)} tokens in a context of {llm.n_ctx()}"
        raise bad_request(ContextFullError(text, "shorten it, or serve with a larger --ctx-size"), param)


def _sampling(request: AnswerRequest) -> Sampling:
    sampling = request.sampling
    return sampling if sampling.temperature >= LEAST_TEMPERATURE else replace(sampling, temperature=0.0)


def _scheduler(bundle: Bundle, options: PmpdOptions) -> Scheduler | None:
    """The scheduler of a request; whoever can reach the server must not have it import something."""
    assert options.method in METHODS
    name = options.scheduler_name
    if options.method in ("high", "low") or name is None:
        return None
    if name.partition(":")[0] not in _KINDS:
        raise ApiError(400, f"no such scheduler: choose one of {', '.join(_KINDS)}", param="pmpd.scheduler")
    try:
        return make_scheduler(name, bundle, options.high_steps)
    except PmpdError as error:
        raise bad_request(error, "pmpd") from None


def _grammar(llm: Pmpd, wanted: ResponseFormat | None, tool: Tool | None) -> str | None:
    """The grammar that an answer has to keep to; a tool's parameters go before the response format."""
    try:
        if tool:
            text = schema.to_grammar(tool.function.parameters or {"type": "object"})
        elif wanted is None or wanted.type == "text":
            return None
        elif wanted.type == "json_schema" and not wanted.json_schema:
            raise PmpdError("response_format lacks json_schema", "give one")
        else:
            found = wanted.json_schema.schema_ if wanted.json_schema else wanted.schema_
            text = schema.to_grammar(found) if found is not None else schema.ANY_OBJECT
        Grammar(llm, text).close()  # llama.cpp can read it
        return text
    except PmpdError as error:
        raise bad_request(error, "tools" if tool else "response_format") from None


def _tokens(llm: Pmpd, prompt: str | list[int], param: str = "prompt", add_special: bool | None = None) -> list[int]:
    """A prompt as tokens: with what the model begins a text with, as `create_completion` has it.

    Args:
        add_special: also what it ends one with, where its file says so: that belongs to a whole text. To llama_cpp it
            is `add_bos`.
    """
    if isinstance(prompt, str):
        whole = llm._model.add_bos_token() if add_special is None else add_special
        tokens: list[int] = llm.tokenize(prompt.encode(), add_bos=whole, special=True)
        prompt = tokens or [llm.token_bos()]
    if not prompt or not all(0 <= token < llm.n_vocab() for token in prompt):
        raise ApiError(400, f"a prompt needs tokens, with ids below {llm.n_vocab()}", param=param)
    return prompt


def prompt_texts(llm: Pmpd, tasks: Sequence[Task | EmbeddingTask]) -> list[Any]:
    """The prompts as text, for a log that is asked to show them."""
    return [llm.detokenize(task.prompt.tokens, special=True).decode("utf-8", "replace") for task in tasks]
