"""The table and the plot of table.py's records."""

import html as escape
import math
import re
import statistics

COLUMNS = [("bits/weight", "bits_per_weight", "{:.3f}"), ("MB", "bytes", "{:.1f}"), ("perplexity", "perplexity", "{:.3f}"),
           ("KL", "kl_mean", "{:.4f}"), ("KL 99 %", "kl_p99", "{:.3f}"), ("top-1 %", "top1", "{:.2f}"),
           ("minutes", "minutes", "{:.1f}"), ("CPU min", "cpu_minutes", "{:.1f}"), ("load", "load_after", "{:.1f}"),
           ("peak MiB", "peak_mib", "{:.0f}")]
COST = ("minutes", "cpu_minutes", "load_after", "peak_mib")  # what depends on the machine
SCALE = {"bytes": 1e-6, "top1": 100.0}


def summarize(records, order):
    """One entry a row: mean over the seeds, and their standard error. Costs are those of the first seed's machine alone."""
    out = []
    place = {row.name: i for i, row in enumerate(order)}
    names = sorted({record["row"] for record in records}, key=lambda name: place.get(name, len(place)))
    for name in names:
        runs = [record for record in records if record["row"] == name]
        good = [run for run in runs if "error" not in run]
        entry = {key: runs[0][key] for key in ("row", "tool", "scheme", "kind", "solver")} | {"seeds": len(good)}
        if not good:
            out.append(entry | {"error": runs[0]["error"]})
            continue
        entry["machine"] = good[0]["cpu"]
        for _, key, _ in COLUMNS:
            values = [run[key] for run in good if run.get(key) is not None and (key not in COST or run["cpu"] == entry["machine"])]
            if values:
                entry[key] = statistics.mean(values)
                if len(values) > 1:
                    entry[key + "_stderr"] = statistics.stdev(values) / math.sqrt(len(values))
        for task in sorted({task for run in good for task in run.get("tasks", {})}):
            entry.setdefault("tasks", {})[task] = statistics.mean(run["tasks"][task]["value"] for run in good if task in run.get("tasks", {}))
        out.append(entry)
    return out


def cell(entry, key, form):
    if key not in entry:
        return ""
    shown = form.format(entry[key] * SCALE.get(key, 1.0))
    error = entry.get(key + "_stderr")
    return f"{shown} ± {form.format(error)}" if key == "kl_mean" and error is not None else shown


def short_name(machine):
    """Of what nibble says of a CPU: Intel(R) Xeon(R) Processor: avx512 vnni."""
    return re.sub(r"\(R\)|Intel|AMD|Processor|:.*", "", machine).strip()


def task_names(rows):
    return sorted({task for row in rows for task in row.get("tasks", {})})


def lines(result):
    rows = result["rows"]
    tasks = task_names(rows)
    yield ["tool", "scheme", "kind", "solver", "seeds", *(title for title, _, _ in COLUMNS), "on", *tasks]
    for entry in rows:
        head = [entry["tool"], entry["scheme"], entry["kind"], entry["solver"], str(entry["seeds"])]
        if "error" in entry:
            yield [*head, entry["error"]]
            continue
        scores = [f"{100 * entry['tasks'][task]:.1f}" if task in entry.get("tasks", {}) else "" for task in tasks]
        yield [*head, *(cell(entry, key, form) for _, key, form in COLUMNS), short_name(entry["machine"]), *scores]


def markdown(table):
    out = ["| " + " | ".join(table[0]) + " |", "|" + "---|" * len(table[0])]
    return "\n".join(out + ["| " + " | ".join(row).replace("\n", " ") + " |" for row in table[1:]])


SOLVERS = ["absmax", "rtn", "awq", "gptq", "awq+gptq", "learned"]


def matrix(result):
    """KL of every scheme by every solver of ours that makes it with activations of 16 bits."""
    rows = [row for row in result["rows"] if row["tool"] == "nibble" and row["solver"] in SOLVERS and "kl_mean" in row]
    table = [["scheme", "bits/weight", *SOLVERS]]
    for scheme in dict.fromkeys(row["scheme"] for row in rows):
        found = {row["solver"]: row for row in rows if row["scheme"] == scheme}
        bits = next(iter(found.values()))["bits_per_weight"]
        table.append([scheme, f"{bits:.2f}", *(cell(found.get(solver, {}), "kl_mean", "{:.4f}") for solver in SOLVERS)])
    return table


def text(result):
    """The tables in Markdown: all of it, then KL alone by scheme and solver."""
    return markdown(list(lines(result))) + "\n\n" + markdown(matrix(result))


FAMILIES = [("learned", "learned rounding", "#2a9d5c"), ("gptq", "GPTQ", "#1b6ca8"), ("smoothquant", "SmoothQuant", "#8d6cab"),
            ("awq", "AWQ", "#c04f8f"), ("rtn", "rounding, searched scales", "#d9822b"), ("absmax", "rounding, absmax", "#888888")]


