#!/usr/bin/env python3
"""Asks a running server with the openai package: models, completions, chat, streams, log-probabilities, errors.

    check_openai.py URL [--api-key KEY]

Prints one line per check; exit 1 when one fails.
"""

import argparse
import sys
from collections.abc import Callable

import openai

Check = Callable[[openai.OpenAI, str], None]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


@check
def models(client: openai.OpenAI, model: str) -> None:
    assert client.models.retrieve(model).id == model


@check
def completion(client: openai.OpenAI, model: str) -> None:
    first = client.completions.create(model=model, prompt="The ", max_tokens=12, seed=7)
    again = client.completions.create(model=model, prompt="The ", max_tokens=12, seed=7)
    assert first.choices[0].text == again.choices[0].text
    assert first.choices[0].finish_reason in ("stop", "length")
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens
    other = client.completions.create(model=model, prompt="The ", max_tokens=12, seed=8, n=3)
    assert [choice.index for choice in other.choices] == [0, 1, 2]
    assert len({choice.text for choice in other.choices}) > 1


@check
def cached_tokens(client: openai.OpenAI, model: str) -> None:
    prompt = "the quick brown fox " * 9
    usages = [client.completions.create(model=model, prompt=prompt, max_tokens=1).usage for _ in range(2)]
    assert usages[1].prompt_tokens_details.cached_tokens > 0, usages


@check
def completion_stream(client: openai.OpenAI, model: str) -> None:
    options = {"model": model, "prompt": "The ", "max_tokens": 20, "seed": 3, "logprobs": 2}
    whole = client.completions.create(**options)
    pieces = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.text for piece in pieces for c in piece.choices) == whole.choices[0].text
    assert pieces[-1].usage == whole.usage
    told = [p for piece in pieces for c in piece.choices for p in c.logprobs.token_logprobs]
    assert told == whole.choices[0].logprobs.token_logprobs


@check
def echo_scores_the_prompt(client: openai.OpenAI, model: str) -> None:
    scored = client.completions.create(model=model, prompt="The end of the", max_tokens=0, echo=True, logprobs=1)
    logprobs = scored.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None and all(p <= 0 for p in logprobs.token_logprobs[1:])
    assert scored.choices[0].text == "The end of the"


@check
def chat(client: openai.OpenAI, model: str) -> None:
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a kernel?"}]
    options = {"model": model, "messages": talk, "max_tokens": 20, "seed": 3, "logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**options)
    content = whole.choices[0].logprobs.content
    assert len(content) == whole.usage.completion_tokens
    assert all(len(token.top_logprobs) == 3 for token in content)
    pieces = list(client.chat.completions.create(**options, stream=True))
    assert pieces[0].choices[0].delta.role == "assistant"
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == whole.choices[0].message.content
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason


@check
def stop_and_bias(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt="The ", max_tokens=60, stop=["e"], seed=1)
    assert "e" not in answer.choices[0].text
    biased = client.completions.create(model=model, prompt="The ", max_tokens=3, logit_bias={"70": 100}, logprobs=0)
    assert len(set(biased.choices[0].logprobs.tokens)) == 1


@check
def errors(client: openai.OpenAI, model: str) -> None:
    def refused(kind: type[openai.APIStatusError], param: str | None, **request) -> None:
        try:
            client.completions.create(**{"model": model, "prompt": "a"} | request)
        except kind as error:
            assert error.body["param"] == param, error.body
            assert error.body["message"], error.body
            return
        raise AssertionError(f"{request} was served")

    refused(openai.BadRequestError, "temperature", temperature=-1)
    refused(openai.BadRequestError, "max_tokens", max_tokens=10**9)
    refused(openai.BadRequestError, "prompt", prompt="word " * 200_000)
    refused(openai.NotFoundError, "model", model="another")


@check
def leaving_early(client: openai.OpenAI, model: str) -> None:
    stream = client.completions.create(model=model, prompt="The ", max_tokens=100, stream=True)
    next(iter(stream))
    stream.close()
    assert client.completions.create(model=model, prompt="The ", max_tokens=1).choices


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the server, without /v1")
    parser.add_argument("--api-key", default="none")
    arguments = parser.parse_args()
    client = openai.OpenAI(base_url=arguments.url + "/v1", api_key=arguments.api_key, max_retries=0)
    model = client.models.list().data[0].id
    failed = 0
    for each in CHECKS:
        try:
            each(client, model)
            print(f"openai {openai.__version__}: {each.__name__}: well")
        except Exception as error:  # every check is to be heard of
            failed += 1
            print(f"openai {openai.__version__}: {each.__name__}: {type(error).__name__}: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
