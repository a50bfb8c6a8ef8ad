"""Completions, models and decisions through the client."""

import openai

from checks import check, raises
from server import CLASSIFIER, MODEL


@check
def a_text_and_its_tokens_go_on_alike(client):
    ask = dict(model=MODEL, max_tokens=8, temperature=0)
    text = client.completions.create(**ask, prompt="hello")
    tokens = client.completions.create(**ask, prompt=list(b"hello"))
    lists = client.completions.create(**ask, prompt=[list(b"hello"), list(b"hello")])
    assert text.object == "text_completion" and text.choices == tokens.choices
    assert [c.text for c in lists.choices] == [text.choices[0].text] * 2 and [c.index for c in lists.choices] == [0, 1]
    assert text.usage.prompt_tokens == 5
    streamed = "".join(p.choices[0].text for p in client.completions.create(**ask, prompt="hello", stream=True) if p.choices)
    assert streamed == text.choices[0].text


@check
def echo_and_logprobs_score_a_prompt(client):
    scored = client.completions.create(model=MODEL, prompt="hello", max_tokens=0, echo=True, logprobs=2).choices[0]
    assert scored.text == "hello" and scored.logprobs.tokens == list("hello") and scored.logprobs.text_offset == [0, 1, 2, 3, 4]
    assert scored.logprobs.token_logprobs[0] is None and all(p <= 0 for p in scored.logprobs.token_logprobs[1:])
    assert all(len(top) in (2, 3) for top in scored.logprobs.top_logprobs[1:])


@check
def several_answers_and_seeds(client):
    ask = dict(model=MODEL, prompt="x", max_tokens=12, n=3, seed=11)
    first, second = client.completions.create(**ask), client.completions.create(**ask)
    assert first.choices == second.choices and len({c.text for c in first.choices}) > 1


@check
def models_are_listed_and_read(client):
    client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}], max_tokens=1)
    listed = list(client.models.list())
    assert all(m.object == "model" and m.created >= 0 and m.owned_by for m in listed)
    for model in listed[:2]:
        assert client.models.retrieve(model.id).id == model.id
    raises(openai.NotFoundError, lambda: client.models.retrieve("no-such-model"), "no-such-model")


@check
def decisions_have_probabilities(client):
    answers = client.decisions.create(model=MODEL, input="A long day at the sea.", questions=[
        {"type": "choice", "name": "topic", "instructions": "What is it about?", "choices": [{"value": "sports"}, {"value": "weather"}]},
        {"type": "predicate", "instructions": "It rains."},
        {"type": "score", "instructions": "How good?", "levels": [{"label": "bad"}, {"label": "good"}]},
    ]).answers
    choice, predicate, score = answers
    likely = {p.value: p.probability for p in choice.probabilities}
    assert choice.type == "choice" and choice.name == "topic" and choice.choice == max(likely, key=likely.get)
    assert abs(sum(likely.values()) - 1) < 1e-6 and 0 <= predicate.probability <= 1 and len(score.probabilities) == 2


@check
def what_there_is_no_route_for_is_not_found(client):
    raises(openai.NotFoundError, lambda: client.images.generate(prompt="x", model=MODEL))
    raises(openai.BadRequestError, lambda: client.chat.completions.create(
        model=CLASSIFIER, messages=[{"role": "user", "content": "x"}]), "classifier")
