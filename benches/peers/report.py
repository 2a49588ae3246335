"""Ratios and tables, derived only from the measurements of a results file."""

from __future__ import annotations

from statistics import median

OURS = "flowbench"
# A measurement does not count if other processes used more than this share of the processors.
MOST_OTHERS = 0.2

# Task, title of its row, unit of its values.
TASKS = {
    "prefill": ("prefill, 512 tokens", "t/s"),
    "decode-1": ("decode, batch 1", "t/s"),
    "decode-8": ("decode, batch 8", "t/s"),
    "decode-25": ("decode, batch 25", "t/s"),
    "reuse": ("workload, `reuse`", "s"),
    "standalone": ("workload, `standalone`", "s"),
    "load": ("engine load, warm file cache", "s"),
}
# Targets of flowbench: speed-up over a peer.
TARGETS = {
    ("prefill", "llama.cpp"): 8,
    ("decode-1", "llama.cpp"): 2,
    ("decode-25", "llama.cpp"): 10,
    ("reuse", "llama.cpp"): 12,
    ("reuse", "OpenVINO"): 3.5,
    ("standalone", "llama.cpp"): 5,
    ("load", "llama.cpp"): 1,
}


def quiet(measurement: dict) -> bool:
    """Whether the program ran undisturbed."""
    return measurement["others_cpu"] <= MOST_OTHERS


def rounds_of(measurements: list[dict], task: str) -> dict[tuple[str, str], dict[int, float]]:
    """(program, setting) -> round -> value, in the order in which they first ran, without disturbed
    measurements."""
    values: dict[tuple[str, str], dict[int, float]] = {}
    for one in measurements:
        if one["task"] == task and quiet(one):
            key = one["program"], one["setting"]
            values.setdefault(key, {})[one["round"]] = one["value"]
    return values


def comparisons(measurements: list[dict]) -> list[dict]:
    """For each task and peer: the peer's best setting (by median), and median, minimum and maximum of the
    ratios over the common rounds. A ratio above 1 means that flowbench is faster."""
    found = []
    for task, (title, unit) in TASKS.items():
        values = rounds_of(measurements, task)
        ours = next((rounds for (program, _), rounds in values.items() if program == OURS), {})
        for program in dict.fromkeys(program for program, _ in values if program != OURS):
            settings = {
                setting: rounds
                for (name, setting), rounds in values.items()
                if name == program and rounds.keys() & ours.keys()
            }
            if not settings:
                continue
            choose = max if unit == "t/s" else min
            best = choose(settings, key=lambda setting: median(settings[setting].values()))
            theirs = settings[best]
            common = sorted(theirs.keys() & ours.keys())
            ratios = [
                ours[number] / theirs[number] if unit == "t/s" else theirs[number] / ours[number]
                for number in common
            ]
            target = TARGETS.get((task, program))
            found.append(
                {
                    "task": task,
                    "title": title,
                    "unit": unit,
                    "peer": program,
                    "setting": best,
                    "ours": median(ours[number] for number in common),
                    "theirs": median(theirs[number] for number in common),
                    "rounds": len(common),
                    "ratio": median(ratios),
                    "ratio_min": min(ratios),
                    "ratio_max": max(ratios),
                    "target": target,
                    "reached": None if target is None else median(ratios) >= target,
                }
            )
    return found


def number(value: float) -> str:
    """Formats a value with at least three significant digits."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown table that is also aligned on a terminal; the first two columns are text."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths))
        ) + " |"

    rule = ["-" * width if index < 2 else "-" * (width - 1) + ":" for index, width in enumerate(widths)]
    return "\n".join([line(head), line(rule), *map(line, rows)])


def markdown(results: dict) -> str:
    """The whole report."""
    measurements = results["measurements"]
    lines = [f"- {program}: {about}" for program, about in results["programs"].items()]
    lines += [f"- skipped: {program}: {why}" for program, why in results["missing"].items()]
    lines += [f"- {key}: {value}" for key, value in results["environment"].items()]
    disturbed = sum(not quiet(one) for one in measurements)
    if disturbed:
        lines.append(
            f"- {disturbed} of {len(measurements)} measurements ignored: other processes used more than "
            f"{MOST_OTHERS:.0%} of the processors"
        )
    lines += ["", "Speed-up of flowbench (over the best setting of each peer):", ""]
    rows = []
    for one in comparisons(measurements):
        target = "" if one["target"] is None else f"≥ {one['target']:g}"
        reached = {None: "", True: "yes", False: "no"}[one["reached"]]
        rows.append(
            [
                one["title"],
                f"{one['peer']}, {one['setting']}",
                f"{number(one['ours'])} {one['unit']}",
                f"{number(one['theirs'])} {one['unit']}",
                f"{one['ratio']:.2f} ×",
                f"{one['ratio_min']:.2f}–{one['ratio_max']:.2f}",
                str(one["rounds"]),
                target,
                reached,
            ]
        )
    head = ["work", "peer", "flowbench", "peer's", "ratio", "min–max", "rounds", "target", "reached"]
    lines += [table(head, rows), "", "All measurements, medians over the rounds:", ""]
    rows = []
    for task, (title, unit) in TASKS.items():
        for (program, setting), rounds in rounds_of(measurements, task).items():
            of = [
                one
                for one in measurements
                if quiet(one)
                and (one["task"], one["program"], one["setting"]) == (task, program, setting)
            ]
            peaks = [one["peak_bytes"] for one in of if one.get("peak_bytes")]
            prefill = of[-1].get("prefill_tokens")
            rows.append(
                [
                    title,
                    f"{program}, {setting}",
                    f"{number(median(rounds.values()))} {unit}",
                    f"{number(min(rounds.values()))}–{number(max(rounds.values()))}",
                    str(len(rounds)),
                    "" if prefill is None else f"{prefill:,}",
                    f"{max(peaks) / 1e6:.0f} MB" if peaks else "",
                ]
            )
    head = ["work", "program", "median", "min–max", "rounds", "prefilled", "peak RSS"]
    lines.append(table(head, rows))
    return "\n".join(lines) + "\n"
