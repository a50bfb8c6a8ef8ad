"""PyTorch's products (oneDNN's where it was built with it) on the shapes of gemm_rate: JSON lines. Used by bench.py."""

import argparse
import json
import statistics
import time

import torch

SHAPES = [(2048, 2048, 2048), (1024, 1024, 1024), (2048, 384, 1536), (2048, 1536, 384), (2048, 768, 3072), (800, 384, 1152),
          (800, 384, 384), (240, 384, 1536), (64, 384, 1536), (8, 384, 1536), (1, 384, 1536)]


def times(run):
    run()
    taken, start = [], time.perf_counter()
    while time.perf_counter() - start < 0.4 or len(taken) < 3:
        from_ = time.perf_counter()
        run()
        taken.append(time.perf_counter() - from_)
    return min(taken), statistics.median(taken)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--threads", type=int, required=True)
    p.add_argument("--dtypes", nargs="+", default=["f32"])
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    for name in a.dtypes:
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[name]
        for rows, k, n in SHAPES:
            x, w = torch.randn(rows, k, dtype=dtype), torch.randn(n, k, dtype=dtype)
            with torch.inference_mode():
                best, median = times(lambda: torch.nn.functional.linear(x, w))
            rate = lambda s: round(2e-9 * rows * n * k / s, 1)
            print(json.dumps({"name": "product", "unit": "GF/s", "dtype": name, "shape": f"{rows} x {k} x {n}", "best": rate(best),
                              "median": rate(median), "threads": a.threads, "peer": "torch " + torch.__version__}), flush=True)


if __name__ == "__main__":
    main()
