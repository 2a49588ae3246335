//! The sandbox of an evaluated program: a Landlock ruleset and seccomp filters. They are built here and
//! applied by the child (`worker.py`) right before the program.
//!
//! The policy is written in Rust, with two well-maintained crates to encode it. The child makes one system
//! call per part, which either succeeds or ends the child. Nothing is built between fork and program.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, Scope,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::error::{Error, Result};

/// Placeholder for the child's process id in the filters; the child replaces it.
pub(super) const OWN_PID: u32 = 0x5f1d_b0c5;

/// Where the dynamic loader finds libraries of lazily imported modules.
const LIBRARY_PLACES: [&str; 5] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/etc/ld.so.cache",
];

/// The ruleset and the filters, ready to be applied.
#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) ruleset: OwnedFd,
    /// Seccomp filters as the kernel expects them (`struct sock_filter[]`), in the order of installation.
    pub(super) filters: Vec<Vec<u8>>,
}

impl Sandbox {
    /// A sandbox in which `readable` (Python's own directories) and the system libraries can be read.
    /// Nothing can be written, and no process, socket or device is available.
    pub(super) fn new(readable: &[PathBuf]) -> Result<Self> {
        let hint = "Linux 5.13 or later with CONFIG_SECURITY_LANDLOCK and CONFIG_SECCOMP_FILTER \
                    is needed; trusted programs can run without a sandbox (--unsafe-eval)";
        let failed = |what: &str| {
            Error::preflight(format!("cannot sandbox generated programs: {what}")).hint(hint)
        };
        let ruleset = ruleset(readable).map_err(|error| failed("Landlock").caused_by(error))?;
        Ok(Self {
            ruleset: ruleset.ok_or_else(|| failed("this kernel has no Landlock"))?,
            filters: filters().map_err(|error| failed("seccomp").caused_by(error))?,
        })
    }
}

/// The first ABI (files and directories) is required. Later ones (moving between directories, truncation,
/// TCP, ioctl on devices, signals and abstract sockets) are used if the kernel supports them; seccomp
/// denies all of those as well.
fn ruleset(readable: &[PathBuf]) -> std::result::Result<Option<OwnedFd>, landlock::RulesetError> {
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V6))?
        .handle_access(AccessNet::from_all(ABI::V6))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?;
    let places = readable.iter().cloned();
    for place in places.chain(LIBRARY_PLACES.map(PathBuf::from)) {
        // A path that does not exist on this machine needs no rule.
        if let Ok(handle) = PathFd::new(&place) {
            let access = if place.is_dir() {
                read
            } else {
                AccessFs::ReadFile.into()
            };
            ruleset = ruleset.add_rule(PathBeneath::new(handle, access))?;
        }
    }
    Ok(ruleset.into())
}

/// Two filters, since a filter has one action for what it lists and one for everything else. Calls that
/// only a malicious program makes kill it (`SIGSYS`, reported as `denied`). Calls in neither list fail with
/// ENOSYS: libraries probe for calls and cope without them, and `clone3` must fail this way or threads
/// break.
fn filters() -> std::result::Result<Vec<Vec<u8>>, seccompiler::BackendError> {
    let deadly = SeccompFilter::new(
        deadly()?,
        SeccompAction::Allow,
        SeccompAction::KillProcess,
        std::env::consts::ARCH.try_into()?,
    )?;
    let allowed = SeccompFilter::new(
        allowed()?,
        SeccompAction::Errno(libc::ENOSYS as u32),
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into()?,
    )?;
    [deadly, allowed]
        .into_iter()
        .map(|filter| Ok(bytes(&filter.try_into()?)))
        .collect()
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn always(calls: &[i64]) -> Rules {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

/// `clone` may create threads, with exactly the flags that the C libraries use for that.
const THREAD_FLAGS: libc::c_int = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_SETTID
    | libc::CLONE_CHILD_CLEARTID
    | libc::CLONE_DETACHED;

/// Flags of `clone` that would move a thread out of its process's namespaces.
const NAMESPACE_FLAGS: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// The calls that kill the program, among them `clone` if it would create a process instead of a thread, or
/// a new namespace.
fn deadly() -> std::result::Result<Rules, seccompiler::BackendError> {
    let mut rules = always(DEADLY);
    let no_thread = argument(0, masked(libc::CLONE_THREAD), 0)?;
    let mut clone = vec![SeccompRule::new(vec![no_thread])?];
    for flag in NAMESPACE_FLAGS {
        let is_set = argument(0, masked(flag), bits(flag))?;
        clone.push(SeccompRule::new(vec![is_set])?);
    }
    rules.insert(libc::SYS_clone, clone);
    Ok(rules)
}

/// The calls that work, and four that work in part:
///
/// - `clone` for threads.
/// - `fcntl` for commands that affect nothing but a descriptor (`F_SETOWN` would let a program have signals
///   sent to others).
/// - `prlimit64` to query its own limits, which is how the C libraries do it.
/// - `tgkill` for a program's signals to itself, as sent by `abort`, except SIGKILL, which would look like
///   out of memory, and SIGSTOP.
fn allowed() -> std::result::Result<Rules, seccompiler::BackendError> {
    let mut rules = always(ALLOWED);
    let for_thread = argument(0, masked(!THREAD_FLAGS), 0)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![for_thread])?]);
    let mut commands = Vec::new();
    for command in FCNTL_COMMANDS {
        let is_command = argument(1, SeccompCmpOp::Eq, bits(command))?;
        commands.push(SeccompRule::new(vec![is_command])?);
    }
    rules.insert(libc::SYS_fcntl, commands);
    let own = argument(0, SeccompCmpOp::Eq, 0)?;
    let nothing_new = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    let look_up = SeccompRule::new(vec![own, nothing_new])?;
    rules.insert(libc::SYS_prlimit64, vec![look_up]);
    let mut to_itself = vec![argument(0, SeccompCmpOp::Eq, OWN_PID.into())?];
    for signal in [libc::SIGKILL, libc::SIGSTOP] {
        to_itself.push(argument(2, SeccompCmpOp::Ne, bits(signal))?);
    }
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(to_itself)?]);
    Ok(rules)
}

