//! The matrix of what a program may try, and what it finds when it looks around.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;

use flowbench::evaluate::Outcome;

use super::support::{children_of, evaluate, expect, pool, program, wait_until, within};

/// The matrix of what a program may try.
#[test]
fn hostile_programs_come_to_nothing() {
    let written = "/tmp/flowbench-evaluate-was-here";
    let _ = fs::remove_file(written);
    let write = format!("open('{written}', 'w').write('x')\nreturn 1");
    let link = format!("os.symlink('/etc/passwd', '{written}')\nreturn 1");
    let call = |number: i64, arguments: &str| {
        program(&format!(
            "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n\
             return libc.syscall({number}, {arguments})"
        ))
    };
    let denied = Outcome::Denied;
    expect(&[
        ("fork", program("return os.fork()"), denied, "SIGSYS"),
        ("fork, raw", call(libc_number::FORK, "0"), denied, "SIGSYS"),
        (
            // CLONE_VM, CLONE_SIGHAND, CLONE_THREAD, CLONE_NEWNET
            "a thread with a network of its own",
            call(libc_number::CLONE, "0x40010900, 0, 0, 0, 0"),
            denied,
            "SIGSYS",
        ),
        (
            "more memory",
            program("import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))"),
            denied,
            "OSError",
        ),
        (
            "the parent's limits",
            program("import resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU)"),
            denied,
            "OSError",
        ),
        (
            "exec",
            program("os.execv('/bin/true', ['true'])"),
            denied,
            "SIGSYS",
        ),
        ("system", program("return os.system('true')"), denied, ""),
        (
            "subprocess",
            program("import subprocess\nsubprocess.run(['true'])"),
            denied,
            "",
        ),
        (
            "socket",
            program("import socket\nsocket.socket()"),
            denied,
            "SIGSYS",
        ),
        (
            "passwd",
            program("return len(open('/etc/passwd').read())"),
            denied,
            "/etc/passwd",
        ),
        (
            "proc",
            program("return len(open('/proc/self/environ').read())"),
            denied,
            "PermissionError",
        ),
        (
            "listing",
            program("return len(os.listdir('/root' if os.getuid() == 0 else '/'))"),
            denied,
            "PermissionError",
        ),
        ("write", program(&write), denied, "PermissionError"),
        ("symlink", program(&link), denied, "OSError"),
        ("unlink", program("os.unlink('/tmp/x')"), denied, "OSError"),
        (
            "chmod",
            program("os.chmod('/tmp', 0o777)"),
            denied,
            "OSError",
        ),
        (
            "signal the parent",
            program("os.kill(os.getppid(), 9)"),
            denied,
            "SIGSYS",
        ),
        ("signal all", program("os.kill(-1, 9)"), denied, "SIGSYS"),
        (
            "have others signalled",
            program("import fcntl\nfcntl.fcntl(3, fcntl.F_SETOWN, os.getppid())"),
            denied,
            "OSError",
        ),
        (
            "a device",
            program("open('/dev/null')"),
            denied,
            "PermissionError",
        ),
        (
            "a terminal",
            program("open('/dev/tty', 'r+b')"),
            denied,
            "PermissionError",
        ),
        (
            "ptrace",
            call(libc_number::PTRACE, "0, 0, 0, 0"),
            denied,
            "SIGSYS",
        ),
        (
            "mount",
            call(libc_number::MOUNT, "0, 0, 0, 0, 0"),
            denied,
            "SIGSYS",
        ),
        (
            "3 GiB",
            program("return len(bytearray(3 << 30))"),
            Outcome::Oom,
            "MemoryError",
        ),
        (
            "threads without end",
            program(
                "import threading, time\nthreading.stack_size(32768)\nwhile True:\n    \
                 try: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n    \
                 except RuntimeError: time.sleep(0.001)",
            ),
            denied,
            "more than 256 threads",
        ),
        (
            "some threads",
            program(
                "import threading\nend = threading.Event()\n\
                 many = [threading.Thread(target=end.wait) for _ in range(50)]\n\
                 for t in many: t.start()\nend.set()\nfor t in many: t.join()\nreturn 1",
            ),
            Outcome::Ok,
            "",
        ),
        (
            "signal the parent by thread",
            call(libc_number::TGKILL, "os.getppid(), os.getppid(), 0"),
            Outcome::Ok,
            "",
        ),
        (
            "pretend to be out of memory",
            call(libc_number::TGKILL, "os.getpid(), os.getpid(), 9"),
            Outcome::Ok,
            "",
        ),
        (
            "stop itself",
            call(libc_number::TGKILL, "os.getpid(), os.getpid(), 19"),
            Outcome::Ok,
            "",
        ),
        (
            "segfault",
            program("import ctypes\nreturn ctypes.string_at(0)[0]"),
            Outcome::Crashed,
            "signal: 11",
        ),
        (
            "loop",
            within(300, "while True: pass"),
            Outcome::Timeout,
            "0.3 s",
        ),
        (
            "sleep",
            within(300, "import time\ntime.sleep(1000)"),
            Outcome::Timeout,
            "0.3 s",
        ),
        (
            "catches all",
            within(
                300,
                "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
            ),
            Outcome::Timeout,
            "",
        ),
        (
            "flood by return",
            program("return 'x' * 100_000_000"),
            Outcome::BadOutput,
            "1048576 bytes",
        ),
        (
            "flood by pipe",
            program("while True: os.write(3, b'x' * 65536)"),
            Outcome::BadOutput,
            "1048576 bytes",
        ),
        (
            "flood by print",
            within(300, "while True: print('x' * 65536)"),
            Outcome::Timeout,
            "",
        ),
        (
            "a million open files",
            program("files = [open(os.__file__) for _ in range(1_000_000)]\nreturn len(files)"),
            Outcome::RuntimeError,
            "Too many open files",
        ),
        (
            "a million pipes",
            program("return len([os.pipe() for _ in range(1_000_000)])"),
            denied,
            "OSError",
        ),
        (
            "descriptors of the zygote",
            program(
                "found = 0\nfor number in range(4, 1024):\n    try:\n        os.fstat(number)\n        \
                 found += 1\n    except OSError: pass\nreturn found",
            ),
            Outcome::Ok,
            "",
        ),
        (
            "a forged result",
            program("os.write(3, b'{\"returned\": 1e400}')\nos._exit(0)"),
            Outcome::BadOutput,
            "",
        ),
    ]);
    assert!(!fs::exists(written).unwrap(), "a program wrote {written}");
}

