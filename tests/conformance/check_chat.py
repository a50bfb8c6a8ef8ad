"""Chats through the client: whole, streamed, many at once, with tools and with schemas."""

import asyncio
import json

import openai
from pydantic import BaseModel

from checks import check
from server import MODEL, TOOL_MODEL

WORDS = "🦙🚀 naïve 東京"
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"], "additionalProperties": False}}},
    {"type": "function", "function": {"name": "clock", "description": "Tells the time."}},
]


def body(text: str, **more) -> dict:
    """A request whose answer is the same every time."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 12, "temperature": 0, **more}


@check
def a_chat_has_every_field_that_the_client_reads(client):
    answer = client.chat.completions.create(**body("hello"))
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and answer.model == MODEL and answer.created > 0
    assert choice.index == 0 and choice.message.role == "assistant" and isinstance(choice.message.content, str)
    assert choice.finish_reason in ("stop", "length") and choice.message.tool_calls is None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@check
def a_stream_gives_the_same_text_then_its_end_then_the_usage(client):
    whole = client.chat.completions.create(**body("stream"))
    parts = list(client.chat.completions.create(**body("stream", stream=True, stream_options={"include_usage": True})))
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == whole.choices[0].message.content
    assert parts[0].choices[0].delta.role == "assistant" and len({p.id for p in parts}) == 1
    assert [p.choices[0].finish_reason for p in parts if p.choices][-1] == whole.choices[0].finish_reason
    assert not parts[-1].choices and parts[-1].usage == whole.usage.model_copy(update={"prompt_tokens_details": parts[-1].usage.prompt_tokens_details})
    assert all(p.usage is None for p in parts[:-1])


@check
def the_client_s_own_reader_of_streams_builds_the_answer(client):
    # It takes an answer that was cut off for a failure, so this one has an end of its own.
    ended = body("again", extra_body={"response_format": {"type": "choice", "choices": ["yes", "no"]}})
    with client.chat.completions.stream(**ended) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds and "content.done" in kinds
    assert final.choices[0].message.content == client.chat.completions.create(**ended).choices[0].message.content


@check
def characters_are_whole_in_every_piece(client):
    schema = {"type": "json_schema", "json_schema": {"name": "t", "strict": True, "schema": {"enum": [WORDS]}}}
    parts = client.chat.completions.create(**body("x", max_tokens=90, response_format=schema, stream=True))
    pieces = [p.choices[0].delta.content or "" for p in parts if p.choices]
    assert json.loads("".join(pieces)) == WORDS and not any("\ufffd" in piece for piece in pieces), pieces


class Weather(BaseModel):
    sunny: bool
    degrees: int


@check
def a_model_of_pydantic_is_filled(client):
    schema = Weather.model_json_schema()
    schema["properties"]["degrees"] |= {"minimum": 0, "maximum": 40}
    parsed = client.chat.completions.create(**body("json", max_tokens=200, response_format={
        "type": "json_schema", "json_schema": {"name": "weather", "schema": schema | {"additionalProperties": False}}}))
    Weather.model_validate_json(parsed.choices[0].message.content)


@check
def log_probabilities_are_objects(client):
    tokens = client.chat.completions.create(**body("go", logprobs=True, top_logprobs=2)).choices[0].logprobs.content
    assert all(t.logprob <= 0 and len(t.top_logprobs) == 2 and t.top_logprobs[0].logprob == t.logprob for t in tokens)


@check
def a_tool_that_must_be_called_is_called(client):
    ask = dict(model=TOOL_MODEL, messages=[{"role": "user", "content": "x"}], tools=TOOLS, max_tokens=300)
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        for seed in range(3):
            answer = client.chat.completions.create(**ask, tool_choice=choice, seed=seed).choices[0]
            if answer.finish_reason == "length":
                continue  # arguments of any shape may take longer than there is room
            call = answer.message.tool_calls[0]
            assert answer.finish_reason == "tool_calls" and call.type == "function" and answer.message.content is None, answer
            arguments = json.loads(call.function.arguments)
            assert call.function.name == "clock" or arguments["city"] in ("Oslo", "Rome"), call
            assert choice == "required" or call.function.name == "weather"
    named = {"type": "function", "function": {"name": "weather"}}
    parts = list(client.chat.completions.create(**ask, tool_choice=named, stream=True, temperature=0))
    calls = [c for p in parts for c in (p.choices[0].delta.tool_calls or [])]
    assert all(c.index == 0 for c in calls) and [c.function.name for c in calls if c.function.name] == ["weather"], calls
    assert calls[0].id and calls[0].type == "function" and len(calls) > 1, "arguments come as they are written"
    assert json.loads("".join(c.function.arguments for c in calls))["city"] in ("Oslo", "Rome")


@check
def an_answer_goes_back_into_the_conversation(client):
    first = client.chat.completions.create(**body("one"))
    messages = [{"role": "user", "content": "one"}, first.choices[0].message, {"role": "user", "content": "two"}]
    assert client.chat.completions.create(**body("", messages=messages)).usage.prompt_tokens > first.usage.prompt_tokens


@check
def the_async_client_gets_the_same_answers_side_by_side(client):
    alone = [client.chat.completions.create(**body(f"say {i}")).choices[0].message.content for i in range(16)]

    async def crowd():
        other = openai.AsyncOpenAI(base_url=client.base_url, api_key=client.api_key, max_retries=0, timeout=60)

        async def whole(i):
            return (await other.chat.completions.create(**body(f"say {i}"))).choices[0].message.content

        async def streamed(i):
            stream = await other.chat.completions.create(**body(f"say {i}", stream=True))
            return "".join([p.choices[0].delta.content or "" async for p in stream if p.choices])

        answers = await asyncio.gather(*[(whole, streamed)[i % 2](i) for i in range(16)])
        await other.close()
        return answers

    assert asyncio.run(crowd()) == alone
