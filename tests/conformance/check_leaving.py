"""Clients that close their streams: what they asked for stops, and others do not wait for it."""

import asyncio
import time

import openai

from check_chat import body
from checks import check

# So many tokens, none of them an end, that nobody is done before it leaves.
LONG = dict(stream=True, max_tokens=440, temperature=1, logit_bias={"256": -100, "258": -100})


@check
def a_stream_that_is_closed_frees_its_place(client):
    for _ in range(40):
        with client.chat.completions.create(**body("a long story", **LONG)) as stream:
            next(iter(stream))
    begin = time.monotonic()
    client.chat.completions.create(**body("quick", max_tokens=1))
    assert time.monotonic() - begin < 10, "abandoned streams still run"


@check
def a_task_that_is_cancelled_frees_its_place(client):
    async def leave():
        other = openai.AsyncOpenAI(base_url=client.base_url, api_key=client.api_key, max_retries=0, timeout=60)
        asked = {**body("a long story", **LONG), "stream": False, "n": 8}
        tasks = [asyncio.create_task(other.chat.completions.create(**asked)) for _ in range(16)]
        await other.chat.completions.create(**body("beside them", max_tokens=1))
        for task in tasks:
            task.cancel()
        left = await asyncio.gather(*tasks, return_exceptions=True)
        await other.close()
        return left

    assert any(isinstance(end, asyncio.CancelledError) for end in asyncio.run(leave()))
    begin = time.monotonic()
    client.chat.completions.create(**body("quick", max_tokens=1))
    assert time.monotonic() - begin < 10, "abandoned requests still run"