const FCNTL_COMMANDS: [libc::c_int; 5] = [
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
];

/// A condition on the lower 32 bits of argument `number`.
fn argument(
    number: u8,
    compared: SeccompCmpOp,
    with: u64,
) -> std::result::Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(number, SeccompCmpArgLen::Dword, compared, with)
}

fn masked(mask: libc::c_int) -> SeccompCmpOp {
    SeccompCmpOp::MaskedEq(bits(mask))
}

/// Flags as the kernel compares them: unsigned.
fn bits(flags: libc::c_int) -> u64 {
    u64::from(flags.cast_unsigned())
}

/// The filter as the array of 8-byte instructions that `seccomp(2)` reads.
fn bytes(program: &BpfProgram) -> Vec<u8> {
    let instructions = program.iter();
    let encoded = instructions.flat_map(|instruction| {
        let [code_low, code_high] = instruction.code.to_ne_bytes();
        let [a, b, c, d] = instruction.k.to_ne_bytes();
        [
            code_low,
            code_high,
            instruction.jt,
            instruction.jf,
            a,
            b,
            c,
            d,
        ]
    });
    encoded.collect()
}

const DEADLY: &[i64] = &[
    // Creating processes and executing programs.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    libc::SYS_execve,
    libc::SYS_execveat,
    // Access to other processes.
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pidfd_getfd,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    // Network.
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    // System administration.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_io_uring_setup,
    libc::SYS_userfaultfd,
];

/// What Python and numpy need to import modules, compute, sleep and use threads.
const ALLOWED: &[i64] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    // Files: Landlock decides which.
    libc::SYS_openat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    libc::SYS_faccessat,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_dup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    libc::SYS_dup3,
    // Threads.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals to itself, including alarms.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_alarm,
    libc::SYS_setitimer,
    libc::SYS_getitimer,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Clocks, randomness and ids.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrusage,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getrlimit,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
    libc::SYS_pselect6,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clone_is_both_allowed_and_deadly() {
        let (deadly, allowed) = (deadly().unwrap(), allowed().unwrap());
        let both = allowed.keys().filter(|call| deadly.contains_key(call));
        assert_eq!(both.collect::<Vec<_>>(), [&libc::SYS_clone]);
    }

    /// The child replaces these bytes wherever they occur.
    #[test]
    fn the_process_id_placeholder_occurs_once() {
        let all = filters().unwrap().concat();
        let instructions = all.chunks(8);
        let wanted = OWN_PID.to_ne_bytes();
        assert_eq!(instructions.filter(|one| one[4..] == wanted).count(), 1);
        assert_eq!(all.windows(4).filter(|bytes| *bytes == wanted).count(), 1);
    }

    #[test]
    fn filters_are_within_the_kernel_limit() {
        for filter in filters().unwrap() {
            assert_eq!(filter.len() % 8, 0);
            assert!(filter.len() / 8 <= 4096, "BPF_MAXINSNS");
        }
    }
}
