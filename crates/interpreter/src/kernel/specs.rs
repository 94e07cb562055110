//! Kernelspecs: folders with a `kernel.json` that describe how a Jupyter kernel is started. The
//! folder's name is the name of the language.

use super::jupyter::{InterruptMode, Transport};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Most bytes of a `kernel.json`.
const FILE_MAX: u64 = 1 << 20;
/// Most kernelspecs of a folder.
const SPECS_MAX: usize = 256;
/// Most bytes of a name.
const NAME_MAX: usize = 64;

/// A kernelspec.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Spec {
    /// Program and arguments. `{connection_file}` and `{resource_dir}` stand for paths.
    pub argv: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Programming language, such as `R`.
    #[serde(default)]
    pub language: String,
    #[serde(default)]
    interrupt_mode: Option<String>,
    #[serde(default)]
    metadata: Metadata,
    #[serde(skip)]
    folder: PathBuf,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct Metadata {
    #[serde(default)]
    wrenn: Own,
}

/// Settings of ours in a kernelspec.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct Own {
    /// `ipc` or `tcp`, if the language's own transport is wrong.
    #[serde(default)]
    transport: Option<String>,
}

impl Spec {
    /// Returns the arguments for a kernel with a connection file.
    pub(crate) fn command(&self, connection_file: &Path) -> Vec<String> {
        let (file, folder) = (connection_file.display().to_string(), self.folder.display());
        let folder = folder.to_string();
        let argument = |argument: &String| {
            argument.replace("{connection_file}", &file).replace("{resource_dir}", &folder)
        };
        self.argv.iter().map(argument).collect()
    }

    pub(crate) fn interrupt(&self) -> InterruptMode {
        match self.interrupt_mode.as_deref() {
            Some("message") => InterruptMode::Message,
            _ => InterruptMode::Signal,
        }
    }

    /// Returns the transport. Kernels on ZeroMQ's own library know Unix sockets, and the others do
    /// not.
    pub(crate) fn transport(&self) -> Transport {
        match self.metadata.wrenn.transport.as_deref() {
            Some("ipc") => Transport::Ipc,
            Some("tcp") => Transport::Tcp,
            _ if self.language.eq_ignore_ascii_case("r") || self.is_python() => Transport::Ipc,
            _ => Transport::Tcp,
        }
    }

    /// Reports whether a program of Python serves the kernel, as most kernels of Jupyter's own.
    fn is_python(&self) -> bool {
        let program = self.argv.first().map(Path::new).and_then(Path::file_name);
        program.is_some_and(|name| name.to_string_lossy().starts_with("python"))
    }
}

/// Finds the kernelspec of a name in its normal form. Earlier folders have precedence.
pub(crate) fn find(folders: &[PathBuf], name: &str) -> Option<Spec> {
    let mut found = folders.iter().flat_map(|folder| entries(folder));
    found.find_map(|(known, folder)| (known == name).then(|| read(&folder)).flatten())
}

/// Returns the names of all kernelspecs.
pub(crate) fn names(folders: &[PathBuf]) -> BTreeSet<String> {
    let found = folders.iter().flat_map(|folder| entries(folder));
    found.filter(|(_, folder)| read(folder).is_some()).map(|(name, _)| name).collect()
}

/// Returns the names and folders of the kernelspecs below a folder.
fn entries(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().take(SPECS_MAX);
    let named =
        entries.filter_map(|entry| Some((normal(entry.file_name().to_str()?)?, entry.path())));
    named.collect()
}

/// Returns a name in its normal form: lower case, without spaces around it. Returns `None` for a
/// text that is no name of a kernel.
fn normal(name: &str) -> Option<String> {
    let name = name.trim().to_ascii_lowercase();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_name = !name.is_empty() && name.len() <= NAME_MAX && name.bytes().all(plain);
    (is_name && !name.starts_with('.')).then_some(name)
}

/// Reads a kernelspec. Returns `None` for a folder without one that can be started.
fn read(folder: &Path) -> Option<Spec> {
    let path = folder.join("kernel.json");
    // The user owns the folders. A named pipe would hold the reader up.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    file.metadata().ok().filter(fs::Metadata::is_file)?;
    let mut text = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut text).ok()?;
    let mut spec: Spec = serde_json::from_slice(&text).ok()?;
    spec.folder = folder.to_owned();
    (!spec.argv.is_empty()).then_some(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(specs: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in specs {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("kernel.json"), text).unwrap();
        }
        folder
    }

    fn spec(text: &str) -> Spec {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn kernelspec_is_found_by_its_normal_name_in_the_first_folder() {
        let first =
            folder(&[("IR", r#"{"argv": ["R", "{connection_file}", "{resource_dir}/x"]}"#)]);
        let second = folder(&[
            ("ir", r#"{"argv": ["other"]}"#),
            ("Java", r#"{"argv": ["java"], "interrupt_mode": "message", "language": "java"}"#),
            ("empty", r#"{"argv": []}"#),
            ("broken", "{"),
            (".hidden", r#"{"argv": ["x"]}"#),
        ]);
        fs::create_dir(second.path().join("bare")).unwrap();
        let folders = [first.path().to_owned(), second.path().to_owned(), "/none".into()];
        assert_eq!(names(&folders).into_iter().collect::<Vec<_>>(), ["ir", "java"]);
        let found = find(&folders, "ir").unwrap();
        let resource = format!("{}/IR/x", first.path().display());
        assert_eq!(found.command(Path::new("/c")), ["R", "/c", &resource]);
        assert_eq!(find(&folders, "java").unwrap().interrupt(), InterruptMode::Message);
        assert!(find(&folders, "empty").is_none() && find(&folders, "IR").is_none());
    }

    #[test]
    fn transport_follows_the_language_unless_it_is_set() {
        let transport = |text| spec(text).transport();
        assert_eq!(transport(r#"{"argv": ["R"], "language": "R"}"#), Transport::Ipc);
        let python = r#"{"argv": ["/usr/bin/python3", "-m", "x"], "language": "octave"}"#;
        assert_eq!(transport(python), Transport::Ipc);
        assert_eq!(transport(r#"{"argv": ["java"], "language": "java"}"#), Transport::Tcp);
        let set =
            r#"{"argv": ["x"], "metadata": {"wrenn": {"transport": "ipc"}, "debugger": true}}"#;
        assert_eq!(transport(set), Transport::Ipc);
        assert_eq!(spec(r#"{"argv": ["x"]}"#).interrupt(), InterruptMode::Signal);
    }

    #[test]
    fn named_pipe_in_place_of_a_kernelspec_is_none() {
        let folder = folder(&[]);
        fs::create_dir(folder.path().join("odd")).unwrap();
        let path = folder.path().join("odd/kernel.json");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
        assert!(find(&[folder.path().to_owned()], "odd").is_none());
    }

    #[test]
    fn odd_names_are_no_kernels() {
        assert_eq!(normal(" Python3 "), Some("python3".into()));
        for name in ["", "a/b", "..", "a b", "ü", &"x".repeat(65)] {
            assert_eq!(normal(name), None, "{name}");
        }
    }
}
