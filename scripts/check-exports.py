#!/usr/bin/env python3
"""Reads the exports of a run as their consumers do, and compares them with the run's own files.

    pip install duckdb junitparser jsonschema lxml opentelemetry-proto opentelemetry-semantic-conventions \
        pandas prometheus-client
    python3 scripts/check-exports.py results/RUN EXPORTS

EXPORTS is a folder with a file per format, named by the format (`flowbench export -o FORMAT --to EXPORTS/FORMAT`).
A file that is missing is not checked.
"""

import base64
import collections
import csv
import io
import json
import math
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent

# https://bencher.dev/bmf.json
BENCHER = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": {
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"minLength": 1, "maxLength": 64},
        "additionalProperties": {
            "type": "object",
            "properties": {name: {"type": "number"} for name in ("value", "lower_value", "upper_value")},
            "required": ["value"],
            "additionalProperties": False,
        },
    },
    "propertyNames": {"minLength": 1, "maxLength": 1024},
}

# What github-action-benchmark reads of a custom tool's output.
GITHUB = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "unit": {"type": "string", "minLength": 1},
            "value": {"type": "number"},
            "range": {"type": "string"},
            "extra": {"type": "string"},
        },
        "required": ["name", "unit", "value"],
        "additionalProperties": False,
    },
}


class Run:
    def __init__(self, folder):
        self.record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        lines = (folder / "steps.jsonl").read_text(encoding="utf-8").split("\n")
        self.steps = [json.loads(line) for line in lines if line]
        self.template = self.record["expansion"]["template"]
        self.flows = self.record["workflows"]
        self.failed = [flow for flow in self.flows if flow["error"] is not None]


def xml_text(text):
    """The text as the export writes it: what XML cannot hold is an escape."""
    invalid = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
    return invalid.sub(lambda found: "\\u{%x}" % ord(found.group()), text)


def junit(path, run):
    import junitparser
    from lxml import etree

    schema = etree.XMLSchema(etree.parse(str(HERE / "junit.xsd")))
    schema.assertValid(etree.parse(str(path)))
    suites = junitparser.JUnitXml.fromfile(str(path))
    (suite,) = list(suites)
    assert suite.name == xml_text(run.template), suite.name
    whole = [case for case in suite if case.name == "run"]
    cases = [case for case in suite if case.name != "run"]
    assert bool(whole) == (run.record["status"] != "complete" and not run.failed)
    assert len(cases) == len(run.flows)
    assert (suite.tests, suite.failures, suite.errors) == (len(list(suite)), len(run.failed), len(whole))
    for case, flow in zip(cases, run.flows):
        round_ = f" ({flow['mode']}, round {flow['round']})" if "mode" in flow else ""
        assert case.name == xml_text(f"flow {flow['flow']}: {flow['row']}{round_}"), case.name
        assert case.classname == xml_text(run.template)
        assert math.isclose(case.time, flow["workflow_ms"] / 1e3, abs_tol=0.0005001)
        shown = re.search(r"\[\[PROPERTY\|workflow_ms=(.*)\]\]", case.system_out)
        assert math.isclose(float(shown.group(1)), flow["workflow_ms"])
        problems = [result.text for result in case.result]
        assert problems == ([] if flow["error"] is None else [xml_text(flow["error"])]), problems
    properties = {item.name: item.value for item in suite.properties()}
    assert properties["run_id"] == run.record["run_id"]
    if run.record["totals"].get("workflow_ms"):
        assert float(properties["workflow_ms"]) > 0


def github(path, run, names):
    import jsonschema

    entries = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(entries, GITHUB)
    found = [entry["name"] for entry in entries]
    assert len(set(found)) == len(found), "names identify series"
    assert all(name.startswith(run.template) for name in found)
    assert names <= {name.rsplit("/", 1)[1] for name in found}, found
    for entry in entries:
        if "range" in entry:
            # The action's own pattern.
            value = re.search(r"((\+-|±)\s*)(\d.+)", entry["range"])
            assert value and float(value.group(3)) >= 0, entry


def github_benchmark(path, run):
    github(path, run, {"workflow_ms", "benchmark_total_ms", "latency_ms", "prefill_tokens"})


def github_benchmark_bigger(path, run):
    github(path, run, {"reused_tokens"})


def bencher(path, run):
    import jsonschema

    benchmarks = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(benchmarks, BENCHER)
    steps = {f"{run.template}/{position['step']}" for position in run.record["totals"]["positions"]}
    assert set(benchmarks) == {run.template} | steps, set(benchmarks)
    for measures in benchmarks.values():
        for measure in measures.values():
            assert measure.get("lower_value", -math.inf) <= measure["value"]
            assert measure["value"] <= measure.get("upper_value", math.inf)


def table(path, run):
    import duckdb
    import pandas

    texts = ["row", "output", "answer", "detail", "out_hash", "mode", "needs"]
    numbers = ["flow", "start_ms", "latency_ms", "ttft_ms", "prompt_tokens", "decode_tokens", "sample", "score"]

    def expected(step, name):
        if name == "needs":
            return " ".join(step["needs"]) or None
        value = step.get(name)
        return (value or "").replace("\0", "\ufffd") or None if name in texts else value

    text = path.read_bytes().decode("utf-8")
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(lines) == len(run.steps)
    for line, step in zip(lines, run.steps):
        for name in texts:
            assert (line[name] or None) == expected(step, name), (name, line[name])

    exact = pandas.read_csv(path, keep_default_na=False, na_values=[""], dtype={name: str for name in texts})
    plain = pandas.read_csv(path)
    query = f"SELECT * FROM '{path}'"
    duck = duckdb.sql(query).df()
    for frame in (exact, plain, duck):
        assert len(frame) == len(run.steps), len(frame)
        for name in numbers:
            for value, step in zip(frame[name], run.steps):
                wanted = expected(step, name)
                same = pandas.isna(value) if wanted is None else math.isclose(value, wanted, rel_tol=1e-12)
                assert same, (name, value, wanted)
    for frame in (exact, duck):
        for name in ["row", "output", "detail"]:
            for value, step in zip(frame[name], run.steps):
                wanted = expected(step, name)
                assert (None if pandas.isna(value) else value) == wanted, (name, value, wanted)


