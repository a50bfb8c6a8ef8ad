#!/usr/bin/env python3
"""SmolLM2 on Guanaco conversations: evaluation loss after some LoRA steps, ours over HTTP and PEFT's with the same rows in order.

Usage, from the repository's root after `cargo build --release --bins --examples`: guanaco.py [--steps 100]. The Python needs torch,
transformers, peft and gguf. Exit status 1: more than one per cent apart.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import quality

MODEL = "smollm2-135m-instruct"
MARGIN = 0.01


def arguments():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--steps", type=int, default=100)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--max-length", type=int, default=256)
    p.add_argument("--eval-rows", type=int, default=48)
    p.add_argument("--lr", type=float, default=2e-4)
    p.add_argument("--seed", type=int, default=7)
    p.add_argument("--data", type=pathlib.Path, default=pathlib.Path("../shared/data/guanaco_chat.train.jsonl"))
    p.add_argument("--gguf", type=pathlib.Path, help="the model's file [default: where `tunesmith pull` has it]")
    return p.parse_args()


def binary():
    return os.environ.get("TUNESMITH_BIN", "target/release/tunesmith")


def gguf(given):
    if given:
        return given
    out = subprocess.run([binary(), "pull", MODEL], check=True, capture_output=True, text=True).stdout
    folder = pathlib.Path(out.splitlines()[0].split(": ", 1)[1])
    return next(folder.rglob("*.gguf"))


def encode(tok, messages):
    """Token ids, and which of them the assistant says: its words and the end of its turn."""
    ids = tok.apply_chat_template(messages, tokenize=True, return_dict=False)
    learned = [False] * len(ids)
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = tok.apply_chat_template(messages[:i], tokenize=True, add_generation_prompt=True, return_dict=False)
            upto = tok.apply_chat_template(messages[:i + 1], tokenize=True, return_dict=False)
            end = len(upto) - len(tok("\n")["input_ids"])  # ChatML's line break after the end of a turn is not the assistant's
            for k in range(len(before), end):
                learned[k] = True
    return ids, learned


def ours(a, train, evaluation):
    with quality.Server() as server, tempfile.TemporaryDirectory() as folder:
        ids = []
        for name, rows in (("train", train), ("eval", evaluation)):
            path = pathlib.Path(folder) / f"{name}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
            ids.append(server.upload(path))
        job = server.ask("/v1/fine_tuning/jobs", {
            "model": MODEL, "training_file": ids[0], "validation_file": ids[1], "seed": a.seed, "task": "instruction",
            "tuning": {"type": "lora", "r": 8, "lora_alpha": 16, "lora_dropout": 0.0},
            "training": {"max_steps": a.steps, "per_device_train_batch_size": a.batch, "max_length": a.max_length,
                         "learning_rate": a.lr, "weight_decay": 0.0, "logging_steps": 1, "dtype": "f32"}})
        path = f"/v1/fine_tuning/jobs/{job['id']}"
        while job["status"] not in ("succeeded", "failed", "cancelled"):
            time.sleep(1)
            job = server.ask(path)
        if job["status"] != "succeeded":
            raise SystemExit(f"the job {job['status']}: {job['error']}")
        history = server.ask(path + "/metrics")["log_history"]
    order = subprocess.run(["target/release/examples/epoch_order", str(a.seed), str(len(train)), str(a.steps)], input=json.dumps(job["training"]),
                           check=True, capture_output=True, text=True).stdout
    steps = [json.loads(line) for line in order.splitlines()][:a.steps]
    return [h["eval_loss"] for h in history if "eval_loss" in h][-1], [h["loss"] for h in history if "loss" in h], steps


def peer(a, path, train, evaluation, steps):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

    torch.manual_seed(a.seed)
    model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear"))
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=a.lr, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, a.steps)

    def total(rows):
        """Sum of the losses and number of the targets, row by row: no padding that could matter."""
        loss, targets = 0.0, 0
        for ids, learned in rows:
            x = torch.tensor([ids])
            keep = torch.tensor(learned[1:])
            logits = model(input_ids=x).logits[0, :-1][keep]
            loss = loss + torch.nn.functional.cross_entropy(logits, x[0, 1:][keep], reduction="sum")
            targets += int(keep.sum())
        return loss, targets

    losses = []
    for step in steps:
        model.train()
        loss, targets = total([train[i] for i in step])
        (loss / targets).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()) / targets)
    model.eval()
    with torch.no_grad():
        loss, targets = total(evaluation)
    return float(loss) / targets, losses


def main():
    a = arguments()
    path = gguf(a.gguf)
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    # SmolLM2 splits off each digit first; transformers loses that when it reads a GGUF file ("\\n\\n1" becomes other tokens).
    tok.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    rows, encoded = [], []
    for line in a.data.read_text(encoding="utf8").splitlines():
        row = json.loads(line)
        ids, learned = encode(tok, row["messages"])
        if len(ids) <= a.max_length and any(learned):  # so that both sides see whole rows
            rows.append(row)
            encoded.append((ids, learned))
    train, evaluation = a.steps * a.batch, a.eval_rows
    train = min(train, len(rows) - evaluation)
    print(f"{train} rows to train on, {evaluation} to evaluate on", flush=True)
    start = time.time()
    own, own_losses, steps = ours(a, rows[:train], rows[train:train + evaluation])
    print(f"ours: eval_loss {own:.4f}, {time.time() - start:.0f} s", flush=True)
    start = time.time()
    there, there_losses = peer(a, path, encoded[:train], encoded[train:train + evaluation], steps)
    print(f"PEFT: eval_loss {there:.4f}, {time.time() - start:.0f} s")
    apart = [abs(o / t - 1) for o, t in zip(own_losses, there_losses)]
    print(f"losses of single steps are {sum(apart) / len(apart):.2%} apart on average, {max(apart):.2%} at most; the first {own_losses[0]:.4f} "
          f"and {there_losses[0]:.4f}")
    print(f"eval_loss is {abs(own / there - 1):.2%} apart")
    sys.exit(abs(own / there - 1) > MARGIN)


if __name__ == "__main__":
    main()
