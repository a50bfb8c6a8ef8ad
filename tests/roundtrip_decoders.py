#!/usr/bin/env python3
"""What transformers and peft answer for language models that tunesmith wrote; a Rust test compares it with our own logits.

Reads {"ids": [[...], ...], "cases": [{"model": FOLDER, "base": FOLDER or null}, ...]} on stdin: with a base the model is a PEFT
folder. Prints for each case the logits of every token of all sequences, one after another. Exit status 77 says that a package is
missing: the test is skipped then.
"""

import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

try:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
except ImportError as missing:
    print(f"skipped: {missing}", file=sys.stderr)
    sys.exit(77)


def main():
    torch.set_num_threads(1)
    asked = json.load(sys.stdin)
    answers = []
    for case in asked["cases"]:
        folder, base = case["model"], case["base"]
        AutoTokenizer.from_pretrained(folder)
        model, report = AutoModelForCausalLM.from_pretrained(
            base or folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
        if report["missing_keys"] or report["unexpected_keys"]:
            sys.exit(f"{folder}: {report}")
        if base:
            model = PeftModel.from_pretrained(model, folder)
        model.eval()
        with torch.inference_mode():
            logits = [model(torch.tensor([ids])).logits[0].flatten() for ids in asked["ids"]]
        answers.append(torch.cat(logits).tolist())
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
