//! The operator's settings of registries, in a TOML file.

use anyhow::Context;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Largest file of settings, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// Settings of registries, and the file that they came from.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    pub(super) settings: registry::Settings,
    file: Option<PathBuf>,
}

impl Registries {
    /// Reads a TOML file with the fields of [`registry::Settings`].
    ///
    /// # Errors
    /// Fails with the file, and the line or the field at fault.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let what = || format!("cannot use the file of WRENN_REGISTRIES, {}", path.display());
        let mut text = String::new();
        let read = std::fs::File::open(path)
            .and_then(|file| file.take(FILE_MAX).read_to_string(&mut text));
        read.with_context(what)?;
        let settings = toml::from_str(&text).map_err(|error| {
            // The error's own text shows the line at fault, which may hold a password.
            let line = error
                .span()
                .map_or(1, |at| text.get(..at.start).unwrap_or_default().matches('\n').count() + 1);
            anyhow::anyhow!("line {line}: {}", error.message())
        });
        let this = Self { settings: settings.with_context(what)?, file: Some(path.to_owned()) };
        this.client().map(|_| this)
    }

    /// Makes the client of registries.
    ///
    /// # Errors
    /// Fails with the file and the field at fault.
    pub(super) fn client(&self) -> anyhow::Result<registry::Client> {
        let client = registry::Client::new(self.settings.clone());
        client.with_context(|| match &self.file {
            Some(path) => format!("cannot use the file of WRENN_REGISTRIES, {}", path.display()),
            None => "cannot make the client of registries".to_owned(),
        })
    }

    /// Sets the guests' platform, if the operator named none. Guests without KVM are emulated. For
    /// them, programs for newer processors are the slower ones.
    pub(crate) fn emulated(&mut self) {
        let lowest = || registry::Platform { level: 1, ..registry::Platform::current() };
        self.settings.platform.get_or_insert_with(lowest);
    }

    /// Returns the guests' platform.
    pub(super) fn platform(&self) -> registry::Platform {
        self.settings.platform.clone().unwrap_or_else(registry::Platform::current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Registries, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Registries::read(file.path()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn settings_are_read_from_toml() {
        let read = read(
            r#"
            rewrites = [{ from = "docker.io/library/", to = "m.example:5000/hub/" }]
            access.deny = ["evil.example"]
            [registries."m.example:5000"]
            http = true
            login = { type = "password", username = "u", password = "hunter22" }
            [limits]
            layers = 5
            image_bytes = 17179869184
            unpacked_bytes = 34359738368
            "#,
        );
        let registries = read.unwrap();
        let program = crate::images::Program::default();
        let store = crate::images::ImageStore::new(Path::new("/"), registries.clone(), program);
        let limits = store.limits();
        assert_eq!((limits.packed_bytes, limits.bytes), (16 << 30, 32 << 30));
        let settings = registries.settings;
        assert!(settings.registries["m.example:5000"].http);
        assert_eq!((settings.limits.layers, settings.limits.tries), (5, 4));
        assert!(read_empty().settings.registries.is_empty());
    }

    fn read_empty() -> Registries {
        read("").unwrap()
    }

    #[test]
    fn wrong_file_is_named_with_its_line_and_without_its_passwords() {
        let wrong = "access = {}\nregistries.\"a.example\".login = { type = \"password\", \
                     username = \"u\", password = \"hunter22\", more = 1 }\n";
        let error = read(wrong).unwrap_err();
        assert!(error.contains("WRENN_REGISTRIES") && error.contains("line 2"), "{error}");
        assert!(!error.contains("hunter22") && !error.contains('\n'), "{error}");
        let error = read("registries.\"https://a\" = {}").unwrap_err();
        assert!(error.contains("registries.\"https://a\"") && !error.contains('\n'), "{error}");
        let error = Registries::read(Path::new("/nowhere.toml")).unwrap_err();
        assert!(format!("{error:#}").contains("/nowhere.toml"));
    }

    #[test]
    fn emulated_guests_get_the_lowest_level_unless_the_operator_chose() {
        let mut registries = Registries::default();
        registries.emulated();
        assert_eq!(registries.platform().level, 1);
        let mut chosen = read("platform = { architecture = \"amd64\", level = 3 }").unwrap();
        chosen.emulated();
        assert_eq!(chosen.platform().level, 3);
    }
}
