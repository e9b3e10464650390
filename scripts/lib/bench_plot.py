"""A bar chart of a bench report as SVG: share of native speed, logarithmic, one group of bars a row."""
import math
from xml.sax.saxutils import escape

COLORS = ("#1f77b4", "#7fb3d9", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b")
LEFT, TOP, WIDTH, BAR, GAP = 260, 60, 640, 11, 12
LEAST, MOST = 0.005, 20.0


def x_of(ratio):
    ratio = min(max(ratio, LEAST), MOST)
    return LEFT + WIDTH * math.log(ratio / LEAST) / math.log(MOST / LEAST)


def text(x, y, words, anchor="start", size=12, color="#222"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{color}">'
            f"{escape(words)}</text>")


def svg(report, names):
    parts = []
    y = TOP
    for row in report["rows"]:
        shown = [n for n in names if n in row["targets"]]
        height = len(shown) * BAR
        parts.append(text(LEFT - 8, y + height / 2 + 4, row["row"], "end"))
        for number, name in enumerate(shown):
            got = row["targets"][name]
            top, one = y + number * BAR, x_of(1)
            end = x_of(got["ratio"])
            color = COLORS[names.index(name) % len(COLORS)]
            parts.append(f'<rect x="{min(one, end):.1f}" y="{top}" width="{max(abs(end - one), 1):.1f}" '
                         f'height="{BAR - 2}" fill="{color}"/>')
            low, high = x_of(got["ratio_least"]), x_of(got["ratio_most"])
            middle = top + (BAR - 2) / 2
            parts.append(f'<line x1="{low:.1f}" y1="{middle}" x2="{high:.1f}" y2="{middle}" '
                         'stroke="#222" stroke-width="1"/>')
        y += height + GAP
    axis = []
    for ratio in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10):
        x = x_of(ratio)
        axis.append(f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{y}" '
                    f'stroke="{"#222" if ratio == 1 else "#ddd"}"/>')
        axis.append(text(x, y + 16, f"{ratio:g}", "middle", 11))
    legend, x = [], LEFT
    for number, name in enumerate(names):
        legend.append(f'<rect x="{x}" y="30" width="10" height="10" fill="{COLORS[number % len(COLORS)]}"/>')
        legend.append(text(x + 14, 39, name))
        x += 30 + 7 * len(name)
    title = text(10, 18, f"Share of native speed (1 = native), {report['date'][:10]}, commit "
                         f"{report['commit'][:12]}, median and spread", size=13)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 30}" height="{y + 30}" '
            'font-family="sans-serif"><rect width="100%" height="100%" fill="white"/>'
            + title + "".join(legend + axis + parts) + "</svg>\n")
