//! The only file of this crate that runs other programs. Errors quote a program's error output.
//! Arguments never hold a secret.

use anyhow::Context;
use rustix::process::{Pid, Signal};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

/// Number of bytes from the end of a failed program's error output that an error quotes.
const LAST_WORDS: usize = 1500;

/// Program to run, with its arguments and user.
pub(crate) struct Run<'a> {
    program: &'a Path,
    args: Vec<String>,
    dir: Option<&'a Path>,
    user: Option<(u32, u32)>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(program: &'a (impl AsRef<Path> + ?Sized), args: &[&str]) -> Self {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        Self { program: program.as_ref(), args, dir: None, user: None }
    }

    pub(crate) fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(crate) fn dir(mut self, dir: &'a Path) -> Self {
        self.dir = Some(dir);
        self
    }

    /// Sets the user and group of the program, which gets no further groups.
    pub(crate) fn user(mut self, user: Option<(u32, u32)>) -> Self {
        self.user = user;
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        command.args(&self.args).stdin(Stdio::null()).env("LC_ALL", "C.UTF-8");
        if let Some(dir) = self.dir {
            command.current_dir(dir);
        }
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Runs the program to its end and returns its standard output.
    ///
    /// # Errors
    /// When the program cannot be run or fails. The error of a failure quotes the program's last
    /// error output.
    pub(crate) fn output(&self) -> anyhow::Result<String> {
        let name = self.program.display();
        let out = self.command().output().with_context(|| format!("cannot run {name}"))?;
        if out.status.success() {
            return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&out.stderr);
        let from = said.floor_char_boundary(said.len().saturating_sub(LAST_WORDS));
        anyhow::bail!("{name} failed ({}): {}", out.status, said[from..].trim())
    }

    /// Runs the program and passes its standard output to `read` while it comes. The program must
    /// succeed, too: a reader may take an output that broke off for a whole one.
    ///
    /// # Errors
    /// When the program cannot be run or fails, with its last error output, or else the error of
    /// `read`.
    pub(crate) fn stream(
        &self,
        read: impl FnOnce(ChildStdout) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let name = self.program.display();
        let mut command = self.command();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {name}"))?;
        let (out, said) = (child.stdout.take(), child.stderr.take());
        let (out, mut said) = out.zip(said).context("a program without pipes")?;
        // The program's messages are read at the same time, so that they never hold it up.
        let last = std::thread::spawn(move || {
            let (mut last, mut buffer) = (Vec::new(), [0; 4096]);
            while let Ok(count @ 1..) = said.read(&mut buffer) {
                last.extend_from_slice(buffer.get(..count).unwrap_or_default());
                let surplus = last.len().saturating_sub(LAST_WORDS);
                last.drain(..surplus);
            }
            last
        });
        let done = read(out);
        let status = child.wait()?;
        let last = last.join().unwrap_or_default();
        if status.success() {
            return done;
        }
        let last = String::from_utf8_lossy(&last);
        let failed = format!("{name} failed ({status}): {}", last.trim());
        // A reader that fails ends the program, and a program that fails ends the output.
        done.context(failed.clone()).and_then(|()| anyhow::bail!(failed))
    }

    /// Starts the program in a process group of its own, so that a terminal's signals reach only
    /// us. Its output goes to `log`.
    pub(crate) fn spawn(&self, log: std::fs::File) -> anyhow::Result<Child> {
        let mut command = self.command();
        command.stdout(log.try_clone()?).stderr(log).process_group(0);
        command.spawn().with_context(|| format!("cannot start {}", self.program.display()))
    }
}

/// Finds a program on `path` as a shell does, and then in the usual folders.
pub(crate) fn find_program(name: &str, path: &str) -> Option<PathBuf> {
    let also = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    let dirs = path.split(':').chain(also).filter(|dir| dir.starts_with('/'));
    dirs.map(|dir| Path::new(dir).join(name)).find(|at| at.is_file())
}

/// Sends a signal to a process. A process that is gone counts as success.
pub(crate) fn signal(pid: i32, signal: Signal) -> anyhow::Result<()> {
    let Some(pid) = Pid::from_raw(pid) else { return Ok(()) };
    match rustix::process::kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).context("cannot signal a process"),
    }
}