/// System calls by number, for programs that go past Python.
mod libc_number {
    #[cfg(target_arch = "x86_64")]
    pub(super) const TGKILL: i64 = 234;
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) const TGKILL: i64 = 131;
    #[cfg(target_arch = "x86_64")]
    pub(super) const FORK: i64 = 57;
    #[cfg(target_arch = "x86_64")]
    pub(super) const CLONE: i64 = 56;
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) const CLONE: i64 = 220;
    #[cfg(target_arch = "x86_64")]
    pub(super) const PTRACE: i64 = 101;
    #[cfg(target_arch = "x86_64")]
    pub(super) const MOUNT: i64 = 165;
    // clone without flags
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) const FORK: i64 = 220;
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) const PTRACE: i64 = 117;
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) const MOUNT: i64 = 40;
}

#[test]
fn no_descriptor_of_the_zygote_reaches_a_program() {
    let finished = evaluate(
        &mut pool(),
        program(
            "found = 0\nfor number in range(1024):\n    try:\n        os.fstat(number)\n        \
             found += 1\n    except OSError: pass\nreturn found",
        ),
    );
    // /dev/null three times, and the result pipe.
    assert_eq!(finished.score, Some(4.0), "{finished:?}");
}

/// What this process has inherited without a mark that it be closed reaches no program, however high.
#[test]
fn no_inherited_descriptor_reaches_a_program() {
    let file = fs::File::open("/dev/null").unwrap();
    for number in [400, 900] {
        // SAFETY: the numbers are used by nobody here, and the copies are closed below.
        assert_eq!(unsafe { libc::dup2(file.as_raw_fd(), number) }, number);
    }
    let mut pool = pool();
    let zygote = pool.zygote_pid();
    let id = pool.submit(program("import time\ntime.sleep(1000)"));
    wait_until("a child", || children_of(zygote).len() == 1);
    let child = children_of(zygote)[0];
    let highest = |pid: u32| {
        let names = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let numbers = names.filter_map(|name| name.file_name().to_str()?.parse::<u32>().ok());
        numbers.max().unwrap()
    };
    wait_until("a sandbox", || highest(child) == 3);
    assert!(highest(zygote) < 256);
    pool.cancel(id);
    for number in [400, 900] {
        // SAFETY: made above.
        unsafe { libc::close(number) };
    }
}

