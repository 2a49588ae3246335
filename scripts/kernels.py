"""Compiles the CUDA kernels to PTX with NVRTC; called by scripts/kernels.sh.

    kernels.py NVRTC_FOLDER check|build           the PTX files beside the sources
    kernels.py NVRTC_FOLDER table PTXAS           registers, spills and shared memory, as a Markdown table
"""

import ctypes
import hashlib
import pathlib
import re
import subprocess
import sys

KERNELS = pathlib.Path(__file__).resolve().parent.parent / "src/engine/cuda/kernels"
PTX = KERNELS / "ptx"
# compute_75 lacks the 8-bit mma.m16n8k32, so that it needs code of its own.
TARGETS = ("compute_75", "compute_80")
OPTIONS = (
    "--std=c++17",
    "--fmad=false",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
    "--diag-suppress=177",  # a function of a header that this kernel does not use
)
CARDS = {
    "sm_75": "compute_75",
    "sm_80": "compute_80",
    "sm_86": "compute_80",
    "sm_89": "compute_80",
    "sm_90": "compute_80",
    "sm_120": "compute_80",
}


def sources():
    return sorted(path for path in KERNELS.iterdir() if path.suffix in (".cu", ".h"))


def digest():
    """SHA-256 over names and contents; engine/cuda/kernels.rs computes the same."""
    sha = hashlib.sha256()
    for path in sources():
        sha.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return sha.hexdigest()


def flattened(path, seen):
    """The source with its headers in place: NVRTC gets one text."""
    text = path.read_text(encoding="utf-8")
    if "#pragma once" in text:
        if path.name in seen:
            return ""
        seen.add(path.name)
        text = text.replace("#pragma once", "")

    def include(match):
        header = KERNELS / match.group(1)
        return flattened(header, seen) if header.exists() else ""

    return re.sub(r'#include "([^"]+)"', include, text)


class Nvrtc:
    def __init__(self, folder):
        found = sorted(pathlib.Path(folder).glob("libnvrtc.so.*"))
        self.library = ctypes.CDLL(str(found[0]))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def text(self, program, what):
        size = ctypes.c_size_t()
        getattr(self.library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(self.library, f"nvrtcGet{what}")(program, buffer)
        return buffer.value.decode()

    def compile(self, path, target):
        program = ctypes.c_void_p()
        source = flattened(path, set()).encode()
        self.library.nvrtcCreateProgram(
            ctypes.byref(program), source, path.name.encode(), 0, None, None
        )
        options = [f"--gpu-architecture={target}", *OPTIONS]
        array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        failed = self.library.nvrtcCompileProgram(program, len(options), array)
        log = self.text(program, "ProgramLog").strip()
        if log:
            print(log, file=sys.stderr)
        if failed or log:
            sys.exit(f"error: NVRTC does not compile {path.name} for {target} without a warning")
        return self.text(program, "PTX")


HEADER = re.compile(r"\A.*?(\.version [^\n]*\n\.target [^\n]*\n\.address_size [^\n]*\n)", re.DOTALL)
# Constants of the compiler's own headers that nothing uses; their names differ from run to run.
INTERNAL = re.compile(r"^\.global [^\n]*_INTERNAL_[^\n]*\n", re.MULTILINE)


def build(nvrtc, target):
    """All kernels as one PTX module."""
    header, bodies = "", []
    for path in sources():
        if path.suffix == ".cu":
            ptx = nvrtc.compile(path, target)
            header = HEADER.match(ptx).group(1)
            body = INTERNAL.sub("", HEADER.sub("", ptx, count=1)).strip()
            bodies.append(f"// {path.name}\n{body}\n")
    head = f"// sources: sha256 {digest()}\n// compiler: NVRTC {nvrtc.version}, {target}\n"
    return head + header + "".join(bodies)


def table(ptxas):
    print("| kernel | card | registers | shared memory, bytes | spills, bytes |")
    print("|---|---|---|---|---|")
    rows = {}
    for card, target in CARDS.items():
        command = [ptxas, "-v", f"-arch={card}", "-o", "/dev/null", str(PTX / f"{target}.ptx")]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        kernel = spills = None
        for line in printed.splitlines():
            if match := re.search(r"Compiling entry function '(\w+)'", line):
                kernel = match.group(1)
            if match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
                spills = int(match.group(1)) + int(match.group(2))
            if match := re.search(r"Used (\d+) registers", line):
                shared = re.search(r"(\d+) bytes smem", line)
                row = (match.group(1), shared.group(1) if shared else "0", str(spills))
                rows.setdefault((kernel, row), []).append(card.removeprefix("sm_"))
    for (kernel, row), cards in sorted(rows.items()):
        print(f"| `{kernel}` | {', '.join(cards)} | {' | '.join(row)} |")


def main():
    folder, task, *rest = sys.argv[1:]
    if task == "table":
        return table(rest[0])
    nvrtc = Nvrtc(folder)
    PTX.mkdir(exist_ok=True)
    for target in TARGETS:
        path, ptx = PTX / f"{target}.ptx", build(nvrtc, target)
        if task == "build":
            path.write_text(ptx, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != ptx:
            sys.exit(f"error: {path.name} is not what the sources compile to\nhint: bash scripts/kernels.sh")
    print(f"{len(TARGETS)} PTX files, NVRTC {nvrtc.version}")


main()
