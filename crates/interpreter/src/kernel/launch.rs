//! Starts of kernels: `python` by the fork server, `javascript`, `typescript` and `bash` by our own
//! hosts, and any other language by a Jupyter kernelspec.

use super::jupyter::{self, Dialect, Facts, Files};
use super::python::Python;
use super::specs::{self, Spec};
use super::tail::Tail;
use super::{SEED, Saved, StartError, StartSpec, Started, bash, node};
use crate::process::{FolderError, Process, Program, User};
use crate::settings::Settings;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Folders in which programs of the settings are looked for.
const PATH: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Value of `oom_score_adj` of a kernel, as of all programs of users.
const OOM_SCORE: i32 = 100;

/// Parts that starts of kernels share.
pub(crate) struct Launcher {
    settings: Arc<Settings>,
    python: Python,
}

/// Means by which a language is started.
enum Means {
    Python,
    Node,
    Bash,
    Kernelspec(Box<Spec>),
}

impl Launcher {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        Self { python: Python::new(Arc::clone(&settings)), settings }
    }

    /// Starts a kernel.
    ///
    /// # Errors
    /// Returns an error for an unknown language, for a folder that the user cannot enter, and for a
    /// kernel that does not answer within its time.
    pub(crate) async fn start(&self, spec: StartSpec) -> Result<Started, StartError> {
        match self.means(&spec.language)? {
            Means::Python => self.python.start(&spec).await,
            Means::Node => node::start(&self.settings, spec).await,
            Means::Bash => bash::start(&self.settings, spec).await,
            Means::Kernelspec(kernelspec) => self.start_kernelspec(&spec, &kernelspec).await,
        }
    }

    /// Finds a kernel of an earlier interpreter again.
    ///
    /// # Errors
    /// Returns an error if the kernel has ended or does not answer.
    pub(crate) async fn adopt(&self, spec: StartSpec, saved: Saved) -> Result<Started, StartError> {
        // A kernel without means ends here, since nobody else would find it.
        let means = self.means(&spec.language).inspect_err(|_| drop(Process::adopt(&saved)))?;
        match means {
            Means::Node => node::adopt(&self.settings, spec, saved).await,
            Means::Bash => bash::adopt(&self.settings, spec, saved).await,
            Means::Python | Means::Kernelspec(_) => {
                jupyter::adopt(&saved).await.map_err(|error| failed(&spec, error, ""))
            }
        }
    }

    /// Returns the languages that can be started, in alphabetical order.
    pub(crate) fn languages(&self) -> Vec<String> {
        let known = specs::names(&self.settings.kernels);
        let own = ["bash", "javascript", "python", "typescript"];
        let own = own.into_iter().filter(|language| self.own(language).is_some());
        let all: BTreeSet<String> = known.into_iter().chain(own.map(str::to_owned)).collect();
        all.into_iter().collect()
    }

    /// Waits until the fork server is up.
    ///
    /// # Errors
    /// Returns an error if the server does not start.
    pub(crate) async fn ready(&self) -> Result<(), StartError> {
        match self.own("python") {
            Some(_) => self.python.ready().await,
            None => Ok(()),
        }
    }

    /// Gives the generators of all kernels that are forked from now on other randomness.
    pub(crate) fn epoch(&self, seed: [u8; SEED]) {
        self.python.epoch(seed);
    }

    fn means(&self, language: &str) -> Result<Means, StartError> {
        let by_kernelspec = || {
            let spec = specs::find(&self.settings.kernels, language)?;
            Some(Means::Kernelspec(Box::new(spec)))
        };
        self.own(language).or_else(by_kernelspec).ok_or_else(|| {
            StartError::UnknownLanguage(language.to_owned(), self.languages().join(", "))
        })
    }

    /// Returns the means of a language of ours, if its program exists.
    fn own(&self, language: &str) -> Option<Means> {
        let settings = &self.settings;
        let (means, command) = match language {
            "python" => (Means::Python, &settings.python.command),
            "javascript" | "typescript" => (Means::Node, &settings.node.command),
            "bash" => (Means::Bash, &settings.bash.command),
            _ => return None,
        };
        let has_package = || settings.python.path.join("wrenn_kernel").is_dir();
        let complete = !matches!(means, Means::Python) || has_package();
        (complete && command.first().is_some_and(|program| exists(program))).then_some(means)
    }

    async fn start_kernelspec(
        &self,
        spec: &StartSpec,
        kernelspec: &Spec,
    ) -> Result<Started, StartError> {
        let prepared = prepare(&self.settings, spec, kernelspec).await;
        let (process, facts, tail) = prepared.map_err(|error| failed(spec, error, ""))?;
        match jupyter::open(process, facts, &spec.envs).await {
            Ok(started) => Ok(started),
            Err(error) => Err(failed(spec, error, &tail.explain().await)),
        }
    }
}