def family(row):
    """The first family whose word is in the solver's name: awq+gptq is GPTQ here."""
    return next((entry for entry in FAMILIES if entry[0] in row["solver"]), FAMILIES[-1])


def plot(rows):
    """KL, logarithmic, against bits a weight of the linears: every row a mark, a disc if ours and a ring if another tool's."""
    points = [row for row in rows if row.get("kl_mean", 0) > 0 and row.get("bits_per_weight")]
    if not points:
        return ""
    width, height, left, right, top, bottom = 900, 520, 64, 24, 40, 52
    lowest, highest = (end(row["bits_per_weight"] for row in points) for end in (min, max))
    x_low, x_high = math.floor(lowest * 2) / 2 - 0.25, math.ceil(highest * 2) / 2 + 0.25
    logs = [math.log10(row["kl_mean"]) for row in points]
    y_low, y_high = min(logs) - 0.1, max(logs) + 0.1

    def x_of(bits):
        return left + (bits - x_low) / (x_high - x_low) * (width - left - right)

    def y_of(log):
        return top + (y_high - log) / (y_high - y_low) * (height - top - bottom)

    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="KL against bits a weight">',
           f'<rect x="{left}" y="{top}" width="{width - left - right}" height="{height - top - bottom}" class="frame"/>']
    for tick in (step * 10.0 ** power for power in range(-6, 2) for step in (1, 2, 5)):
        if y_low <= math.log10(tick) <= y_high:
            y = y_of(math.log10(tick))
            out.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
                       f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for bits in range(math.ceil(x_low), math.floor(x_high) + 1):
        x = x_of(bits)
        out.append(f'<line y1="{top}" y2="{height - bottom}" x1="{x:.1f}" x2="{x:.1f}" class="grid"/>'
                   f'<text x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{bits}</text>')
    out.append(f'<text x="{(left + width - right) / 2}" y="{height - 10}" text-anchor="middle">bits a weight of the linears, '
               f'all that decodes them included</text><text x="{left}" y="{top - 12}">KL to the source, nats</text>')
    for row, log in zip(points, logs):
        colour = family(row)[2]
        look = f'fill="{colour}"' if row["tool"] == "nibble" else f'fill="none" stroke="{colour}" stroke-width="2.5"'
        label = escape.escape(f"{row['tool']} {row['scheme']} {row['solver']}: {row['bits_per_weight']:.2f} bits, KL {row['kl_mean']:.4f}")
        out.append(f'<circle {look} r="{5 if row["tool"] == "nibble" else 8}" cx="{x_of(row["bits_per_weight"]):.1f}" cy="{y_of(log):.1f}"><title>{label}</title></circle>')
    used = [entry for entry in FAMILIES if any(family(row) is entry for row in points)]
    legend = " ".join(f'<span style="color:{colour}">●</span> {name}' for _, name, colour in used)
    return "\n".join(out + ["</svg>", f"<p>{legend}. Rings are other tools. Hover over a mark for its name.</p>"])


STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1800px;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px}th,td{padding:.25rem .6rem;
border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}th:nth-child(-n+4),td:nth-child(-n+4){text-align:left}
tr.peer td{background:#f6f2ea}td.error{text-align:left;white-space:pre-wrap;color:#a00}svg{width:100%;max-width:1000px;height:auto}
.frame{fill:none;stroke:#999}.grid{stroke:#eee}svg text{font-size:12px;fill:#444}dl{display:grid;
grid-template-columns:max-content 1fr;gap:.1rem 1rem}dt{color:#666}dd{margin:0}.scroll{overflow-x:auto}"""


def html(result):
    """One self-contained page."""
    table = list(lines(result))
    head = "".join(f"<th>{escape.escape(title)}</th>" for title in table[0])
    body = []
    for entry, row in zip(result["rows"], table[1:]):
        cells = [f"<td>{escape.escape(value)}</td>" for value in row]
        if "error" in entry:
            cells[-1] = f'<td class="error" colspan="{len(table[0]) - 5}">{escape.escape(entry["error"])}</td>'
        kind = "" if entry["tool"] == "nibble" else ' class="peer"'
        body.append(f"<tr{kind}>{''.join(cells)}</tr>")
    short = [f"<tr>{''.join(f'<td>{escape.escape(value)}</td>' for value in row)}</tr>" for row in matrix(result)]
    short[0] = short[0].replace("td>", "th>")
    keys = ("cpu", "calibration", "judge", "tasks", "commit")
    facts = "".join(f"<dt>{key}</dt><dd>{escape.escape(result[key])}</dd>" for key in keys if result[key])
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Quantization of {escape.escape(result["source"])}</title>'
            f"<style>{STYLE}</style><h1>Quantization of {escape.escape(result['source'])}</h1><dl>{facts}</dl><p>Calibrated rows: mean of the seeds, ± its standard error.</p>"
            f'{plot(result["rows"])}<h2>KL by scheme and solver</h2><div class="scroll"><table>{"".join(short)}</table></div><h2>All of it</h2>'
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div></html>\n')
