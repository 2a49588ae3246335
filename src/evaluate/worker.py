"""The zygote: an interpreter that has its modules loaded and forks for each evaluation.

Standard input is the control socket (frames: 4 bytes of length, little-endian, then JSON; file
descriptors ride along). The other side is `zygote.rs`; deadlines are kept there, through the pidfd
that every "started" carries. A child puts the sandbox on, writes "S" and the time to its result pipe,
runs the program and writes one JSON value. Nothing is trusted of what comes after the "S" and its
time, which are written before the program's first line.
"""

import sys

sys.path = [place for place in sys.path if place]
if sys.version_info < (3, 9):
    sys.exit("Python 3.9 or later is needed, this is " + sys.version.split()[0])

import array, bisect, collections, copy, ctypes, dataclasses, errno, fcntl, functools, gc  # noqa: E401
import heapq, importlib, itertools, json, math, operator, os, random, resource  # noqa: E401
import select, signal, socket, statistics, string, struct, time, traceback, typing  # noqa: E401

FIRST_OTHER_DESCRIPTOR = 5  # 0-2 are /dev/null, 3 is the result pipe, 4 the ruleset
MOST_DESCRIPTORS = 256  # of the zygote; children have fewer
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
SECCOMP_MODE_FILTER = 2
LINUX_CAPABILITY_VERSION_3 = 0x20080522
SYS_LANDLOCK_RESTRICT_SELF = 446  # the same on every architecture

libc = ctypes.CDLL(None, use_errno=True)
libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
libc.syscall.argtypes = [ctypes.c_long] * 3
libc.syscall.restype = ctypes.c_long


class Filter(ctypes.Structure):
    """struct sock_fprog: how many instructions, and where."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


# Where a generator is left without a seed, it takes one from here; see `make_chance_repeatable`.
entropy = random.Random(0)


def checked(result, what):
    if result != 0:
        raise OSError(ctypes.get_errno(), what + ": " + os.strerror(ctypes.get_errno()))


def prctl(option, value, more=0):
    checked(libc.prctl(option, value, more, 0, 0), "prctl")


# ---------------------------------------------------------------------------------- control socket


def send(control, message, descriptors=()):
    body = json.dumps(message).encode()
    frame = struct.pack("<I", len(body)) + body
    sent = socket.send_fds(control, [frame], list(descriptors))
    control.sendall(frame[sent:])


def receive(control):
    """The next frame with its descriptors; ends the zygote when the other side is gone."""
    descriptors = []
    (length,) = struct.unpack("<I", receive_exactly(control, 4, descriptors))
    return json.loads(receive_exactly(control, length, descriptors)), descriptors


def receive_exactly(control, count, descriptors):
    data = bytearray()
    while len(data) < count:
        part, more, _, _ = socket.recv_fds(control, count - len(data), 4)
        if not part:
            os._exit(0)
        data += part
        descriptors += more
    return bytes(data)


# -------------------------------------------------------------------------------------- the child


def confine(request, sandbox, zygote):
    """Everything that must hold before the first line of the program, in this order."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != zygote:
        os._exit(1)  # it died before the line above
    os.setsid()
    for what, most in request["limits"].items():
        resource.setrlimit(getattr(resource, "RLIMIT_" + what), (most, most))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if sandbox is None:
        return
    checked(libc.syscall(SYS_LANDLOCK_RESTRICT_SELF, 4, 0), "Landlock")
    os.close(4)
    for program in sandbox["filters"]:
        entry = Filter(len(program) // 8, program)
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(entry))


def run(request):
    """Runs the program; what it came to, as bytes of JSON."""
    namespace = {"__name__": "__program__", "__builtins__": __builtins__}
    try:
        exec(compile(request["code"], "<program>", "exec"), namespace)
        names = [name for name in request["entry_points"] if callable(namespace.get(name))]
        if not names:
            return raised("runtime_error", "it defines none of " + ", ".join(request["entry_points"]))
        returned = namespace[names[0]](*request["arguments"])
    except MemoryError:
        namespace.clear()
        return raised("oom", "MemoryError")
    except OSError as error:
        refused = error.errno in (errno.EACCES, errno.EPERM, errno.ENOSYS)
        return raised("denied" if refused else "runtime_error", described(error))
    except BaseException as error:
        return raised("runtime_error", described(error))
    try:
        plain = json.dumps({"returned": returned}, allow_nan=False, default=lambda it: it.tolist())
        return plain.encode()
    except MemoryError:
        return raised("oom", "MemoryError")
    except BaseException as error:
        return raised("bad_output", "what it returned is no plain data: " + described(error))


def raised(kind, message):
    # An error's text can hold half a surrogate pair, which is no Unicode; it is shown escaped.
    text = message[:2000].encode("utf-8", "backslashreplace").decode()
    return json.dumps({"raised": kind, "message": text}).encode()


def described(error):
    """The type, the text and the line of the program; the text is the program's own code."""
    name = type(error).__name__
    try:
        text = str(error)
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == "<program>"]
        return "%s: %s%s" % (name, text, " (line %d)" % lines[-1] if lines else "")
    except BaseException:
        return name


