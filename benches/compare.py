"""Reads the JSON lines of train.sh and decoder.sh on stdin and prints ours against the peer's, configuration by configuration.

Where a configuration was measured in several turns, ours and the peer's of each turn make a pair, and the median of the pairs counts.
"""

import json
import statistics
import sys

KEYS = ("name", "tuning", "dtype", "batch", "length", "threads")


def main(lines):
    turns = {}
    for line in lines:
        row = json.loads(line)
        # Ours trains decoders in the precision that is the faster one here, the peer in bf16.
        key = tuple(None if k == "dtype" and row["name"] == "train_causal" else row.get(k) for k in KEYS)
        both = turns.setdefault(key, {"ours": [], "peer": []})
        both["peer" if "peer" in row else "ours"].append(row)
    print(f"\n{'configuration':<32}{'ours':>10}{'peer':>10}{'ratio':>8}{'turns':>7}{'MiB':>8}{'peer':>8}{'memory':>8}")
    for key, both in turns.items():
        pairs = list(zip(both["ours"], both["peer"]))
        if not pairs:
            continue
        middle = lambda of: statistics.median(of(ours, peer) for ours, peer in pairs)
        name = " ".join(str(k) for k in key[:3] if k is not None)
        print(f"{name:<32}{middle(lambda o, p: o['median']):>10.1f}{middle(lambda o, p: p['median']):>10.1f}"
              f"{middle(lambda o, p: o['median'] / p['median']):>7.2f}x{len(pairs):>7}"
              f"{middle(lambda o, p: o['peak_rss_mib']):>8.0f}{middle(lambda o, p: p['peak_rss_mib']):>8.0f}"
              f"{middle(lambda o, p: o['peak_rss_mib'] / p['peak_rss_mib']):>7.2f}x")
    within = {key[0]: both["ours"] for key, both in turns.items() if both["ours"]}
    for name, than in (("decode 8", "decode"), ("decode 32", "decode"), ("first token beside 8", "first token")):
        if name in within and than in within:
            ratios = [a["median"] / b["median"] for a, b in zip(within[name], within[than])]
            print(f"{name}: {statistics.median(ratios):.2f} x {than}")


if __name__ == "__main__":
    main(line for line in sys.stdin if line.startswith("{"))
