//! Parts that all contexts share: settings of image and capsule, starts of kernels, the state file,
//! and the executions.

use crate::account;
use crate::error::Error;
use crate::execution::Executions;
use crate::launch::Launch;
use crate::lock::lock;
use crate::process::User;
use crate::settings::{Capsule, Settings};
use crate::state::State;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;

/// Most bytes of code that wait or run, in all contexts together.
pub(crate) const CODE_MAX: usize = 64 << 20;

/// Parts that all contexts share.
pub(crate) struct Services {
    pub settings: Arc<Settings>,
    pub launch: Arc<dyn Launch>,
    pub state: State,
    pub executions: Executions,
    /// Bytes of code that may still be accepted.
    pub code: Arc<Semaphore>,
    user: User,
    capsule: Mutex<Generation>,
}

/// The capsule's settings, and a number that grows with each change of its variables.
#[derive(Debug, Clone)]
pub(crate) struct Generation {
    pub number: u64,
    pub capsule: Arc<Capsule>,
    pub envs: Arc<BTreeMap<String, String>>,
}

impl Services {
    pub(crate) fn new(
        settings: Arc<Settings>,
        user: User,
        launch: Arc<dyn Launch>,
        state: State,
    ) -> Self {
        let generation = Generation { number: 1, capsule: Arc::default(), envs: Arc::default() };
        Self {
            user,
            settings,
            launch,
            state,
            executions: Executions::new(),
            code: Arc::new(Semaphore::new(CODE_MAX)),
            capsule: Mutex::new(generation),
        }
    }

    /// Returns the capsule's settings.
    pub(crate) fn capsule(&self) -> Generation {
        lock(&self.capsule).clone()
    }

    /// Replaces the capsule's settings.
    pub(crate) fn set_capsule(&self, capsule: Capsule) {
        let mut current = lock(&self.capsule);
        if *current.envs != capsule.envs {
            current.number += 1;
            current.envs = Arc::new(capsule.envs.clone());
        }
        current.capsule = Arc::new(capsule);
    }

    /// Returns the environment of a new kernel. The capsule's variables take precedence over the
    /// user's.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        let mut envs = account::variables(&self.user);
        let Generation { capsule, envs: own, .. } = self.capsule();
        if let Some(path) = &capsule.path {
            envs.insert("PATH".to_owned(), path.clone());
        }
        envs.extend(own.iter().map(|(name, value)| (name.clone(), value.clone())));
        envs
    }

    /// Returns the home of the user that runs kernels.
    pub(crate) fn home(&self) -> &Path {
        &self.user.home
    }

    /// Returns the folder of contexts that name none.
    pub(crate) fn default_folder(&self) -> String {
        let capsule = self.capsule().capsule;
        let set = self.settings.cwd.as_ref().or(capsule.workdir.as_ref());
        set.cloned().unwrap_or_else(|| self.home().to_string_lossy().into_owned())
    }

    /// Refuses a language that cannot be started.
    pub(crate) fn check_language(&self, language: &str) -> Result<(), Error> {
        let known = self.launch.languages();
        if known.iter().any(|known| known == language) {
            return Ok(());
        }
        let shown: String = language.chars().take(64).collect();
        let unknown = crate::kernel::StartError::UnknownLanguage(shown, known.join(", "));
        Err(Error::from(&unknown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::script::Script;

    fn capsule(envs: &[(&str, &str)], path: Option<&str>) -> Capsule {
        let envs = envs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Capsule { envs, path: path.map(str::to_owned), ..Capsule::default() }
    }

    #[test]
    fn generation_grows_with_changed_variables_alone() {
        let services = Script::default().services();
        services.set_capsule(capsule(&[("A", "1")], None));
        let first = services.capsule().number;
        services.set_capsule(capsule(&[("A", "1")], Some("/bin")));
        assert_eq!(services.capsule().number, first);
        assert_eq!(services.capsule().capsule.path.as_deref(), Some("/bin"));
        services.set_capsule(capsule(&[], None));
        assert_eq!(services.capsule().number, first + 1);
    }

    #[test]
    fn variables_of_the_capsule_take_precedence() {
        let services = Script::default().services();
        services.set_capsule(capsule(&[("A", "1")], Some("/bin")));
        assert_eq!(services.environment()["PATH"], "/bin");
        services.set_capsule(capsule(&[("PATH", "/x"), ("HOME", "/h")], Some("/bin")));
        assert_eq!(services.environment()["PATH"], "/x");
        assert_eq!(services.environment()["HOME"], "/h");
        assert_eq!(Path::new(&services.default_folder()), services.home());
    }

    #[test]
    fn unknown_language_is_refused_with_the_known_ones() {
        let services = Script::default().services();
        let error = services.check_language("cobol").unwrap_err();
        assert_eq!(error.status, 400);
        assert!(error.text.contains("cobol") && error.text.contains("python"), "{error}");
        assert!(services.check_language("python").is_ok());
    }
}
