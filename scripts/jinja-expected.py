"""Writes src/engine/testdata/chat/{python,families}.json: how Jinja2 renders templates.

    python3 scripts/jinja-expected.py     (needs jinja2)

The environment is that of transformers (`apply_chat_template`): a sandbox with immutable lists and
dictionaries, trimmed blocks, loop controls, custom `tojson`, `raise_exception` and `strftime_now`, and
the tag `generation`. The date is fixed.
"""

import datetime
import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

FOLDER = pathlib.Path(__file__).parent.parent / "src/engine/testdata/chat"


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def environment():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols],
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime.datetime(2024, 7, 26).strftime(form)
    return env


MESSAGES = [
    {"role": "system", "content": "  Be brief.\n"},
    {"role": "user", "content": "Hi <b> & 'x' \"y\" é\t😀"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello."},
    {"role": "user", "content": "Bye\n"},
]


def render(source, messages, bos="<s>", eos="</s>"):
    try:
        template = environment().from_string(source)
        return {
            "text": template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                bos_token=bos,
                eos_token=eos,
            )
        }
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main():
    sources = json.loads((FOLDER / "python.json").read_text())
    cases = [{"template": case["template"], **render(case["template"], MESSAGES)} for case in sources]
    text = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    (FOLDER / "python.json").write_text(f"[\n{text}\n]\n")

    conversations = {
        "user": MESSAGES[1:2],
        "system and user": MESSAGES[:2],
        "four turns": MESSAGES,
        "three turns": MESSAGES[1:],
    }
    cases = []
    for path in sorted((FOLDER / "families").glob("*.jinja")):
        for name, messages in conversations.items():
            case = {"family": path.stem, "conversation": name, "messages": messages}
            cases.append({**case, **render(path.read_text(), messages)})
    text = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    (FOLDER / "families.json").write_text(f"[\n{text}\n]\n")


main()