def openmetrics(path, run):
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as new
    from prometheus_client.parser import text_string_to_metric_families as old

    text = path.read_bytes().decode("utf-8")
    for parse in (new, old):
        families = {family.name: family for family in parse(text)}
        assert all(family.type == "gauge" for family in families.values())
        samples = [sample for family in families.values() for sample in family.samples]
        keys = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in samples]
        assert len(set(keys)) == len(keys), "a series is there twice"
        # node_exporter refuses the whole file otherwise.
        assert all(sample.timestamp is None for sample in samples)
        assert all(sample.labels["template"] == run.template for sample in samples)
        counts = {sample.labels["result"]: sample.value for sample in families["flowbench_workflows"].samples}
        assert counts == {"done": len(run.flows) - len(run.failed), "failed": len(run.failed)}
        (info,) = families["flowbench_run_info"].samples
        assert info.labels["run_id"] == run.record["run_id"]
        if run.record["totals"].get("workflow_ms"):
            stats = {sample.labels["stat"]: sample.value for sample in families["flowbench_workflow_ms"].samples}
            # The program's JSON parser may differ in the last bit.
            assert math.isclose(stats["mean"], run.record["totals"]["workflow_ms"]["mean"], rel_tol=1e-12)
    units = {family.name: family.unit for family in new(text)}
    assert units["flowbench_benchmark_total_ms"] == "ms", units


def otlp(path, run):
    from google.protobuf import json_format
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

    text = path.read_text(encoding="utf-8")
    assert text.count("\n") == 1, "the Collector's file receiver reads a request per line"
    request = json.loads(text)
    spans = request["resourceSpans"][0]["scopeSpans"][0]["spans"]
    # Enumerations are numbers, 64-bit integers are strings, ids are hex: protobuf's own JSON has base64.
    for span in spans:
        for time in ("startTimeUnixNano", "endTimeUnixNano"):
            assert isinstance(span[time], str) and span[time].isdigit()
        assert isinstance(span["kind"], int)
        for holder in [span, *span.get("links", [])]:
            for name, length in (("traceId", 32), ("spanId", 16), ("parentSpanId", 16)):
                if name in holder:
                    assert re.fullmatch("[0-9a-f]{%d}" % length, holder[name]), holder[name]
                    holder[name] = base64.b64encode(bytes.fromhex(holder[name])).decode()
    parsed = json_format.ParseDict(request, ExportTraceServiceRequest())
    spans = parsed.resource_spans[0].scope_spans[0].spans

    assert len({span.span_id for span in spans}) == len(spans), "a span is there twice"
    known = {span.span_id: span for span in spans}
    roots = [span for span in spans if not span.parent_span_id]
    seen = {(step.get("mode"), step.get("round"), step["flow"]) for step in run.steps}
    seen |= {(flow.get("mode"), flow.get("round"), flow["flow"]) for flow in run.flows}
    assert (len(roots), len(spans)) == (len(seen), len(seen) + len(run.steps))
    assert sum(root.status.code == root.status.STATUS_CODE_ERROR for root in roots) == len(run.failed)

    conventions = {
        value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_") and isinstance(value, str)
    }
    gone = {"gen_ai.system", "gen_ai.prompt", "gen_ai.completion", "gen_ai.usage.prompt_tokens",
            "gen_ai.usage.completion_tokens"}
    tokens = collections.Counter()
    for span in spans:
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        attributes = {item.key: item.value for item in span.attributes}
        for event in span.events:
            attributes.update({item.key: item.value for item in event.attributes})
        own = {name for name in attributes if name.startswith("gen_ai.")}
        assert own <= conventions - gone, own - conventions
        if span.parent_span_id:
            parent = known[span.parent_span_id]
            assert parent.trace_id == span.trace_id
            # Rounding to nanoseconds.
            assert parent.start_time_unix_nano <= span.start_time_unix_nano + 1
            assert all(known[link.span_id].trace_id == span.trace_id for link in span.links)
        for name in ("input", "output"):
            key = f"gen_ai.usage.{name}_tokens"
            tokens[name] += attributes[key].int_value if key in attributes else 0
    assert tokens["input"] == sum(step["prompt_tokens"] for step in run.steps)
    assert tokens["output"] == sum(step["decode_tokens"] for step in run.steps)


def github_summary(path, run):
    text = path.read_bytes()
    assert 0 < len(text) <= 1024 * 1024
    assert text.decode("utf-8").startswith("## ")


CHECKS = {
    "junit": junit,
    "github-benchmark": github_benchmark,
    "github-benchmark-bigger": github_benchmark_bigger,
    "bencher": bencher,
    "csv": table,
    "openmetrics": openmetrics,
    "otlp": otlp,
    "github-summary": github_summary,
}


def main(arguments):
    if len(arguments) != 2:
        sys.exit(__doc__)
    run = Run(pathlib.Path(arguments[0]))
    exports = pathlib.Path(arguments[1])
    for name, check in CHECKS.items():
        # The suffix is what DuckDB knows a CSV file by.
        path = exports / f"{name}{'.csv' if name == 'csv' else ''}"
        if path.exists():
            check(path, run)
            print(f"{name}: ok")


if __name__ == "__main__":
    main(sys.argv[1:])
