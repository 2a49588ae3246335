"""The zygote: an interpreter that has its modules loaded and forks for each evaluation.

The other side is `zygote.rs`. While it starts, JSON frames go over the control socket (standard input).
After that the pool sends one byte a command:

  f   fork. The child takes one message from the job socket, which carries two descriptors: the result
      socket, and a file with the request.
  w   wait for a child that has ended; the answer is a `Report`. The pool sends it once the child's pidfd
      says that it is dead, so the process id cannot have been used again before.

The zygote never sees a request. Its loop allocates the same objects every time, so that its heap, and with
it every address that a program sees, does not depend on what was evaluated before.

The child's first message on the result socket is `S` and its process id, or `F`, the same, and what failed.
It is sent before the program's first line. A socket cannot be opened again through /proc/self/fd, so a
program can neither take it back nor send another in its place. All times are the kernel's and the pool's.
"""

import sys

sys.path = [place for place in sys.path if place]
if sys.version_info < (3, 9):
    sys.exit("Python 3.9 or later is needed, this is " + sys.version.split()[0])

import array, bisect, collections, copy, ctypes, dataclasses, errno, fcntl, functools, gc  # noqa: E401
import heapq, importlib, importlib.util, itertools, json, linecache, math, operator, os  # noqa: E401
import random, resource, signal, socket, statistics, string, struct, time, traceback, types  # noqa: E401
import typing  # noqa: E401

FIRST_OTHER_DESCRIPTOR = 5  # in a child: 0-2 are /dev/null, 3 is the result socket, 4 the ruleset
CONTROL, JOBS, RULESET, NULL = 100, 101, 102, 103  # in the zygote
FIRST_FREE = 104
MOST_DESCRIPTORS = 256  # of the zygote; children have fewer
LONGEST_MESSAGE = 32768  # a result is sent in pieces; the kernel refuses messages of some 200 KiB
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
SECCOMP_MODE_FILTER = 2
LINUX_CAPABILITY_VERSION_3 = 0x20080522
SYS_LANDLOCK_RESTRICT_SELF = 446  # the same on every architecture

libc = ctypes.CDLL(None, use_errno=True)
libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
libc.syscall.argtypes = [ctypes.c_long] * 3
libc.syscall.restype = ctypes.c_long
libc.wait4.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]


