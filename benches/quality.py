"""AG News through the HTTP API: mean accuracy and macro F1 of three seeds, beside PyTorch's with the same settings.

Run by quality.sh from the repository's root. Ours needs no Python package. Exit status 1: more than a point below the peer.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid

SETTINGS = {"full": 5e-5, "lora": 1e-3}
MARGIN = 0.01


def arguments():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--tunings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    p.add_argument("--seeds", nargs="+", type=int, default=[7, 8, 9])
    p.add_argument("--epochs", type=int, default=2)
    p.add_argument("--dtype", choices=["auto", "f32", "bf16"], default="auto", help="auto: bf16 where the CPU has a unit for it")
    p.add_argument("--model", default="all-minilm-l6-v2")
    p.add_argument("--data", type=pathlib.Path, default=pathlib.Path("../shared/data"))
    p.add_argument("--peers", type=pathlib.Path, default=pathlib.Path("../shared/peers"))
    p.add_argument("--skip-peer", action="store_true")
    a = p.parse_args()
    if a.dtype == "auto":
        a.dtype = "bf16" if {"amx_bf16", "avx512_bf16"} & cpu_flags() else "f32"
    return a


def cpu_flags():
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.split(":", 1)[1].split())
    return set()


class Server:
    """The release binary on a free port with a folder of its own; ends with the `with` block."""

    def __enter__(self):
        binary = os.environ.get("TUNESMITH_BIN", "target/release/tunesmith")
        self.folder = tempfile.TemporaryDirectory(prefix="quality-")
        self.process = subprocess.Popen([binary, "serve", "--port", "0", "--data-dir", self.folder.name],
                                        stdout=subprocess.PIPE, stderr=sys.stderr, text=True)
        line = self.process.stdout.readline()  # one line, with the address, when ready
        if "http://" not in line:
            raise SystemExit(f"the server did not start: {line.strip() or 'see above'}")
        self.url = "http://" + line.split("http://", 1)[1].split()[0].rstrip("/")
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)
        self.folder.cleanup()

    def ask(self, path, body=None, kind="application/json"):
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        request = urllib.request.Request(self.url + path, data, {"Content-Type": kind} if data else {})
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{path}: {error.code} {error.read().decode(errors='replace')[:500]}")

    def upload(self, path):
        border = uuid.uuid4().hex
        body = b"".join([
            f'--{border}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'.encode(),
            f'--{border}\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"\r\n'
            f"Content-Type: application/jsonl\r\n\r\n".encode(), path.read_bytes(), f"\r\n--{border}--\r\n".encode()])
        return self.ask("/v1/files", body, f"multipart/form-data; boundary={border}")["id"]

    def train(self, files, tuning, seed, a, dtype):
        """The settings of the peer: batches of 16, linear to zero without warm-up, LoRA without dropout on query and value.

        Returns the line of the job, and its history.
        """
        lora = {"type": "lora", "r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ["query", "value"], "modules_to_save": ["classifier"]}
        job = self.ask("/v1/fine_tuning/jobs", {
            "model": a.model, "training_file": files[0], "validation_file": files[1], "seed": seed, "task": "classification",
            "tuning": lora if tuning == "lora" else {"type": "full"},
            "training": {"num_train_epochs": a.epochs, "learning_rate": SETTINGS[tuning], "per_device_train_batch_size": 16,
                         "max_length": 128, "weight_decay": 0.01, "max_grad_norm": 1.0, "dtype": dtype, "logging_steps": 1}})
        while job["status"] not in ("succeeded", "failed", "cancelled"):
            time.sleep(2)
            job = self.ask(f"/v1/fine_tuning/jobs/{job['id']}")
        if job["status"] != "succeeded":
            raise SystemExit(f"job {job['status']}: {job['error']}")
        metrics = self.ask(f"/v1/fine_tuning/jobs/{job['id']}/metrics")
        last = [row for row in metrics["log_history"] if "eval_f1" in row][-1]
        line = {"name": "quality_encoder", "tuning": tuning, "dtype": dtype, "lr": SETTINGS[tuning], "seed": seed,
                "accuracy": last["eval_accuracy"], "f1_macro": round(last["eval_f1"], 4),
                "eval_loss": round(last["eval_loss"], 4), "train_seconds": round(metrics["duration_seconds"], 1)}
        return line, metrics["log_history"]


def peer(tuning, a):
    """PyTorch's line, or None with a note where it cannot run."""
    script = a.peers / "quality_encoder.py"
    if a.skip_peer or not script.exists():
        print(f"peer skipped: {'asked to' if a.skip_peer else f'no {script}'}", file=sys.stderr)
        return None
    run = subprocess.run([sys.executable, str(script), "--tuning", tuning, "--lr", str(SETTINGS[tuning]), "--dtype", a.dtype,
                          "--epochs", str(a.epochs)], capture_output=True, text=True)
    if run.returncode:
        reason = run.stderr.strip().splitlines() or [f"exit status {run.returncode}"]
        print(f"peer skipped: {reason[-1]}", file=sys.stderr)
        return None
    return json.loads(run.stdout.strip().splitlines()[-1])


def main():
    a = arguments()
    data = [a.data / "ag_news.train.jsonl", a.data / "ag_news.eval.jsonl"]
    for path in data:
        if not path.exists():
            sys.exit(f"no {path}: --data names the folder with the AG News files")
    below = False
    for tuning in a.tunings:
        with Server() as server:
            files = [server.upload(path) for path in data]
            ours = []
            for seed in a.seeds:
                ours.append(server.train(files, tuning, seed, a, a.dtype)[0])
                print(json.dumps(ours[-1]), flush=True)
        theirs = peer(tuning, a)
        if theirs:
            print(json.dumps({**theirs, "peer": "torch"}), flush=True)
        for key in ("accuracy", "f1_macro"):
            mean = statistics.mean(row[key] for row in ours)
            line = f"{tuning} {key}: ours {mean:.4f} over {len(ours)} seeds"
            if theirs:
                line += f", PyTorch {theirs[key]:.4f}, difference {mean - theirs[key]:+.4f}"
                below |= mean < theirs[key] - MARGIN
            print(line, flush=True)
    if below:
        sys.exit("more than a point below PyTorch")


if __name__ == "__main__":
    main()
