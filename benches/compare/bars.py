"""Bars side by side, as SVG: what each of some was by each of others."""

from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, TOP = 720, 230, 110, 44
BAR, BETWEEN = 14, 12
COLOURS = ["#1f6f8b", "#c97b2b", "#7a7a7a"]


def svg(title, names, groups, show):
    """`groups` are a label and one number for each of `names`; `show` makes a number's text. The longest bar of
    each group is as long as any other's: groups may be of different size, and are not compared."""
    each = BAR * len(names) + BETWEEN
    height = TOP + 24 + each * len(groups)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="13" fill="#222">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{WIDTH / 2}" y="20" text-anchor="middle" font-size="16">{escape(title)}</text>',
    ]
    for at, name in enumerate(names):
        x = LEFT + 160 * at
        out.append(f'<rect x="{x}" y="{TOP - 12}" width="12" height="12" fill="{COLOURS[at]}"/>')
        out.append(f'<text x="{x + 18}" y="{TOP - 2}">{escape(name)}</text>')
    for group, (label, numbers) in enumerate(groups):
        y = TOP + 16 + group * each
        middle = y + BAR * len(names) / 2 + 4
        out.append(f'<text x="{LEFT - 10}" y="{middle:.1f}" text-anchor="end">{escape(label)}</text>')
        for at, number in enumerate(numbers):
            length = (WIDTH - LEFT - RIGHT) * number / max(numbers)
            top = y + BAR * at
            out.append(f'<rect x="{LEFT}" y="{top}" width="{length:.1f}" height="{BAR - 2}" fill="{COLOURS[at]}"/>')
            out.append(f'<text x="{LEFT + length + 6:.1f}" y="{top + 11}" font-size="11">{escape(show(number))}</text>')
    return "\n".join([*out, "</svg>", ""])
