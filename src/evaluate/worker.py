"""The zygote: an interpreter with its modules loaded that forks for each evaluation.

The other side is `zygote.rs`. During start-up, JSON frames go over the control socket (standard input).
After that the pool sends one byte per command:

  f   fork. The child takes one message from the job socket, with two descriptors: the result socket, and
      a file with the request.
  w   reap a child that has ended, and answer with a `Report`. The pool sends it once the child's pidfd
      shows that it is dead, so the process id cannot have been reused before.

The zygote never sees a request. Its loop allocates the same objects every time, so its heap, and thus every
address that a program sees, does not depend on earlier evaluations.

The child's first message on the result socket is `S` and its process id, or `F`, its process id and the
error. It is sent before the program's first line. A socket cannot be reopened through /proc/self/fd, so a
program can neither take it back nor replace it. All times are measured by the kernel and the pool.
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
    """struct sock_fprog: instruction count and address."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


class Report(ctypes.Structure):
    """The result of wait4: process id, status, struct rusage."""

    _fields_ = [("pid", ctypes.c_int), ("status", ctypes.c_int), ("usage", ctypes.c_long * 18)]


# Seeds of generators that a program does not seed itself; see `make_chance_repeatable`.
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
    """The next frame and its descriptors. Exits if the other side is gone."""
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
    """Applies every restriction before the program's first line, in this order."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if struct.pack("=I", os.getppid()) != zygote:
        os._exit(1)  # the zygote died before the first line here
    for what, most in request["limits"].items():
        resource.setrlimit(getattr(resource, "RLIMIT_" + what), (most, most))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if sandbox is None:
        return
    checked(libc.syscall(SYS_LANDLOCK_RESTRICT_SELF, 4, 0), "Landlock")
    os.close(4)
    own = struct.pack("=I", os.getpid())
    for program in sandbox["filters"]:
        # A program may send signals to itself, and its process id is known only now.
        program = program.replace(sandbox["own_pid"], own)
        entry = Filter(len(program) // 8, program)
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(entry))


def run(request):
    """Runs the program and returns its result as JSON bytes."""
    # Must be importable: dataclasses, pickle and typing look classes up in their modules.
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
    # An error message may contain an unpaired surrogate, which is not valid Unicode; it is escaped.
    text = message[:2000].encode("utf-8", "backslashreplace").decode()
    return json.dumps({"raised": kind, "message": text}).encode()


def described(error):
    """Type, message and line of an error. The message is produced by the program's own code."""
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
    """Returns the request; descriptor 3 is its result socket from then on."""
    _, descriptors, _, _ = socket.recv_fds(jobs, 1, 2)
    result, request = descriptors
    # Not fstat: the number of objects that it allocates depends on the inode number.
    text = os.pread(request, os.lseek(request, 0, os.SEEK_END), 0)
    result = fcntl.fcntl(result, fcntl.F_DUPFD, FIRST_FREE)  # must not collide with the numbers below
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
    """Forks and reaps on command. Returns only in a child.

    Whatever is allocated here is freed in the reverse order before the next round, and nothing is kept.
    """
    report = Report()
    status = ctypes.addressof(report) + Report.status.offset
    usage = ctypes.addressof(report) + Report.usage.offset
    read, write, fork, wait4 = os.read, os.write, os.fork, libc.wait4
    while True:
        command = read(CONTROL, 1)
        if command == b"f":
            if fork() == 0:  # if fork fails, the zygote ends and the pool starts another
                return
        elif command == b"w":
            report.pid = wait4(-1, status, 0, usage)
            write(CONTROL, report)
        else:
            os._exit(0)


def drop_capabilities():
    """Drops all capabilities for good; children inherit that. Does nothing if there are none."""
    for capability in range(64):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            if ctypes.get_errno() in (errno.EINVAL, errno.EPERM):  # past the last, or not privileged
                break
            checked(-1, "PR_CAPBSET_DROP")
    header = struct.pack("Ii", LINUX_CAPABILITY_VERSION_3, 0)
    checked(libc.capset(header, bytes(24)), "capset")


def make_chance_repeatable():
    """Makes generators that a program does not seed repeatable for the same seed: `random.Random()`,
    `random.seed()`, `numpy.random.default_rng()`. They would otherwise take their seeds from the kernel."""
    with_seed = random.Random.seed

    def seed(self, a=None, version=2):
        with_seed(self, entropy.getrandbits(256) if a is None else a, version)

    random.Random.seed = seed
    random.seed = random.seed.__self__.seed
    generators = sys.modules.get("numpy.random.bit_generator")
    if generators:
        # Called by numpy's SeedSequence, and so by all of its generators.
        generators.randbits = entropy.getrandbits


def load(names):
    """Imports the modules and triggers numpy's lazy loading, so that children need not."""
    loaded = {}
    for name in names:
        try:
            module = importlib.import_module(name)
        except Exception:  # not installed, or broken; programs that need it report it
            continue
        loaded[name] = version_of(name, module)
        if name == "numpy":
            square = module.random.default_rng(0).random((4, 4))
            module.linalg.norm(square @ square.T, axis=0).sum().item()
    return loaded


def version_of(name, module):
    version = getattr(module, "__version__", None)
    if version is None:
        from importlib import metadata  # slow to load, and most modules have __version__

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
    """Closes descriptors leaked by the pool's parent, since a sandbox does not cover open descriptors."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.close(int(name))
            except OSError:
                pass  # the descriptor of the listing itself


def first_to_be_killed():
    """Makes the kernel's out-of-memory killer prefer the programs to the process that measures."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass


def main():
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    close_inherited()
    # Its own process group, so that Ctrl-C at the terminal does not reach it. Not its own session: the kernel
    # may schedule each session as a group (autogroup), and niceness counts only within one.
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
        pass  # a module may be missing
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
    # As bytes: small ints are preallocated and others are not, so an int could change the allocations.
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
