"""Embeddings through the client, which asks for base64 by itself and unpacks it."""

import asyncio

import openai

from checks import check, raises
from server import CLASSIFIER, MODEL


@check
def a_vector_is_the_same_however_it_is_sent(client):
    plain = client.embeddings.create(model=CLASSIFIER, input="good", encoding_format="float")
    packed = client.embeddings.create(model=CLASSIFIER, input="good")
    assert plain.object == "list" and plain.data[0].object == "embedding" and plain.usage.prompt_tokens == plain.usage.total_tokens > 2
    # The client's own reader makes numbers of base64, in 32 bits.
    assert max(abs(a - b) for a, b in zip(plain.data[0].embedding, packed.data[0].embedding)) < 1e-6
    assert len(plain.data[0].embedding) == len(packed.data[0].embedding) == 32


@check
def vectors_come_in_order_and_do_not_know_of_each_other(client):
    texts = ["good", "the film was bad " * 9, "a", "good"]
    together = client.embeddings.create(model=CLASSIFIER, input=texts).data
    assert [d.index for d in together] == [0, 1, 2, 3] and together[0].embedding == together[3].embedding

    async def apart():
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key=client.api_key, max_retries=0) as each:
            return await asyncio.gather(*(each.embeddings.create(model=CLASSIFIER, input=text) for text in texts))

    assert [got.data[0].embedding for got in asyncio.run(apart())] == [d.embedding for d in together]


@check
def vectors_may_be_shorter_and_not_longer(client):
    assert len(client.embeddings.create(model=CLASSIFIER, input="good", dimensions=5).data[0].embedding) == 5
    raises(openai.BadRequestError, lambda: client.embeddings.create(model=CLASSIFIER, input="good", dimensions=99), "dimensions", "32")
    raises(openai.BadRequestError, lambda: client.embeddings.create(model=MODEL, input="good"), "language model")