/// Starts the process of a kernelspec.
async fn prepare(
    settings: &Settings,
    spec: &StartSpec,
    kernelspec: &Spec,
) -> io::Result<(Process, Facts, Tail)> {
    let user = User::of(settings.user.as_deref())?;
    let files = Files::make(&settings.run, &spec.id)?;
    let unused = files.unused();
    let (tail, ends) = Tail::pipe()?;
    let connection = files.connect(kernelspec.transport(), &user)?;
    let mut command = kernelspec.command(&files.connection_file()).into_iter();
    let mut envs = spec.envs.clone();
    envs.extend(kernelspec.env.clone());
    let output = Some(ends.writer.try_clone()?);
    let program = Program {
        path: command.next().unwrap_or_default().into(),
        args: command.map(OsString::from).collect(),
        envs,
        cwd: spec.cwd.clone(),
        files: vec![None, output, Some(ends.writer), Some(ends.reader)],
        oom_score: OOM_SCORE,
    };
    let process = Process::start(program, &user, &spec.id).await?;
    unused.keep();
    let dialect = Dialect::of(&kernelspec.language);
    let interrupt = kernelspec.interrupt();
    Ok((process, Facts { connection, files, interrupt, dialect }, tail))
}

/// Makes the error of a failed start. `more` is added to its text.
pub(super) fn failed(spec: &StartSpec, error: io::Error, more: &str) -> StartError {
    let folder = error.get_ref().and_then(|inner| inner.downcast_ref::<FolderError>());
    match folder {
        Some(folder) => StartError::Folder(
            spec.cwd.display().to_string(),
            format!("cannot be entered: {}", folder.why),
        ),
        None => {
            let why = format!("{error}{more}");
            StartError::Failed { language: spec.language.clone(), why }
        }
    }
}

/// Reports whether a program of the settings exists.
fn exists(program: &str) -> bool {
    if program.contains('/') {
        return Path::new(program).is_file();
    }
    PATH.iter().any(|folder| Path::new(folder).join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn launcher(json: &str) -> Launcher {
        Launcher::new(Arc::new(serde_json::from_str(json).unwrap()))
    }

    fn spec(language: &str, cwd: &str) -> StartSpec {
        let envs = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
        StartSpec { id: "test".into(), language: language.into(), cwd: cwd.into(), envs }
    }

    /// Makes a launcher with one kernelspec, `odd`, that runs a shell script.
    fn with_script(folder: &Path, script: &str) -> Launcher {
        let kernels = folder.join("kernels");
        std::fs::create_dir_all(kernels.join("odd")).unwrap();
        let kernel = serde_json::json!({"argv": ["sh", "-c", script], "language": "R"});
        std::fs::write(kernels.join("odd/kernel.json"), kernel.to_string()).unwrap();
        let settings = serde_json::json!({
            "kernels": [kernels], "run": folder.join("run"), "bash": {"command": ["/none"]},
            "node": {"command": ["/none"]}, "python": {"command": ["/none"]},
        });
        launcher(&settings.to_string())
    }

    async fn start_error(launcher: &Launcher, spec: StartSpec) -> String {
        launcher.start(spec).await.err().unwrap().to_string()
    }

    #[tokio::test]
    async fn unknown_language_names_those_that_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let launcher = with_script(folder.path(), "true");
        assert_eq!(launcher.languages(), ["odd"]);
        let error = start_error(&launcher, spec("python", "/")).await;
        assert_eq!(error, "language 'python' is unknown; known are odd");
        assert!(launcher.ready().await.is_ok(), "there is no fork server to wait for");
    }

    #[tokio::test]
    async fn kernel_that_ends_at_once_fails_with_its_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let launcher = with_script(folder.path(), "echo no such module >&2; exit 3");
        let error = start_error(&launcher, spec("odd", "/")).await;
        assert!(error.starts_with("the odd kernel did not start: its process ended"), "{error}");
        assert!(error.contains("exit status 3"), "{error}");
        assert!(error.ends_with("; it wrote: no such module"), "{error}");
        let left = std::fs::read_dir(folder.path().join("run")).unwrap().count();
        assert_eq!(left, 0, "its folder is gone");
    }

    #[tokio::test]
    async fn folder_that_cannot_be_entered_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let launcher = with_script(folder.path(), "true");
        let error = start_error(&launcher, spec("odd", "/no/such")).await;
        assert!(error.starts_with("cwd '/no/such' cannot be entered"), "{error}");
    }

    #[test]
    fn programs_are_found_by_path_and_by_name() {
        assert!(exists("/bin/sh") && exists("sh"));
        assert!(!exists("/bin") && !exists("no-such-program") && !exists("/none/sh"));
    }
}
