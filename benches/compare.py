"""Reads the JSON lines of train.sh on stdin and prints ours against the peer's, configuration by configuration."""

import json
import sys

KEYS = ("name", "tuning", "dtype", "batch", "length", "threads")


def main(lines):
    pairs = {}
    for line in lines:
        row = json.loads(line)
        pairs.setdefault(tuple(row.get(k) for k in KEYS), {})["peer" if "peer" in row else "ours"] = row
    print(f"\n{'configuration':<32}{'ours':>10}{'peer':>10}{'speed':>8}{'MiB':>8}{'peer':>8}{'memory':>8}")
    for key, pair in pairs.items():
        if len(pair) < 2:
            continue
        ours, peer = pair["ours"], pair["peer"]
        name = " ".join(str(k) for k in key[:3])
        print(f"{name:<32}{ours['median']:>10.1f}{peer['median']:>10.1f}{ours['median'] / peer['median']:>7.2f}x"
              f"{ours['peak_rss_mib']:>8}{peer['peak_rss_mib']:>8}{ours['peak_rss_mib'] / peer['peak_rss_mib']:>7.2f}x")


if __name__ == "__main__":
    main(line for line in sys.stdin if line.startswith("{"))