def write_all(descriptor, data):
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def child(request, result, sandbox, zygote):
    # First up, out of the way of the numbers that they get; then all else is closed, the control
    # socket above all.
    high = [fcntl.fcntl(it, fcntl.F_DUPFD, 100) for it in (result, sandbox["ruleset"] if sandbox else result)]
    null = fcntl.fcntl(os.open("/dev/null", os.O_RDWR), fcntl.F_DUPFD, 100)
    for place, descriptor in enumerate([null, null, null] + high):
        os.dup2(descriptor, place, inheritable=False)
    os.closerange(FIRST_OTHER_DESCRIPTOR, MOST_DESCRIPTORS)
    if not sandbox:
        os.close(4)
    try:
        confine(request, sandbox, zygote)
        entropy.seed(request["seed"])
        random.seed(request["seed"])
        numpy = sys.modules.get("numpy")
        if numpy:
            numpy.random.seed(request["seed"] % 2**32)
    except BaseException as error:
        write_all(3, b"F" + described(error).encode("utf-8", "backslashreplace"))
        os._exit(1)
    write_all(3, b"S" + struct.pack("<Q", time.monotonic_ns()))  # CLOCK_MONOTONIC, in one write
    write_all(3, run(request))
    os._exit(0)


# ------------------------------------------------------------------------------------- the zygote


def start(control, request, result, sandbox, children, poller):
    zygote = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        send(control, {"event": "failed", "id": request["id"], "message": str(error)})
        return
    if pid == 0:
        try:
            child(request, result, sandbox, zygote)
        finally:
            os._exit(1)
    pidfd = os.pidfd_open(pid)
    children[pidfd] = (pid, request["id"])
    poller.register(pidfd, select.POLLIN)
    send(control, {"event": "started", "id": request["id"]}, [pidfd])


def ended(control, pidfd, children, poller):
    poller.unregister(pidfd)
    os.close(pidfd)
    pid, number = children.pop(pidfd)
    _, status, usage = os.wait4(pid, 0)
    cpu = usage.ru_utime + usage.ru_stime
    send(control, {"event": "ended", "id": number, "status": status, "cpu_seconds": cpu})


def drop_capabilities():
    """Leaves no capability, and none to be had again; the children inherit that. It changes nothing
    where there is none to begin with."""
    for capability in range(64):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            if ctypes.get_errno() in (errno.EINVAL, errno.EPERM):  # past the last, or not privileged
                break
            checked(-1, "PR_CAPBSET_DROP")
    header = struct.pack("Ii", LINUX_CAPABILITY_VERSION_3, 0)
    checked(libc.capset(header, bytes(24)), "capset")


def make_chance_repeatable():
    """Lets the same seed give the same numbers also where a program asks for a generator without one:
    `random.Random()`, `random.seed()`, `numpy.random.default_rng()`, whose seeds come from the kernel."""
    with_seed = random.Random.seed

    def seed(self, a=None, version=2):
        with_seed(self, entropy.getrandbits(256) if a is None else a, version)

    random.Random.seed = seed
    random.seed = random.seed.__self__.seed
    generators = sys.modules.get("numpy.random.bit_generator")
    if generators:
        # What numpy's SeedSequence calls, and with it all of its generators.
        generators.randbits = entropy.getrandbits


def load(names):
    """Imports and uses what programs are likely to use: numpy loads parts of itself lazily."""
    loaded = {}
    for name in names:
        try:
            module = importlib.import_module(name)
        except Exception:  # not installed, or broken: what needs it will say so
            continue
        loaded[name] = version_of(name, module)
        if name == "numpy":
            square = module.random.default_rng(0).random((4, 4))
            module.linalg.norm(square @ square.T, axis=0).sum().item()
    return loaded


def version_of(name, module):
    version = getattr(module, "__version__", None)
    if version is None:
        from importlib import metadata  # slow to load, and most modules say it themselves

        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = ""
    return str(version)


def main():
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_NOFILE, (MOST_DESCRIPTORS, MOST_DESCRIPTORS))
    control = socket.socket(fileno=os.dup(0))
    loaded = load(sys.argv[2:])
    try:
        exec(compile(sys.argv[1], "<warm-up>", "exec"), {"__name__": "__warm_up__"})
    except Exception:
        pass  # a module that is not there
    make_chance_repeatable()
    drop_capabilities()
    version = sys.version.split()[0]
    send(control, {"event": "ready", "python": version, "paths": sys.path, "loaded": loaded})
    setup, descriptors = receive(control)
    null = os.open("/dev/null", os.O_RDWR)
    for place in range(3):
        os.dup2(null, place)
    sandbox = None
    if setup["filters"] is not None:
        filters = [bytes.fromhex(program) for program in setup["filters"]]
        sandbox = {"filters": filters, "ruleset": descriptors[0]}
    children = {}
    poller = select.poll()
    poller.register(control.fileno(), select.POLLIN)
    gc.collect()
    gc.freeze()
    while True:
        for descriptor, _ in poller.poll():
            if descriptor != control.fileno():
                ended(control, descriptor, children, poller)
                continue
            request, results = receive(control)
            start(control, request, results[0], sandbox, children, poller)
            os.close(results[0])


main()
