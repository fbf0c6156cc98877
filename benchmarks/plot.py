"""Times ``cp`` over the rank, as text and as SVG."""

from __future__ import annotations

from math import log2

WIDTH, HEIGHT, MARGIN = 560, 320, 48
COLORS = {"hash": "#1f77b4", "no hash": "#d62728"}


def ranks_as_text(series: dict[str, dict[int, float]]) -> str:
    """One bar a rank and kind."""
    longest = max(value for values in series.values() for value in values.values())
    lines = ["", "times cp by rank, all linear layers, two workers"]
    for kind, values in series.items():
        for rank, value in values.items():
            lines.append(f"{kind:8} {rank:4} {value:6.2f} {'#' * round(40 * value / longest)}")
    return "\n".join(lines)


def ranks_as_svg(series: dict[str, dict[int, float]]) -> str:
    """Two lines over a logarithmic axis of ranks."""
    top = max(value for values in series.values() for value in values.values()) * 1.1
    ranks = sorted({rank for values in series.values() for rank in values})

    def x(rank: int) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * log2(rank) / log2(ranks[-1])

    def y(value: float) -> float:
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * value / top

    size = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{MARGIN}" y="24">wall clock of the merge, times cp, by rank (two workers)</text>',
    ]
    for step in range(int(top) + 1):
        parts.append(f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y(step):.1f}" y2="{y(step):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{MARGIN - 8}" y="{y(step) + 4:.1f}" text-anchor="end">{step}</text>')
    parts += [
        f'<text x="{x(rank):.1f}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{rank}</text>' for rank in ranks
    ]
    for number, (kind, values) in enumerate(series.items()):
        points = " ".join(f"{x(rank):.1f},{y(value):.1f}" for rank, value in values.items())
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLORS[kind]}" stroke-width="2"/>')
        label = (
            f'<text x="{WIDTH - MARGIN}" y="{24 + 16 * number}" text-anchor="end" fill="{COLORS[kind]}">{kind}</text>'
        )
        parts.append(label)
    return "\n".join([*parts, "</svg>", ""])
