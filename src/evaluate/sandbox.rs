//! What an evaluated program may do: a Landlock ruleset and seccomp filters, made here and put on by
//! the child (`worker.py`) right before the program.
//!
//! The policy is Rust, where two well-kept crates encode it; the child only makes one system call a
//! part, each of which either works or ends the child. Nothing is built between fork and program.

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

/// Where the dynamic loader finds what a lazily imported module links to.
const LIBRARY_PLACES: [&str; 5] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/etc/ld.so.cache",
];

/// Both programs, ready to be put on.
#[derive(Debug)]
pub(super) struct Sandbox {
    /// The Landlock ruleset.
    pub(super) ruleset: OwnedFd,
    /// Seccomp filters as the kernel takes them (`struct sock_filter[]`), in the order in which they
    /// are installed.
    pub(super) filters: Vec<Vec<u8>>,
}

impl Sandbox {
    /// A sandbox in which `readable` (Python's own folders) and the system's libraries may be read,
    /// nothing may be written, and no process, socket or device is to be had.
    pub(super) fn new(readable: &[PathBuf]) -> Result<Self> {
        let hint = "a kernel from 5.13 on with CONFIG_SECURITY_LANDLOCK and CONFIG_SECCOMP_FILTER \
                    is needed; programs that you trust can be run without (--unsafe-eval)";
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

/// The first ABI is demanded (files and folders), later ones (moving between folders, truncation,
/// TCP, ioctl on devices, signals and abstract sockets) are used where the kernel has them; seccomp
/// refuses all of the latter as well.
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
        // A place that this machine lacks gives nothing to read.
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

/// Two filters, since a filter has one answer for what it lists and one for all else. What a program
/// can only mean ill by ends it (`SIGSYS`, told as `denied`). What is in neither list fails with
/// ENOSYS: libraries probe for calls and do without, and `clone3` must fail so, or threads break.
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

/// The calls that end the program, and `clone` where it would make a process instead of a thread.
fn deadly() -> std::result::Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        DEADLY.iter().map(|call| (*call, Vec::new())).collect();
    let no_thread = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(libc::CLONE_THREAD as u64),
        0,
    )?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![no_thread])?]);
    Ok(rules)
}

/// The calls that work, and `fcntl` for the commands that touch a descriptor and nobody else
/// (`F_SETOWN` would let a program have signals sent to others).
fn allowed() -> std::result::Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let commands = [
        libc::F_DUPFD,
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
    ];
    let command_rules = commands.map(|command| {
        let is_command =
            SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, command as u64)?;
        SeccompRule::new(vec![is_command])
    });
    let command_rules: std::result::Result<Vec<_>, _> = command_rules.into_iter().collect();
    rules.insert(libc::SYS_fcntl, command_rules?);
    Ok(rules)
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
    // Processes and programs.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    libc::SYS_execve,
    libc::SYS_execveat,
    // Others' processes.
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pidfd_getfd,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    // The network.
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    // The machine.
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

/// What Python and numpy need to import, compute, sleep and use threads. `clone` is here for threads:
/// the other filter ends a program that asks it for a process.
const ALLOWED: &[i64] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    // Files: Landlock says which.
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
    libc::SYS_clone,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals to itself.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Time, chance and names.
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
        let deadly = deadly().unwrap();
        let both: Vec<i64> = ALLOWED
            .iter()
            .copied()
            .filter(|call| deadly.contains_key(call))
            .collect();
        assert_eq!(both, [libc::SYS_clone]);
    }

    #[test]
    fn filters_fit_the_kernel() {
        for filter in filters().unwrap() {
            assert_eq!(filter.len() % 8, 0);
            assert!(filter.len() / 8 <= 4096, "BPF_MAXINSNS");
        }
    }
}
