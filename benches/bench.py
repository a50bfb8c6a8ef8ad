"""Ours and what users would run instead, in turn on the same shapes and weights; writes a table and a plot into benches/results/.

The files are named after the CPU, since only figures of one run on one machine compare. Run it while nothing else does: `just bench`.
The interpreter needs the packages of the peers (torch, transformers, peft, onnxruntime, openvino, gguf, llama-cpp-python,
onednn-cpu-gomp); a peer that cannot run is left out, and the table says so.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import machine
import report

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "target" / "release" / "examples"
ENCODER, DECODER = "all-minilm-l6-v2", "smollm2-135m-instruct"


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    p.add_argument("--turns", type=int, default=5, help="pairs of measurements, whose medians count")
    p.add_argument("--seconds", type=float, default=8, help="of each measurement")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--peers", type=pathlib.Path, default=pathlib.Path(os.environ.get("PEERS", ROOT.parent / "shared" / "peers")))
    p.add_argument("--skip-peers", action="store_true")
    p.add_argument("--out", type=pathlib.Path, default=ROOT / "benches" / "results")
    return p.parse_args()


class Bench:
    """The commands of this run, and the lines that they print."""

    def __init__(self, a):
        self.a, self.lines, self.missing, self.models = a, [], set(), {}
        self.dtypes = ["f32", "bf16"] if machine.has_bf16() else ["f32"]

    def model(self, name):
        """The folder or file of a model of the catalogue."""
        if name not in self.models:
            out = subprocess.run([ROOT / "target/release/tunesmith", "pull", name], capture_output=True, text=True, check=True).stdout
            self.models[name] = next(line.split(": ", 1)[1] for line in out.splitlines() if line.startswith(name + ": "))
        return self.models[name]

    def ours(self, example, *flags):
        # As `serve` and `worker` set it for themselves.
        env = {**os.environ, "MIMALLOC_PURGE_DELAY": "60000"}
        out = subprocess.run([EXAMPLES / example, *map(str, flags)], capture_output=True, text=True, env=env, check=True).stdout
        self.take(out, {})

    def peer(self, script, label, *flags):
        """Runs a peer's script with this interpreter; `label` is what the table calls it."""
        path = ROOT / "benches" / script if (ROOT / "benches" / script).exists() else self.a.peers / script
        if self.a.skip_peers or (script, label) in self.missing:
            return
        run = subprocess.run([sys.executable, path, *map(str, flags)], capture_output=True, text=True)
        if run.returncode:
            self.missing.add((script, label))
            reason = (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]
            print(f"left out: {script} with {label}: {reason}", file=sys.stderr)
            return
        self.take(run.stdout, {"peer": label})

    def take(self, out, more):
        for line in out.splitlines():
            if line.startswith("{"):
                row = {**json.loads(line), **more}
                self.lines.append(row)
                print(json.dumps(row), flush=True)

    def common(self, **more):
        flags = {"threads": self.a.threads, "seconds": self.a.seconds, **more}
        return [word for name, value in flags.items() for word in (f"--{name}", value)]


def kernels(b):
    b.ours("gemm_rate", b.a.threads)
    for script, label in (("products.py", "torch"), ("onednn.py", "oneDNN")):
        b.peer(script, label, "--threads", b.a.threads, "--dtypes", *b.dtypes)


def train_encoder(b, batch=16, length=128, tunings=("full", "lora"), dtypes=None):
    for tuning in tunings:
        flags = b.common(tuning=tuning, batch=batch, length=length)
        b.ours("train_encoder", "--model", b.model(ENCODER), "--dtype", "auto", *flags)
        for dtype in dtypes or b.dtypes:
            b.peer("train_encoder.py", f"PyTorch {dtype}", *flags, "--dtype", dtype)


def train_causal(b):
    for tuning in ("full", "lora"):
        flags = b.common(tuning=tuning, batch=4, length=256)
        b.ours("train_causal", "--model", b.model(DECODER), *flags)
        for dtype in b.dtypes:
            b.peer("train_causal.py", f"PyTorch {dtype}", *flags, "--dtype", dtype)


def embed(b, batch=32, length=64, threads=None, engines=("ort", "openvino", "torch-f32", "torch-bf16")):
    flags = b.common(batch=batch, length=length, threads=threads or b.a.threads)
    for dtype in (*b.dtypes, "int8"):
        b.ours("embed", "--model", b.model(ENCODER), "--dtype", dtype, *flags)
    for engine in engines:
        if engine != "torch-bf16" or "bf16" in b.dtypes:
            name = {"ort": "ONNX Runtime", "openvino": "OpenVINO"}.get(engine, engine.replace("torch-", "PyTorch "))
            b.peer("embed.py", name, *flags, "--engine", engine)


def generate(b):
    b.ours("generate", "--model", b.model(DECODER), *b.common())
    b.peer("generate_llamacpp.py", "llama.cpp", *b.common())


def growth(b):
    """How speed changes with one of batch, length and threads at a time."""
    for batch in (1, 8, 128):
        embed(b, batch=batch, engines=("ort",))
    for length in (16, 128, 256):
        embed(b, length=length, engines=("ort",))
    for threads in range(1, b.a.threads):
        embed(b, threads=threads, engines=("ort",))
    for batch, length in ((4, 128), (64, 128), (16, 32), (16, 256)):
        train_encoder(b, batch, length, tunings=("lora",), dtypes=("f32",))


PARTS = {"kernels": kernels, "train-encoder": train_encoder, "train-language": train_causal, "embed": embed, "generate": generate,
         "growth": growth}
# What is only to show a shape, or takes long, is measured once.
ONCE = {"growth"}


def main():
    a = arguments()
    b = Bench(a)
    a.out.mkdir(parents=True, exist_ok=True)
    for turn in range(a.turns):
        for part in a.parts:
            if turn == 0 or part not in ONCE:
                PARTS[part](b)
        # After every turn, so that a run that is broken off leaves what it has.
        report.write(b.lines, a.out / machine.slug(), turn + 1, a.seconds)


if __name__ == "__main__":
    main()
