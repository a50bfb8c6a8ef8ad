"""From JSON lines to a table (Markdown) and a plot (SVG): ours beside each peer, the median of the turns.

Called by bench.py. A line without `peer` is ours. A ratio is one of medians; lines of one work and one turn make a pair, and the lowest
and the highest ratio of a pair stand beside it.
"""

import collections
import datetime
import html
import json
import statistics

import machine

OURS = "ours"
KEYS = ("name", "tuning", "shape", "batch", "length", "threads")
# Columns of the plot: pixels of the labels and of a bar that reaches 1.
LABELS, UNIT, ROW = 330, 130, 26


def works(lines):
    """For each work its rows, ours and of each peer, in the order of their turns."""
    found = {}
    for row in lines:
        key = tuple(row.get(k) if not (k == "tuning" and row.get(k) == "none") else None for k in KEYS)
        if row["name"].startswith("product"):
            key += (row["dtype"],)
        sides = found.setdefault(key, collections.defaultdict(list))
        sides[row.get("peer") or ours_of(row)].append(row)
    return {key: sides for key, sides in found.items() if any(name.startswith(OURS) for name in sides)}


def ours_of(row):
    """The name of our side: an encoder answers in several arithmetics, each of which is compared with the same peers."""
    return f"{OURS} {row['dtype']}" if row["name"] in ("embed", "classify") else OURS


def both(found):
    """For each work and each of our sides: its label, that side, and the peers."""
    for key, sides in found.items():
        if not key[0].startswith("product"):
            peers = {name: rows for name, rows in sides.items() if not name.startswith(OURS)}
            for name in (name for name in sides if name not in peers):
                yield label(key) + name.removeprefix(OURS).replace(" ", ", "), sides[name], peers


def label(key):
    name, tuning, shape, batch, length, threads, *dtype = key
    size = shape or (f"{batch} × {length}" if batch else None)
    words = [name.replace("_", " "), tuning, *dtype, size, "1 thread" if threads == 1 else f"{threads} threads"]
    return ", ".join(str(w).replace(" x ", " × ") for w in words if w)


def compared(ours, peers):
    """The best peer, and ratios of ours to it: of speed, of memory where both tell it, and the lowest and highest of speed in a pair."""
    if not peers:
        return None
    best = max(peers, key=lambda name: middle(peers[name]))
    told = all(row.get("peak_rss_mib") for row in (*ours, *peers[best]))
    memory = middle(ours, "peak_rss_mib") / middle(peers[best], "peak_rss_mib") if told else None
    return best, middle(ours) / middle(peers[best]), memory, extremes(ours, peers[best])


def extremes(ours, theirs):
    """The lowest and the highest ratio of a pair, where there are several."""
    pairs = [o["median"] / p["median"] for o, p in zip(ours, theirs)]
    return f" ({min(pairs):.2f} to {max(pairs):.2f})" if len(pairs) > 1 else ""


def middle(rows, field="median"):
    return statistics.median(r[field] for r in rows)


def number(x):
    return f"{x:,.0f}" if x >= 100 else f"{x:.1f}"


def table(found):
    out = ["| work | ours | peers | to the best of them | memory, ours and theirs |", "|---|---|---|---|---|"]
    for name, ours, peers in both(found):
        told = "; ".join(f"{peer} {number(middle(rows))}" for peer, rows in peers.items())
        ratio, memory, against = "", "", compared(ours, peers)
        if against:
            best, speed, share, pairs = against
            ratio = f"**{speed:.2f} ×** {best}{pairs}"
            if share:
                memory = f"{number(middle(ours, 'peak_rss_mib'))} and {number(middle(peers[best], 'peak_rss_mib'))} MiB, {share:.2f} ×"
        elif "peak_rss_mib" in ours[0]:
            memory = f"{number(middle(ours, 'peak_rss_mib'))} MiB"
        out.append(f"| {name} | {number(middle(ours))} {ours[0]['unit']} | {told} | {ratio} | {memory} |")
    return out