class Filter(ctypes.Structure):
    """struct sock_fprog: how many instructions, and where."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


class Report(ctypes.Structure):
    """What wait4 says of a child: process id, status, struct rusage."""

    _fields_ = [("pid", ctypes.c_int), ("status", ctypes.c_int), ("usage", ctypes.c_long * 18)]


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
    if struct.pack("=I", os.getppid()) != zygote:
        os._exit(1)  # it died before the line above
    for what, most in request["limits"].items():
        resource.setrlimit(getattr(resource, "RLIMIT_" + what), (most, most))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if sandbox is None:
        return
    checked(libc.syscall(SYS_LANDLOCK_RESTRICT_SELF, 4, 0), "Landlock")
    os.close(4)
    own = struct.pack("=I", os.getpid())
    for program in sandbox["filters"]:
        # A program may send signals to itself; its process id is known only now.
        program = program.replace(sandbox["own_pid"], own)
        entry = Filter(len(program) // 8, program)
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(entry))


def run(request):
    """Runs the program; what it came to, as bytes of JSON."""
    # A module that can be imported: dataclasses, pickle and typing look classes up in theirs.
    module = types.ModuleType("__program__")
    namespace = module.__dict__
    namespace["__builtins__"] = __builtins__
    sys.modules["__program__"] = module
    sys.argv = ["<program>"]
    code = request["code"]
    linecache.cache["<program>"] = (len(code), None, code.splitlines(True), "<program>")
    try:
        exec(compile(code, "<program>", "exec", dont_inherit=True), namespace)
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
        return raised("bad_output", "the return value is not plain data: " + described(error))


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
        view = view[os.write(descriptor, view[:LONGEST_MESSAGE]) :]


def take_job(jobs):
    """The request; its result socket is descriptor 3 from then on."""
    _, descriptors, _, _ = socket.recv_fds(jobs, 1, 2)
    result, request = descriptors
    # Not fstat: how many objects its result has differs with the number of the inode.
    text = os.pread(request, os.lseek(request, 0, os.SEEK_END), 0)
    result = fcntl.fcntl(result, fcntl.F_DUPFD, FIRST_FREE)  # out of the way of the numbers below
    for place, descriptor in enumerate([NULL, NULL, NULL, result, RULESET]):
        os.dup2(descriptor, place, inheritable=False)
    os.closerange(FIRST_OTHER_DESCRIPTOR, MOST_DESCRIPTORS)
    return json.loads(text)


def child(jobs, sandbox, zygote):
    request = take_job(jobs)
    if sandbox is None:
        os.close(4)
    mark = struct.pack("=I", os.getpid())
    try:
        confine(request, sandbox, zygote)
        entropy.seed(request["seed"])
        random.seed(request["seed"])
        numpy = sys.modules.get("numpy")
        if numpy:
            numpy.random.seed(request["seed"] % 2**32)
    except BaseException as error:
        os.write(3, b"F" + mark + described(error)[:2000].encode("utf-8", "backslashreplace"))
        os._exit(1)
    os.write(3, b"S" + mark)
    write_all(3, run(request))
    os._exit(0)


# ------------------------------------------------------------------------------------- the zygote


def serve():
    """Forks and waits as it is told. Returns in each child.

    Whatever is allocated here is freed in the reverse order before the next round, and nothing is kept.
    """
    report = Report()
    status = ctypes.addressof(report) + Report.status.offset
    usage = ctypes.addressof(report) + Report.usage.offset
    read, write, fork, wait4 = os.read, os.write, os.fork, libc.wait4
    while True:
        command = read(CONTROL, 1)
        if command == b"f":
            if fork() == 0:  # where it fails, the zygote ends, and the pool starts another
                return
        elif command == b"w":
            report.pid = wait4(-1, status, 0, usage)
            write(CONTROL, report)
        else:
            os._exit(0)


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


def is_installed(name):
    try:
        return importlib.util.find_spec(name) is not None
    except Exception:  # a broken package
        return False


def close_inherited():
    """Descriptors that the pool's own parent left open: a sandbox does not cover what is open already."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.close(int(name))
            except OSError:
                pass  # the listing's own


def first_to_be_killed():
    """Where memory runs out, the kernel is to end programs, and not the process that measures."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass


def main():
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    close_inherited()
    # A group of its own, which Ctrl-C at the terminal does not reach. Not a session: the kernel may
    # schedule each session as a group (autogroup), and niceness counts only within one.
    os.setpgid(0, 0)
    os.nice(10)
    first_to_be_killed()
    resource.setrlimit(resource.RLIMIT_NOFILE, (MOST_DESCRIPTORS, MOST_DESCRIPTORS))
    control = socket.socket(fileno=os.dup(0))
    warm_up, wanted, preload = sys.argv[1], sys.argv[2].split(","), sys.argv[3:]
    loaded = load(preload)
    missing = [name for name in wanted if name and name not in loaded and not is_installed(name)]
    try:
        exec(compile(warm_up, "<warm-up>", "exec"), {"__name__": "__warm_up__"})
    except Exception:
        pass  # a module that is not there
    make_chance_repeatable()
    drop_capabilities()
    version = sys.version.split()[0]
    ready = {"python": version, "paths": sys.path, "loaded": loaded, "missing": missing}
    send(control, ready)
    setup, descriptors = receive(control)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(control.fileno(), CONTROL)
    os.dup2(descriptors[0], JOBS)
    os.dup2(null, NULL)
    os.dup2(descriptors[1] if len(descriptors) > 1 else null, RULESET)
    for place in range(3):
        os.dup2(null, place)
    control.detach()
    os.closerange(3, CONTROL)
    os.closerange(FIRST_FREE, MOST_DESCRIPTORS)
    sandbox = None
    if setup["filters"] is not None:
        filters = [bytes.fromhex(program) for program in setup["filters"]]
        sandbox = {"filters": filters, "own_pid": struct.pack("=I", setup["own_pid"])}
    jobs = socket.socket(fileno=JOBS)
    # As bytes: small numbers are objects that exist already, others are made.
    zygote = struct.pack("=I", os.getpid())
    del setup, descriptors
    gc.collect()
    gc.freeze()
    serve()
    try:
        child(jobs, sandbox, zygote)
    finally:
        os._exit(1)


main()
