"""PyTorch's products on the shapes of gemm_rate, MKL's in f32 and oneDNN's in bf16: JSON lines. Used by bench.py."""

import argparse
import json
import statistics
import time

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


def report(rows, k, n, dtype, threads, taken, peer, gradient):
    """The line of a product that took these seconds at best and in the middle."""
    best, median = (round(2e-9 * rows * n * k / s, 1) for s in taken)
    print(json.dumps({"name": "product tn" if gradient else "product", "unit": "GF/s", "dtype": dtype, "shape": f"{rows} x {k} x {n}",
                      "best": best, "median": median, "threads": threads, "peer": peer}), flush=True)


def main():
    import torch

    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--threads", type=int, required=True)
    p.add_argument("--dtypes", nargs="+", default=["f32"])
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    for name in a.dtypes:
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[name]
        for rows, k, n in SHAPES:
            x, w, dy = (torch.randn(shape, dtype=dtype) for shape in ((rows, k), (n, k), (rows, n)))
            with torch.inference_mode():
                report(rows, k, n, name, a.threads, times(lambda: torch.nn.functional.linear(x, w)), "torch", False)
                report(rows, k, n, name, a.threads, times(lambda: dy.t() @ x), "torch", True)


if __name__ == "__main__":
    main()
