"""A server of the binary under test, with tiny models, for checks that speak to it through OpenAI's client.

Used by every module of checks. Nothing here reaches beyond 127.0.0.1.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures"

# A template in the spelling of Hermes and Qwen: the smallest that knows of tools.
TOOL_TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools> answer with <tool_call>{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

MODEL = "file:chat-tiny"
TOOL_MODEL = "file:tool-tiny"
CLASSIFIER = "file:bert-tiny"
KEY = "sk-of-these-checks"


class Server:
    """Starts the binary on a free port; ends with the context."""

    def __init__(self, binary: str, *flags: str):
        self.binary, self.flags = os.path.abspath(binary), flags

    def __enter__(self) -> "Server":
        self.folder = tempfile.TemporaryDirectory(prefix="conformance-")
        root = pathlib.Path(self.folder.name)
        models = root / "models"
        shutil.copytree(FIXTURES / "decoders" / "chat-tiny", models / "chat-tiny")
        shutil.copytree(FIXTURES / "decoders" / "chat-tiny", models / "tool-tiny")
        shutil.copytree(FIXTURES / "bert-tiny", models / "bert-tiny")
        config = models / "tool-tiny" / "tokenizer_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": TOOL_TEMPLATE}))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TUNESMITH_")}
        environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(root / "hf"), "TUNESMITH_CACHE": str(root / "cache")}
        command = [self.binary, "serve", "--port", "0", "--data-dir", str(root / "data"), "--model-dir", str(models),
                   "--api-key", KEY, "--workers", "1", "--worker-threads", "1", *self.flags]
        self.log = open(root / "log", "w+b")
        self.process = subprocess.Popen(command, cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log)
        line = self.process.stdout.readline().decode()
        if not line.startswith("tunesmith listening on "):
            self.process.wait()
            raise SystemExit(f"the server did not start: {self.last_words()}")
        self.url = line.removeprefix("tunesmith listening on ").strip()
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = "killed: it did not end within 30 s of SIGTERM"
        self.log.close()
        self.folder.cleanup()
        assert status == 0, f"the server's exit status is {status}"

    def last_words(self) -> str:
        """The end of the server's log."""
        self.log.flush()
        self.log.seek(0)
        return self.log.read().decode(errors="replace")[-2000:]
