"""The unmodified `openai` client against the built binary: python run.py <binary> [check …].

Needs the packages of requirements.txt and nothing else: the models are the repository's own fixtures. `.ci/run` calls it.
"""

import sys

import openai

import checks
import check_chat  # noqa: F401  (importing registers the checks)
import check_completions  # noqa: F401
import check_embeddings  # noqa: F401
import check_errors  # noqa: F401
import check_jobs  # noqa: F401
import check_leaving  # noqa: F401
import check_responses  # noqa: F401
from server import KEY, Server


def main() -> bool:
    binary, *only = sys.argv[1:]
    with Server(binary) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60)
        held = checks.run(set(only), client)
        if not held:
            print(server.last_words())
        return held


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
