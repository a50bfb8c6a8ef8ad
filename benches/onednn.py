"""oneDNN's products on the shapes of gemm_rate, by its C interface: JSON lines. Used by bench.py.

The library comes with `pip install onednn-cpu-gomp` into the interpreter's `lib`; ONEDNN names another. Weights lie as it likes them
best, as ours do; a weight's gradient reads both sides where they lie.
"""

import argparse
import ctypes
import json
import os
import pathlib
import random
import sys

import products

CPU, DEFAULT_FLAGS = 1, 1
DTYPES = {"f32": 3, "bf16": 2}
SRC, DST, WEIGHTS = 1, 17, 33
# A layout of the library's choice, and the question which it chose for the weights.
ANY, CHOSEN_WEIGHTS = 1, 131
# Bytes of a cache line: memory begins on one.
LINE = 64


class Argument(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_int), ("memory", ctypes.c_void_p)]


class Library:
    """The C interface; a status other than 0 is an error."""

    def __init__(self, path):
        self.lib = ctypes.CDLL(str(path))
        self.engine = self.make("dnnl_engine_create", ctypes.c_int(CPU), ctypes.c_size_t(0))
        self.stream = self.make("dnnl_stream_create", self.engine, ctypes.c_uint(DEFAULT_FLAGS))
        self.lib.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
        self.lib.dnnl_primitive_desc_query_md.restype = ctypes.c_void_p
        self.kept = []

    def call(self, name, *arguments):
        status = getattr(self.lib, name)(*arguments)
        if status:
            raise SystemExit(f"{name}: status {status}")

    def make(self, name, *arguments):
        made = ctypes.c_void_p()
        self.call(name, ctypes.byref(made), *arguments)
        return made

    def shape(self, dims, strides, dtype):
        """A description of a matrix; without strides oneDNN chooses."""
        dims = (ctypes.c_int64 * 12)(*dims)
        if strides is None:
            return self.make("dnnl_memory_desc_create_with_tag", 2, dims, dtype, ANY)
        return self.make("dnnl_memory_desc_create_with_strides", 2, dims, dtype, (ctypes.c_int64 * 12)(*strides))

    def memory(self, shape):
        """Memory of this shape that holds numbers of a usual size, whatever their type."""
        size = self.lib.dnnl_memory_desc_get_size(shape)
        # The same halves are bf16 numbers between 0.5 and 1, and the upper halves of such f32 numbers.
        halves = b"".join((0x3F00 | random.getrandbits(7)).to_bytes(2, "little") for _ in range(512))
        data = ctypes.create_string_buffer(size + LINE)
        begin = ctypes.addressof(data) + LINE - ctypes.addressof(data) % LINE
        ctypes.memmove(begin, (halves * (size // len(halves) + 1))[:size], size)
        self.kept.append(data)
        return self.make("dnnl_memory_create", shape, self.engine, ctypes.c_void_p(begin))

    def product(self, rows, k, n, dtype, transposed):
        """A function that computes `x · Wᵀ`, or with `transposed` the gradient of W."""
        operand, f32 = DTYPES[dtype], DTYPES["f32"]
        if transposed:
            src, weights = self.shape((n, rows), (1, n), operand), self.shape((rows, k), (k, 1), operand)
            dst = self.shape((n, k), (k, 1), f32)
        else:
            src, weights = self.shape((rows, k), (k, 1), operand), self.shape((k, n), None, operand)
            dst = self.shape((rows, n), (n, 1), f32)
        described = self.make("dnnl_matmul_primitive_desc_create", self.engine, src, weights, None, dst, None)
        chosen = ctypes.c_void_p(self.lib.dnnl_primitive_desc_query_md(described, CHOSEN_WEIGHTS, 0))
        primitive = self.make("dnnl_primitive_create", described)
        told = ((SRC, src), (WEIGHTS, chosen), (DST, dst))
        arguments = (Argument * 3)(*[Argument(which, self.memory(shape)) for which, shape in told])

        def run():
            self.call("dnnl_primitive_execute", primitive, self.stream, 3, arguments)
            self.call("dnnl_stream_wait", self.stream)

        return run


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--threads", type=int, required=True)
    p.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["f32"])
    a = p.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(a.threads)
    path = os.environ.get("ONEDNN") or pathlib.Path(sys.prefix) / "lib" / "libdnnl.so.3"
    if not pathlib.Path(path).exists():
        sys.exit(f"no {path}: pip install onednn-cpu-gomp, or name the library in ONEDNN")
    library = Library(path)
    for dtype in a.dtypes:
        for rows, k, n in products.SHAPES:
            for transposed in (False, True):
                taken = products.times(library.product(rows, k, n, dtype, transposed))
                library.kept.clear()
                products.report(rows, k, n, dtype, a.threads, taken, "oneDNN", transposed)


if __name__ == "__main__":
    main()
