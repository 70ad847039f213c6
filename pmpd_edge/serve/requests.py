"""The bodies of requests: OpenAI's fields as far as they can be honoured, and ours under `pmpd`.

Fields that are not known are ignored, as clients send many. Those that would change the answer and are not supported
are refused. Everything that costs time or memory is bounded here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pmpd_edge.stream import Sampling

MAX_ANSWERS = 8  # to one request
MAX_LIKELIEST = 20  # beside a token's own probability, as OpenAI has it
MAX_STOPS, MAX_STOP_LENGTH = 16, 256
MAX_PROMPTS = 16
MAX_DRAFTS = 64  # as on the command line
MAX_TEXTS = 2048  # to be embedded, as OpenAI has it


def _whole(value: Any) -> Any:
    """100.0 is an integer to JSON, and all that some languages can write."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_whole)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Stop = Annotated[str, Field(max_length=MAX_STOP_LENGTH)]
TokenId = Annotated[Integer, Field(ge=0, lt=2**31)]
Ids = Annotated[list[TokenId], Field(min_length=1)]


def _few(most: int) -> Any:
    """Bounds of a list of prompts."""
    return Field(min_length=1, max_length=most)


Prompts = str | Ids | Annotated[list[str], _few(MAX_PROMPTS)] | Annotated[list[Ids], _few(MAX_PROMPTS)]
Text = Annotated[str, Field(min_length=1)]
Texts = Text | Ids | Annotated[list[Text], _few(MAX_TEXTS)] | Annotated[list[Ids], _few(MAX_TEXTS)]


def one_by_one(prompts: Prompts | Texts) -> list[str | list[int]]:
    """What a request gives as one text, one list of ids, or several of either."""
    single = isinstance(prompts, str) or all(isinstance(part, int) for part in prompts)
    made: Any = [prompts] if single else prompts
    return made


class PmpdOptions(BaseModel):
    """How precisions are chosen; the names are those of the command line."""

    method: Literal["pmpd", "high", "low", "lossless"] = "pmpd"
    scheduler: str | None = Field(
        default=None,
        max_length=200,
        description="A specification as `pmpd-edge chat` takes it; static, and for lossless none, unless it is given.",
    )
    high_steps: Integer | None = Field(default=None, ge=0, lt=2**31, description="Steps before the first switch.")
    draft_tokens: Annotated[Integer, Field(ge=1, le=MAX_DRAFTS)] | Literal["auto"] = Field(
        default="auto", description="For lossless: tokens to draft at a time."
    )

    @property
    def scheduler_name(self) -> str | None:
        """The scheduler that decides, by its name; None where `lossless` has none."""
        has_none = self.method == "lossless" and self.high_steps is None
        return self.scheduler or (None if has_none else "static")


class StreamOptions(BaseModel):
    include_usage: bool = False


class AnswerRequest(BaseModel):
    """What requests for chats and for plain completions share."""

    model_config = ConfigDict(populate_by_name=True)

    model: str | None = Field(None, description="There is one model: any name is taken for it.")
    max_tokens: Integer | None = Field(None, ge=1, lt=2**31)
    temperature: Finite | None = Field(None, ge=0, le=2)
    top_p: Finite | None = Field(None, ge=0, le=1)
    top_k: Integer | None = Field(None, ge=0, lt=2**31)
    min_p: Finite | None = Field(None, ge=0, le=1)
    repeat_penalty: Finite | None = Field(None, gt=0, le=10)
    frequency_penalty: Finite | None = Field(None, ge=-2, le=2)
    presence_penalty: Finite | None = Field(None, ge=-2, le=2)
    seed: Integer | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    n: Integer | None = Field(None, ge=1, le=MAX_ANSWERS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0, description="Not supported.")
    user: str | None = None
    pmpd: PmpdOptions = Field(default_factory=PmpdOptions)

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen: what the request says, and the command line's defaults."""
        given = {name: getattr(self, name) for name in Sampling.__dataclass_fields__}
        return Sampling(**{name: value for name, value in given.items() if value is not None})

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(BaseModel):
    """A part of a message; there are models for pictures, but none here."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    def to_template(self) -> dict[str, Any]:
        """The message as chat templates take it."""
        content = self.content or ""
        text = content if isinstance(content, str) else "\n".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        more = self.model_dump(include={"name", "tool_calls", "tool_call_id"}, exclude_none=True)
        return {"role": role, "content": text, **more}


class Function(BaseModel):
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    type: Literal["function"]
    function: Function


class NamedFunction(BaseModel):
    name: str


class NamedTool(BaseModel):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    name: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(BaseModel):
    """OpenAI's, and `schema` beside `json_object` as llama.cpp's server has it."""

    model_config = ConfigDict(populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class ChatRequest(AnswerRequest):
    """The body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Integer | None = Field(None, ge=1, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: Integer | None = Field(None, ge=0, le=MAX_LIKELIEST)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None


class CompletionRequest(AnswerRequest):
    """The body of `/v1/completions`."""

    prompt: Prompts = Field(description="Texts, or ids of tokens.")
    logprobs: Integer | None = Field(None, ge=0, le=MAX_LIKELIEST)
    best_of: Integer | None = Field(None, ge=1, le=1, description="Only 1.")
    echo: Literal[False] | None = Field(None, description="Not supported.")
    suffix: Literal[""] | None = Field(None, description="Not supported.")


class EmbeddingRequest(BaseModel):
    """The body of `/v1/embeddings`."""

    model: str | None = None
    input: Texts = Field(description="Texts, or ids of tokens.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = Field(None, description="Not supported.")
    user: str | None = None
