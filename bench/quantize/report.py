"""The table and the plot of table.py's records."""

import html as escape
import math
import statistics

COLUMNS = [("bits/weight", "bits_per_weight", "{:.3f}"), ("MB", "bytes", "{:.1f}"), ("perplexity", "perplexity", "{:.3f}"),
           ("KL", "kl_mean", "{:.4f}"), ("KL 99 %", "kl_p99", "{:.3f}"), ("top-1 %", "top1", "{:.2f}"),
           ("minutes", "minutes", "{:.1f}"), ("CPU min", "cpu_minutes", "{:.1f}"), ("peak MiB", "peak_mib", "{:.0f}")]
SCALE = {"bytes": 1e-6, "top1": 100.0}


def summarize(records, order):
    """One entry a row: mean over the seeds, and their standard error."""
    out = []
    place = {row.name: i for i, row in enumerate(order)}
    names = sorted({record["row"] for record in records}, key=lambda name: place.get(name, len(place)))
    for name in names:
        runs = [record for record in records if record["row"] == name]
        good = [run for run in runs if "error" not in run]
        entry = {key: runs[0][key] for key in ("row", "tool", "scheme", "solver")} | {"seeds": len(good)}
        if not good:
            entry["error"] = runs[0]["error"]
        for _, key, _ in COLUMNS:
            values = [run[key] for run in good if run.get(key) is not None]
            if values:
                entry[key] = statistics.mean(values)
                if len(values) > 1:
                    entry[key + "_stderr"] = statistics.stdev(values) / math.sqrt(len(values))
        for task in {task for run in good for task in run.get("tasks", {})}:
            entry.setdefault("tasks", {})[task] = statistics.mean(run["tasks"][task]["value"] for run in good)
        out.append(entry)
    return out


def cell(entry, key, form):
    if key not in entry:
        return ""
    shown = form.format(entry[key] * SCALE.get(key, 1.0))
    error = entry.get(key + "_stderr")
    return f"{shown} ± {form.format(error)}" if key == "kl_mean" and error is not None else shown


def task_names(rows):
    return sorted({task for row in rows for task in row.get("tasks", {})})


def lines(result):
    rows = result["rows"]
    tasks = task_names(rows)
    yield ["tool", "scheme", "solver", "seeds", *(title for title, _, _ in COLUMNS), *tasks]
    for entry in rows:
        head = [entry["tool"], entry["scheme"], entry["solver"], str(entry["seeds"])]
        if "error" in entry:
            yield [*head, entry["error"]]
            continue
        scores = [f"{100 * entry['tasks'][task]:.1f}" if task in entry.get("tasks", {}) else "" for task in tasks]
        yield [*head, *(cell(entry, key, form) for _, key, form in COLUMNS), *scores]


def text(result):
    """The table in Markdown."""
    table = list(lines(result))
    out = ["| " + " | ".join(table[0]) + " |", "|" + "---|" * len(table[0])]
    return "\n".join(out + ["| " + " | ".join(row).replace("\n", " ") + " |" for row in table[1:]])


def plot(rows):
    """KL against bytes, both logarithmic: every row a dot, ours filled."""
    points = [row for row in rows if row.get("kl_mean", 0) > 0 and row.get("bytes")]
    if not points:
        return ""
    width, height, margin = 860, 480, 60
    xs = [math.log10(row["bytes"]) for row in points]
    ys = [math.log10(row["kl_mean"]) for row in points]

    def place(value, values, size, flip):
        low, high = min(values) - 0.02, max(values) + 0.02
        share = (value - low) / (high - low)
        return margin + (1 - share if flip else share) * (size - 2 * margin)

    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="KL against bytes">',
           f'<rect x="{margin}" y="{margin}" width="{width - 2 * margin}" height="{height - 2 * margin}" class="frame"/>']
    for tick in [1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1, 3, 10]:
        if min(ys) <= math.log10(tick) <= max(ys):
            y = place(math.log10(tick), ys, height, True)
            out.append(f'<line x1="{margin}" x2="{width - margin}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
                       f'<text x="{margin - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for megabytes in range(10, 2000, 10):
        x_log = math.log10(megabytes * 1e6)
        if min(xs) <= x_log <= max(xs) and (megabytes % 50 == 0 or max(xs) - min(xs) < 0.4):
            x = place(x_log, xs, width, False)
            out.append(f'<line y1="{margin}" y2="{height - margin}" x1="{x:.1f}" x2="{x:.1f}" class="grid"/>'
                       f'<text x="{x:.1f}" y="{height - margin + 18}" text-anchor="middle">{megabytes}</text>')
    out.append(f'<text x="{width / 2}" y="{height - 12}" text-anchor="middle">tensors, MB</text>'
               f'<text x="16" y="{margin - 16}">KL to the source, nats</text>')
    for row, x, y in zip(points, xs, ys):
        kind = "ours" if row["tool"] == "nibble" else "peer"
        label = escape.escape(f"{row['tool']} {row['scheme']} {row['solver']}: KL {row['kl_mean']:.4f}")
        out.append(f'<circle class="{kind}" r="5" cx="{place(x, xs, width, False):.1f}" '
                   f'cy="{place(y, ys, height, True):.1f}"><title>{label}</title></circle>')
    return "\n".join(out + ["</svg>", '<p><span class="ours">●</span> nibble <span class="peer">○</span> other tools; '
                            "hover over a dot for its name</p>"])


STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1200px;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px}th,td{padding:.25rem .6rem;
border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}th:nth-child(-n+3),td:nth-child(-n+3){text-align:left}
tr.peer td{background:#f6f2ea}td.error{text-align:left;white-space:pre-wrap;color:#a00}svg{max-width:100%;height:auto}
.frame{fill:none;stroke:#999}.grid{stroke:#eee}svg text{font-size:12px;fill:#444}circle.ours{fill:#1b6ca8}
circle.peer{fill:none;stroke:#b5651d;stroke-width:2}span.ours{color:#1b6ca8}span.peer{color:#b5651d}"""


def html(result):
    """One self-contained page."""
    table = list(lines(result))
    head = "".join(f"<th>{escape.escape(title)}</th>" for title in table[0])
    body = []
    for entry, row in zip(result["rows"], table[1:]):
        cells = [f"<td>{escape.escape(value)}</td>" for value in row]
        if "error" in entry:
            cells[-1] = f'<td class="error" colspan="{len(table[0]) - 4}">{escape.escape(entry["error"])}</td>'
        kind = "" if entry["tool"] == "nibble" else ' class="peer"'
        body.append(f"<tr{kind}>{''.join(cells)}</tr>")
    facts = ", ".join(f"{key}: {result[key]}" for key in ("source", "calibration", "judge", "commit"))
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Quantization of {escape.escape(result["source"])}</title>'
            f"<style>{STYLE}</style><h1>Quantization of {escape.escape(result['source'])}</h1><p>{escape.escape(facts)}</p>"
            f"{plot(result['rows'])}<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></html>\n")
