//! The Python process that forks for each evaluation: started, told its sandbox, ended.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::personality::{self, Persona};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt::SendTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};
use rustix::fs::{MemfdFlags, memfd_create};

use super::protocol::{self, Inbox, SetUp, Start, send, send_with};
use super::sandbox::{OWN_PID, Sandbox};
use super::settings::{PythonInfo, Settings};
use crate::error::{Error, Result};
use crate::stopwatch;

/// What the child process runs.
const WORKER: &str = include_str!("worker.py");

/// How long Python may take until it has its modules loaded: a cold disk and a busy machine included.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// How long a request may wait for a zygote that does not read (s).
const READS_WITHIN: u32 = 5;

/// A running zygote. It ends when this is dropped, and when this process dies in any way: its socket
/// closes, and it has asked for SIGKILL at its parent's death. Its children die with it.
#[derive(Debug)]
pub(super) struct Zygote {
    process: Child,
    socket: UnixStream,
    /// Where its children take their requests.
    jobs: OwnedFd,
    pub(super) inbox: Inbox,
    pub(super) python: PythonInfo,
}

impl Zygote {
    /// Starts Python and waits until it is ready. The calling thread must live as long as the zygote
    /// is needed, since the death signal follows threads.
    pub(super) fn start(settings: &Settings) -> Result<Self> {
        let context = || {
            let python = settings.python.display();
            format!("cannot start the evaluation process '{python}'")
        };
        let started = Self::spawn(settings).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => {
                    "install Python 3.9 or later, or name the one to use (PYTHON, --python)"
                }
                _ => "check that it is a Python 3.9 or later that can be executed",
            };
            Error::preflight(context()).caused_by(error).hint(hint)
        });
        let mut zygote = started?;
        let paths = zygote.wait_until_ready().map_err(|error| {
            let said = zygote.last_words();
            let hint = "evaluations need Python 3.9 or later on Linux 5.13 or later";
            let failed = Error::preflight(context()).hint(hint);
            if said.is_empty() {
                failed.caused_by(error)
            } else {
                failed.caused_by(said)
            }
        })?;
        zygote.process.stderr = None;
        let sandbox = match Sandbox::new(&paths) {
            Err(_) if settings.unsafe_eval => None,
            sandbox => Some(sandbox?),
        };
        zygote.python.sandboxed = sandbox.is_some();
        zygote
            .set_up(sandbox.as_ref())
            .map_err(|error| Error::preflight(context()).caused_by(error))?;
        Ok(zygote)
    }

    /// Hands over the sandbox and the children's side of the job socket.
    fn set_up(&mut self, sandbox: Option<&Sandbox>) -> io::Result<()> {
        let (jobs, for_children) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        setsockopt(&jobs, SendTimeout, &TimeVal::seconds(READS_WITHIN.into()))?;
        self.jobs = jobs;
        let mut descriptors = vec![for_children.as_fd()];
        descriptors.extend(sandbox.map(|sandbox| sandbox.ruleset.as_fd()));
        let filters = sandbox.map(|sandbox| {
            let filters = sandbox.filters.iter();
            filters.map(|filter| hex(filter)).collect()
        });
        let set_up = SetUp {
            filters,
            own_pid: OWN_PID,
        };
        send(&self.socket, &set_up, &descriptors)
    }

    fn spawn(settings: &Settings) -> io::Result<Self> {
        let (socket, other_side) = UnixStream::pair()?;
        socket.set_write_timeout(Some(Duration::from_secs(READS_WITHIN.into())))?;
        let fixed = FixedAddresses::of_this_thread();
        let process = Command::new(&settings.python)
            .args(["-s", "-c", WORKER, &settings.warm_up])
            .arg(settings.wanted.join(","))
            .args(&settings.preload)
            .env_clear()
            .envs(&settings.environment)
            // The order in sets of strings is part of "the same seed, the same result".
            .env("PYTHONHASHSEED", "0")
            .env("OPENBLAS_NUM_THREADS", "1")
            .env("OMP_NUM_THREADS", "1")
            .env("MKL_NUM_THREADS", "1")
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(other_side)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let fixed_addresses = fixed.is_ok();
        drop(fixed);
        Ok(Self {
            process,
            jobs: socket.try_clone()?.into(),
            socket,
            inbox: Inbox::default(),
            python: PythonInfo {
                version: String::new(),
                loaded: BTreeMap::new(),
                missing: Vec::new(),
                fixed_addresses,
                sandboxed: false,
            },
        })
    }

    /// Returns the places that Python imports from.
    fn wait_until_ready(&mut self) -> io::Result<Vec<std::path::PathBuf>> {
        let give_up = stopwatch::now() + READY_WITHIN;
        loop {
            if let Some(ready) = self.inbox.ready()? {
                self.python.version = ready.python;
                self.python.loaded = ready.loaded;
                self.python.missing = ready.missing;
                return Ok(ready.paths);
            }
            let remaining = give_up.saturating_duration_since(stopwatch::now());
            let timeout = PollTimeout::try_from(remaining).unwrap_or(PollTimeout::MAX);
            let mut socket = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut socket, timeout) {
                Ok(0) => {
                    let why = format!("it was not ready within {} s", READY_WITHIN.as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                }
                Ok(_) => self
                    .inbox
                    .fill(&self.socket)
                    .map_err(|error| match error.kind() {
                        io::ErrorKind::UnexpectedEof => io::Error::other("it ended at once"),
                        _ => error,
                    })?,
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The last line that a zygote which did not start wrote on stderr.
    fn last_words(&mut self) -> String {
        // Either way there is nothing more to be told than what comes back.
        let _ = self.process.kill();
        let mut said = Vec::new();
        if let Some(stderr) = self.process.stderr.take() {
            let _ = stderr.take(64 * 1024).read_to_end(&mut said);
        }
        let said = String::from_utf8_lossy(&said);
        said.trim_end().lines().last().unwrap_or("").to_owned()
    }

    /// Asks for an evaluation; what the program returns will be written to `result`.
    ///
    /// The request is a file in memory, so that neither side waits for the other however long it is.
    pub(super) fn request(&self, start: &Start<'_>, result: BorrowedFd<'_>) -> io::Result<()> {
        let mut request = File::from(memfd_create("flowbench-request", MemfdFlags::CLOEXEC)?);
        request.write_all(&serde_json::to_vec(start)?)?;
        send_with(&self.jobs, b"j", &[result, request.as_fd()])?;
        self.command(protocol::FORK)
    }

    /// Has it wait for one of its children that are dead; a report will come.
    pub(super) fn wait_for_one(&self) -> io::Result<()> {
        self.command(protocol::WAIT)
    }

    fn command(&self, command: u8) -> io::Result<()> {
        send_with(&self.socket, &[command], &[])?;
        Ok(())
    }

    /// Takes what has arrived, once the socket is readable.
    pub(super) fn fill_inbox(&mut self) -> io::Result<()> {
        self.inbox.fill(&self.socket)
    }

    /// The socket to wait on.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }
}

/// While this lives, what this thread starts has no randomised addresses (`ADDR_NO_RANDOMIZE`). In Python
/// the hashes of most objects are made of their addresses, and the order of sets of those.
///
/// It is a property of the thread and goes on to the processes that it starts, so nothing has to run
/// between fork and exec, which would make the start slow.
struct FixedAddresses(Persona);

impl FixedAddresses {
    /// Fails where a container forbids it.
    fn of_this_thread() -> nix::Result<Self> {
        let before = personality::get()?;
        personality::set(before | Persona::ADDR_NO_RANDOMIZE)?;
        Ok(Self(before))
    }
}

impl Drop for FixedAddresses {
    fn drop(&mut self) {
        // What could be set can be taken back; otherwise only later zygotes would have it, too.
        let _ = personality::set(self.0);
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        // An error means that it is dead already; `wait` clears the zombie either way.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
