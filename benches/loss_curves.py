"""The losses of bf16 training beside those of f32: AG News, one seed, the settings of quality.py; JSON lines.

Run from the repository's root, after the release build. Steps' losses are compared as means of windows, since a step's own is mostly
the noise of its 16 rows. Exit status 1: a window or the evaluation is more than 1 % apart.
"""

import argparse
import json
import pathlib
import statistics
import sys

from quality import SETTINGS, Server

WINDOW = 50
BOUND = 0.01


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tunings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    p.add_argument("--epochs", type=int, default=2)
    p.add_argument("--seed", type=int, default=7)
    p.add_argument("--model", default="all-minilm-l6-v2")
    p.add_argument("--data", type=pathlib.Path, default=pathlib.Path("../shared/data"))
    return p.parse_args()


def curve(server, files, tuning, dtype, a):
    """The loss of every step, and what the evaluation at the end says."""
    result, history = server.train(files, tuning, a.seed, a, dtype)
    return [row["loss"] for row in history if "loss" in row], result


def main():
    a = arguments()
    apart = False
    for tuning in a.tunings:
        with Server() as server:
            files = [server.upload(a.data / f"ag_news.{part}.jsonl") for part in ("train", "eval")]
            (f32, exact), (bf16, short) = (curve(server, files, tuning, dtype, a) for dtype in ("f32", "bf16"))
        windows = [[statistics.mean(losses[i:i + WINDOW]) for i in range(0, len(losses) - WINDOW + 1, WINDOW)] for losses in (f32, bf16)]
        off = [abs(b - a) / a for a, b in zip(*windows)]
        evaluation = abs(short["eval_loss"] - exact["eval_loss"]) / exact["eval_loss"]
        print(json.dumps({"name": "loss_curves", "tuning": tuning, "steps": len(f32), "windows_f32": [round(w, 4) for w in windows[0]],
                          "windows_bf16": [round(w, 4) for w in windows[1]], "worst_window": round(max(off), 5),
                          "mean_window": round(statistics.mean(off), 5), "eval_loss_apart": round(evaluation, 5),
                          "train_seconds": [exact["train_seconds"], short["train_seconds"]],
                          "accuracy": [exact["accuracy"], short["accuracy"]]}), flush=True)
        apart |= max(*off, evaluation) > BOUND
    if apart:
        sys.exit("bf16 is more than 1 % apart from f32")


if __name__ == "__main__":
    main()
