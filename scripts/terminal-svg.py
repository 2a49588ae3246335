#!/usr/bin/env python3
"""Draws the output of a command as an SVG picture of a terminal, for the README.

    NUM_FLOWS=3 bash run.sh 2>&1 | scripts/terminal-svg.py '$ NUM_FLOWS=3 bash run.sh' >docs/terminal.svg

The first argument is shown as the command line. Long lines end in an ellipsis.
"""

import sys
from xml.sax.saxutils import escape

COLUMNS = 118
CHARACTER, LINE, MARGIN = 7.25, 17, 14  # px
COLOURS = {
    "$": "#e6edf3",
    "[PROGRESS]": "#8b949e",
    "[TIMING]": "#7ee787",
    "[TARGET]": "#79c0ff",
    "[INPUT]": "#d2a8ff",
    "[RUN]": "#ffa657",
}


def row(text: str, y: int) -> str:
    if len(text) > COLUMNS:
        text = text[: COLUMNS - 1] + "…"
    prefix = text.split(" ", 1)[0]
    colour = COLOURS.get(prefix, "#e6edf3")
    rest = text[len(prefix) :]
    return (
        f'<text x="{MARGIN}" y="{y}" xml:space="preserve"><tspan fill="{colour}">{escape(prefix)}</tspan>'
        f"{escape(rest)}</text>"
    )


def main() -> None:
    lines = sys.argv[1:2] + sys.stdin.read().splitlines()
    width = round(2 * MARGIN + COLUMNS * CHARACTER)
    height = 2 * MARGIN + LINE * len(lines)
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, '
        f'monospace" font-size="12" fill="#c9d1d9">'
    )
    print(f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>')
    for number, line in enumerate(lines):
        print(row(line, MARGIN + 12 + LINE * number))
    print("</svg>")


if __name__ == "__main__":
    main()
