#!/usr/bin/env python3
"""What transformers and peft answer for a folder that tunesmith wrote; a Rust test compares it with our own logits.

Usage: roundtrip.py MODEL [BASE] with a JSON list on stdin: texts, or [text, pair]. With BASE the model is a PEFT folder.
Prints {"labels": [...], "logits": [[...], ...]}. Exit status 77 says that a package is missing: the test is skipped then.
"""

import json
import os
import pathlib
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

try:
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
except ImportError as missing:
    print(f"skipped: {missing}", file=sys.stderr)
    sys.exit(77)


def adapter_labels(folder):
    """Names from labels.json; from a foreign adapter only their number is known, by the last layer of its head."""
    names = folder / "labels.json"
    if names.exists():
        return json.loads(names.read_text(encoding="utf8"))
    with safe_open(folder / "adapter_model.safetensors", "pt") as f:
        for key in f.keys():
            if key.endswith(("classifier.weight", "classifier.out_proj.weight")):
                return [f"LABEL_{i}" for i in range(f.get_slice(key).get_shape()[0])]
    sys.exit(f"{folder}: the adapter has no classifier: its head was lost")


def load(folder, base):
    if base is None:
        return AutoModelForSequenceClassification.from_pretrained(folder)
    try:
        from peft import PeftModel
    except ImportError as missing:
        print(f"skipped: {missing}", file=sys.stderr)
        sys.exit(77)
    names = adapter_labels(folder)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}, ignore_mismatched_sizes=True)
    return PeftModel.from_pretrained(model, folder)


def main(folder, base=None):
    folder = pathlib.Path(folder)
    torch.set_num_threads(1)
    model = load(folder, base).eval()
    own = (folder / "tokenizer.json").exists()
    tok = AutoTokenizer.from_pretrained(folder if own else base)
    rows = json.load(sys.stdin)
    pairs = [r if isinstance(r, list) else [r, None] for r in rows]
    logits = []
    with torch.inference_mode():
        for text, pair in pairs:  # one by one: padding must not matter, and here it cannot
            inputs = tok(text, pair, truncation=True, return_tensors="pt")
            logits.append(model(**inputs).logits[0].tolist())
    names = model.config.id2label
    print(json.dumps({"labels": [names[i] for i in range(len(names))], "logits": logits}))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
