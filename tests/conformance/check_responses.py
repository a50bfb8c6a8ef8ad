"""Responses through the client: created, streamed in order, kept, continued, cancelled."""

import json
import time

import openai

from check_chat import TOOLS, body
from checks import check, raises
from server import MODEL, TOOL_MODEL

ASK = dict(model=MODEL, max_output_tokens=12, temperature=0)


@check
def a_response_says_what_a_chat_says(client):
    response = client.responses.create(**ASK, input="hello")
    chat = client.chat.completions.create(**body("hello"))
    assert response.output_text == chat.choices[0].message.content
    assert response.object == "response" and response.status in ("completed", "incomplete") and response.error is None
    assert response.usage.input_tokens == chat.usage.prompt_tokens and response.usage.output_tokens == chat.usage.completion_tokens


@check
def events_come_typed_and_in_order(client):
    whole = client.responses.create(**ASK, input="stream")
    events = list(client.responses.create(**ASK, input="stream", stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    kinds = [e.type.removeprefix("response.") for e in events]
    deltas = kinds.count("output_text.delta")
    assert kinds == ["created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * deltas,
                     "output_text.done", "content_part.done", "output_item.done", whole.status], kinds
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert events[-1].response.output_text == whole.output_text
    schema = {"type": "json_schema", "name": "word", "schema": {"enum": ["yes", "no"]}}
    with client.responses.stream(**ASK, input="stream", text={"format": schema}) as stream:
        assert stream.get_final_response().output_text in ('"yes"', '"no"')


@check
def a_response_is_kept_continued_and_deleted(client):
    first = client.responses.create(**ASK, input="one", instructions="Be brief.", metadata={"k": "v"})
    assert client.responses.retrieve(first.id) == first and first.metadata == {"k": "v"}
    second = client.responses.create(**ASK, input=[{"role": "user", "content": "two"}], previous_response_id=first.id)
    assert second.previous_response_id == first.id and second.usage.input_tokens > first.usage.input_tokens
    items = list(client.responses.input_items.list(second.id, order="asc", limit=1))
    assert [getattr(i, "role", None) for i in items] == ["user", "assistant", "user"], items
    client.responses.delete(first.id)
    raises(openai.NotFoundError, lambda: client.responses.retrieve(first.id), first.id)
    raises(openai.NotFoundError, lambda: client.responses.create(**ASK, input="x", previous_response_id=second.id), first.id, second.id)
    unkept = client.responses.create(**ASK, input="one", store=False)
    raises(openai.NotFoundError, lambda: client.responses.retrieve(unkept.id))


@check
def a_response_in_the_background_ends_or_is_cancelled(client):
    def ended(response):
        until = time.monotonic() + 60
        while response.status in ("queued", "in_progress") and time.monotonic() < until:
            response = client.responses.retrieve(response.id)
        return response

    done = ended(client.responses.create(**ASK, input="hello", background=True))
    assert done.output_text == client.responses.create(**ASK, input="hello").output_text
    assert client.responses.cancel(done.id).status == done.status
    running = client.responses.create(model=MODEL, input="a long story", temperature=1, background=True)
    cancelled = client.responses.cancel(running.id)
    assert cancelled.status in ("cancelled", "completed", "incomplete") and client.responses.retrieve(running.id).status == cancelled.status
    foreground = client.responses.create(**ASK, input="x")
    raises(openai.BadRequestError, lambda: client.responses.cancel(foreground.id), "background")


@check
def a_stream_is_left_and_picked_up(client):
    told = []
    for event in client.responses.create(**ASK, input="hello", background=True, stream=True):
        told.append(event)
        if event.type == "response.output_text.delta":
            break
    id, last = told[0].response.id, told[-1].sequence_number
    rest = list(client.responses.retrieve(id, stream=True, starting_after=last, include=["message.output_text.logprobs", "file_search_call.results"]))
    assert [e.sequence_number for e in told + rest] == list(range(len(told) + len(rest)))
    kept = client.responses.retrieve(id, include_obfuscation=False)
    assert rest[-1].response == kept and kept.status in ("completed", "incomplete")
    assert "".join(e.delta for e in told + rest if e.type == "response.output_text.delta") == kept.output_text
    with client.responses.stream(response_id=id, starting_after=1) as stream:
        assert [e.type for e in stream][0] == "response.output_item.added"
    raises(openai.BadRequestError, lambda: client.responses.retrieve(id, extra_query={"colour": 1}), "colour")


@check
def a_function_is_called_and_its_output_goes_back(client):
    tools = [{"type": "function", **TOOLS[0]["function"]}]
    ask = dict(model=TOOL_MODEL, tools=tools, max_output_tokens=200, temperature=0)
    first = client.responses.create(**ask, input="weather?", tool_choice={"type": "function", "name": "weather"})
    call = first.output[0]
    assert call.type == "function_call" and call.name == "weather" and json.loads(call.arguments)["city"] in ("Oslo", "Rome"), first.output
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    second = client.responses.create(**{**ask, "max_output_tokens": 4}, input=[output], previous_response_id=first.id, tool_choice="none")
    assert second.output[0].type == "message"
    kinds = [e.type for e in client.responses.create(**ask, input="weather?", tool_choice="required", stream=True)]
    assert "response.function_call_arguments.done" in kinds and kinds[-1] == "response.completed", kinds


@check
def a_format_is_kept(client):
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"], "additionalProperties": False}
    response = client.responses.create(model=MODEL, input="x", max_output_tokens=100, text={"format": {"type": "json_schema", "name": "n", "schema": schema}})
    assert 0 <= json.loads(response.output_text)["n"] <= 9


@check
def what_a_local_model_cannot_do_is_refused_by_name(client):
    error = raises(openai.BadRequestError, lambda: client.responses.create(**ASK, input="x", tools=[{"type": "web_search"}]), "web_search")
    assert error.param == "tools[0].type"
    raises(openai.BadRequestError, lambda: client.responses.create(**ASK, input="x", reasoning={"effort": "high"}), "reasoning")
    image = [{"role": "user", "content": [{"type": "input_image", "image_url": "x", "detail": "auto"}]}]
    raises(openai.BadRequestError, lambda: client.responses.create(**ASK, input=image), "image")
