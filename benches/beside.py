"""How long answers take beside a training job, with the job giving up threads while the server is asked and without: JSON lines.

Run from the repository's root, after the release build. `alone` is a server without a job. To keep a job from giving up threads, its
server finds a folder where the shared page should be.
"""

import argparse
import itertools
import json
import pathlib
import statistics
import tempfile
import time

from quality import Server

SENTENCE = "Shares fell on Tuesday after the company said that its chief executive would leave at the end of the year."


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="all-minilm-l6-v2")
    p.add_argument("--seconds", type=float, default=15, help="of asking, for each case")
    p.add_argument("--every", type=float, default=0.1, help="seconds from one request to the next")
    return p.parse_args()


def rows():
    """A data set that trains for long."""
    texts = (f"{SENTENCE} Item {i}. {'It rose again.' if i % 2 else 'It fell further.'} " * 4 for i in itertools.count())
    return "".join(json.dumps({"text": next(texts), "label": ["down", "up"][i % 2]}) + "\n" for i in range(4000))


def speed(server, job):
    """Samples per second of the last logged step."""
    history = server.ask(f"/v1/fine_tuning/jobs/{job}/metrics")["log_history"]
    return next((row["samples_per_second"] for row in reversed(history) if "samples_per_second" in row), None)


def measure(a, case):
    with tempfile.TemporaryDirectory() as scratch, Server() as server:
        job = None
        if case != "alone":
            file = pathlib.Path(scratch) / "rows.jsonl"
            file.write_text(rows(), encoding="utf8")
            if case == "beside, no sharing":
                page = pathlib.Path(server.folder.name) / "load"
                page.unlink()
                page.mkdir()
            job = server.ask("/v1/fine_tuning/jobs", {
                "model": a.model, "training_file": server.upload(file), "task": "classification", "tuning": {"type": "full"},
                "training": {"num_train_epochs": 1, "per_device_train_batch_size": 16, "max_length": 128, "logging_steps": 1}})["id"]
            while speed(server, job) is None:
                time.sleep(0.2)
        body = {"model": a.model, "input": SENTENCE}
        server.ask("/v1/embeddings", body)
        time.sleep(3)
        before = speed(server, job) if job else None
        taken, end = [], time.monotonic() + a.seconds
        while time.monotonic() < end:
            start = time.monotonic()
            server.ask("/v1/embeddings", body)
            taken.append(time.monotonic() - start)
            time.sleep(max(0, a.every - taken[-1]))
        during = speed(server, job) if job else None
        if job:
            server.ask(f"/v1/fine_tuning/jobs/{job}/cancel", b"")
    taken.sort()
    told = {"requests": len(taken), "median_ms": statistics.median(taken), "p95_ms": taken[len(taken) * 95 // 100], "longest_ms": taken[-1]}
    return {key: round(1000 * value, 1) if key.endswith("ms") else value for key, value in told.items()} | {
        "training_before": before, "training_during": during}


def main():
    a = arguments()
    for case in ("alone", "beside", "beside, no sharing"):
        print(json.dumps({"name": "answers", "case": case, **measure(a, case)}), flush=True)


if __name__ == "__main__":
    main()