def within(found):
    """What is to be measured against another work: many sequences against one of ours and of the peer, adapters against none."""
    named = {key[0]: sides for key, sides in found.items()}
    for name, than, whose in (("decode 8", "decode", OURS), ("decode 8", "decode", "llama.cpp"), ("decode 32", "decode", OURS),
                              ("decode 32", "decode", "llama.cpp"), ("decode 32 adapters", "decode 32", OURS),
                              ("first token beside 8", "first token", OURS)):
        work, other = named.get(name, {}).get(OURS), named.get(than, {}).get(whose)
        if work and other:
            ratio = f"{middle(work) / middle(other):.2f} ×{extremes(work, other)}"
            yield f"- `{name}` is {ratio} {'our' if whose == OURS else whose} `{than}`"


def products(found):
    rows = [(key, sides) for key, sides in found.items() if key[0].startswith("product")]
    if not rows:
        return []
    peaks = {key[-1]: middle(sides[OURS], "peak") for key, sides in rows}
    told = ", ".join(f"{number(peak)} GF/s in {dtype}" for dtype, peak in peaks.items())
    out = ["", "## Products", "", f"A loop that stays in registers reaches {told}.", "",
           "| rows × in × out | ours | of the peak | torch | oneDNN | ours to the best of them |", "|---|---|---|---|---|---|"]
    for key, sides in rows:
        ours, peers = sides[OURS], {name: rows for name, rows in sides.items() if name != OURS}
        against = compared(ours, peers)
        peer = " | ".join(number(middle(sides[name])) if name in sides else "" for name in ("torch", "oneDNN"))
        ratio = f"{against[1]:.2f} ×{against[3]}" if against else ""
        share = f"{100 * middle(ours) / middle(ours, 'peak'):.0f} %"
        name = f"{key[2].replace(' x ', ' × ')}, {key[-1]}{', weight gradient' if key[0] == 'product tn' else ''}"
        out.append(f"| {name} | {number(middle(ours))} GF/s | {share} | {peer} | {ratio} |")
    return out


def plot(found):
    """Bars of ours to the best peer; the line at 1 is that peer."""
    bars = [(name, compared(ours, peers)) for name, ours, peers in both(found)]
    bars = [(name, *against[:2]) for name, against in bars if against]
    longest = max((speed for _, _, speed in bars), default=1)
    width, height = LABELS + int(UNIT * max(longest, 1.5)) + 150, 50 + ROW * len(bars)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
           'font-family="sans-serif" font-size="12">', f'<rect width="{width}" height="{height}" fill="#fff"/>',
           f'<text x="10" y="20" font-size="13">Speed to the best peer, {html.escape(machine.name())}</text>']
    for i, (name, best, speed) in enumerate(bars):
        y, long = 36 + ROW * i, UNIT * speed
        out.append(f'<text x="{LABELS - 8}" y="{y + 13}" text-anchor="end">{html.escape(name)}</text>')
        out.append(f'<rect x="{LABELS}" y="{y}" width="{long:.0f}" height="{ROW - 8}" fill="{"#2a7f62" if speed >= 1 else "#c0703a"}"/>')
        out.append(f'<text x="{LABELS + long + 6:.0f}" y="{y + 13}">{speed:.2f} × {html.escape(best)}</text>')
    out.append(f'<line x1="{LABELS + UNIT}" y1="30" x2="{LABELS + UNIT}" y2="{height - 10}" stroke="#333" stroke-dasharray="3 3"/></svg>')
    return out


def write(lines, stem, turns, seconds):
    """`stem`.md, .svg and .jsonl; the last holds every line of the run."""
    found = works(lines)
    day = datetime.date.today().isoformat()
    head = [f"# {machine.name()}", "", f"{day}, {turns} turns of {seconds:g} s each, ours and the peers' in one run; medians.", "",
            f"![speed to the best peer]({stem.name}.svg)", ""]
    text = [*head, *table(found), "", *within(found), *products(found)]
    stem.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf8")
    stem.with_suffix(".svg").write_text("\n".join(plot(found)) + "\n", encoding="utf8")
    stem.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf8")
    print(f"wrote {stem}.md, .svg and .jsonl")
