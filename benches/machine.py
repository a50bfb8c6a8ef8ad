"""What this machine is, in a line: figures are of no use without it."""

import os
import pathlib
import platform
import re


def cpuinfo():
    """Of the first processor, where the system tells."""
    path = pathlib.Path("/proc/cpuinfo")
    text = path.read_text().split("\n\n")[0] if path.exists() else ""
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def flags():
    info = cpuinfo()
    return set(info.get("flags", info.get("Features", "")).split())


def has_bf16():
    """Whether products of bf16 have a unit of their own."""
    return bool({"amx_bf16", "avx512_bf16"} & flags())


def units():
    """The widest vector unit, and what it has for short numbers."""
    have = flags()
    wide = next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("asimd", "NEON")) if flag in have), "no vectors that count")
    extra = [name for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "BF16"), ("avx512_vnni", "VNNI"), ("avx_vnni", "VNNI")) if flag in have]
    return " ".join(dict.fromkeys([wide, *extra]))


def name():
    info = cpuinfo()
    model = re.sub(r"\((R|TM)\)|CPU|Processor|@.*", "", info.get("model name", platform.processor() or platform.machine()))
    family = f" family {info['cpu family']} model {info['model']}" if "cpu family" in info else ""
    return f"{' '.join(model.split())}{family}, {os.cpu_count()} cores, {units()}"


def slug():
    return re.sub(r"[^a-z0-9]+", "-", name().lower()).strip("-")