/// Where the kernel schedules sessions as groups (autogroup), niceness counts within one only.
#[test]
fn programs_are_nice_to_this_process() {
    let mut pool = pool();
    let zygote = pool.zygote_pid();
    let id = pool.submit(program("import time\ntime.sleep(1000)"));
    wait_until("a child", || children_of(zygote).len() == 1);
    let stat = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields = stat.rsplit_once(") ").unwrap().1.split(' ');
        fields.map(str::to_owned).collect::<Vec<_>>()
    };
    let own = stat("self");
    for pid in [zygote, children_of(zygote)[0]] {
        let of_it = stat(&pid.to_string());
        let (group, session, nice) = (&of_it[2], &of_it[3], &of_it[16]);
        assert_eq!(*session, own[3], "the same session");
        assert_ne!(*group, own[2], "another group, which Ctrl-C does not reach");
        let expected = own[16].parse::<i32>().unwrap() + 10;
        assert_eq!(nice.parse::<i32>().unwrap(), expected.min(19));
    }
    pool.cancel(id);
}

#[test]
fn what_is_on_no_list_is_not_there() {
    let mut pool = pool();
    // PR_SET_PDEATHSIG, so that it would outlive its parent; a thread with CLONE_PTRACE.
    for call in [
        "libc.prctl(1, 0, 0, 0, 0)".to_owned(),
        format!("libc.syscall({}, 0x12900, 0, 0, 0, 0)", libc_number::CLONE),
    ] {
        let body = format!(
            "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n\
             return {call} * 1000 + ctypes.get_errno()"
        );
        let finished = evaluate(&mut pool, program(&body));
        // -1 and ENOSYS.
        assert_eq!(finished.score, Some(-962.0), "{call}: {finished:?}");
    }
}

/// Lines of `/proc/PID/status` that begin with `Cap`, by name.
fn capabilities(pid: &str) -> BTreeMap<String, u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let lines = status.lines().filter_map(|line| line.split_once(":\t"));
    lines
        .filter(|(name, _)| name.starts_with("Cap"))
        .map(|(name, bits)| (name.to_owned(), u64::from_str_radix(bits, 16).unwrap()))
        .collect()
}

#[test]
fn a_program_has_no_capabilities_whoever_runs_it() {
    const CAP_SETPCAP: u64 = 1 << 8;
    let mut pool = pool();
    let zygote = pool.zygote_pid();
    let id = pool.submit(program("import time\ntime.sleep(1000)"));
    wait_until("a child", || children_of(zygote).len() == 1);
    for pid in [zygote, children_of(zygote)[0]] {
        let mut left = capabilities(&pid.to_string());
        // Without this capability the bounding set stays, and is of no use to a program that can
        // execute nothing.
        if capabilities("self")["CapEff"] & CAP_SETPCAP == 0 {
            left.remove("CapBnd");
        }
        assert!(left.len() >= 4, "{left:?}");
        assert!(left.values().all(|bits| *bits == 0), "{pid}: {left:x?}");
    }
    assert_eq!(pool.open(), 1, "{id:?}");
}
