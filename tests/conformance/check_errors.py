"""What is wrong ends in the client's own errors, with OpenAI's code and the field that is meant."""

import openai

from check_chat import body
from checks import check, raises
from server import MODEL


@check
def a_wrong_key_is_an_authentication_error(client):
    other = client.with_options(api_key="sk-another")
    error = raises(openai.AuthenticationError, lambda: other.chat.completions.create(**body("x")))
    assert error.status_code == 401 and error.code == "invalid_api_key"
    raises(openai.AuthenticationError, lambda: other.models.list())


@check
def a_model_that_is_not_there_is_not_found(client):
    error = raises(openai.NotFoundError, lambda: client.chat.completions.create(**body("x", model="no-such")), "no-such")
    assert error.code == "model_not_found" and error.param == "model" and error.type == "invalid_request_error"


@check
def a_wrong_field_is_a_bad_request_that_names_it(client):
    create = client.chat.completions.create
    for more, param in [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"messages": []}, "messages"),
        ({"extra_body": {"tempereture": 1}}, "tempereture"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}}, "response_format"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
    ]:
        error = raises(openai.BadRequestError, lambda more=more: create(**body("x", **more)))
        assert error.status_code == 400 and error.param == param, (more, error.param, str(error))
    raises(openai.BadRequestError, lambda: create(**body("x", messages=[{"role": "wizard", "content": "x"}])), "role")


@check
def a_prompt_that_is_too_long_says_both_numbers(client):
    error = raises(openai.BadRequestError, lambda: client.chat.completions.create(**body("x" * 1_000_000)), "10000", "512")
    assert error.code == "context_length_exceeded"
    raises(openai.BadRequestError, lambda: client.completions.create(model=MODEL, prompt="y" * 600), "600", "512")


@check
def errors_of_the_async_client_are_the_same(client):
    import asyncio

    async def ask():
        other = openai.AsyncOpenAI(base_url=client.base_url, api_key=client.api_key, max_retries=0)
        try:
            await other.chat.completions.create(**body("x", model="no-such"))
        except openai.NotFoundError as error:
            return error.code
        finally:
            await other.close()

    assert asyncio.run(ask()) == "model_not_found"
