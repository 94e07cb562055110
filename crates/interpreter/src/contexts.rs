//! All contexts of the capsule, and those that answer to the name of their language.

use crate::account;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::kernel::{SEED, StartError};
use crate::lock::lock;
use crate::services::Services;
use crate::settings::Capsule;
use crate::state::Record;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use uuid::Uuid;

/// Language of callers that name none.
const LANGUAGE: &str = "python";
/// Most characters of a language's name.
const LANGUAGE_MAX: usize = 64;
/// Most bytes of a folder's path.
const FOLDER_MAX: usize = 4096;
/// Longest look at a folder. A file system of the guest may hang.
const LOOK: Duration = Duration::from_secs(2);

/// All contexts.
pub(crate) struct Contexts {
    pub services: Arc<Services>,
    /// Contexts in the order of their creation.
    list: Mutex<Vec<Entry>>,
    /// Set once the contexts of the start are up.
    ready: AtomicBool,
}

struct Entry {
    context: Arc<Context>,
    /// Set if the context answers to the name of its language.
    is_default: bool,
}

impl Contexts {
    pub(crate) fn new(services: Arc<Services>) -> Self {
        Self { services, list: Mutex::default(), ready: AtomicBool::new(false) }
    }

    /// Finds the contexts of an earlier interpreter again, then makes those of the start.
    pub(crate) fn begin(&self, records: Vec<Record>) {
        // After a crash, a kernel that does not answer holds up its own context alone.
        self.ready.store(!records.is_empty(), Ordering::Relaxed);
        for record in records {
            let is_default = record.default;
            let context = Context::new(&self.services, record);
            lock(&self.list).push(Entry { context, is_default });
        }
        let folder = self.services.default_folder();
        for language in &self.services.settings.warm {
            let known = self.services.check_language(language).is_ok();
            if known && self.find_default(language).is_none() {
                let _ = self.insert(language, &folder, true);
            }
        }
    }

    /// Reports whether the contexts of the start are up, or have failed.
    pub(crate) fn is_ready(&self) -> bool {
        let all_settled = || lock(&self.list).iter().all(|entry| entry.context.is_settled());
        if !self.ready.load(Ordering::Relaxed) && all_settled() {
            self.ready.store(true, Ordering::Relaxed);
        }
        self.ready.load(Ordering::Relaxed)
    }

    /// Makes a context, and waits until its kernel is up.
    pub(crate) async fn create(
        &self,
        language: Option<&str>,
        cwd: Option<&str>,
    ) -> Result<Arc<Context>> {
        let language = normalize(language)?;
        self.services.check_language(&language)?;
        let default = self.services.default_folder();
        let cwd = cwd.filter(|cwd| !cwd.is_empty()).unwrap_or(&default);
        let folder = self.folder(cwd)?;
        check(&folder, cwd).await?;
        let context = self.insert(&language, cwd, false)?;
        let mut claim = Claim { contexts: self, id: Some(&context.id) };
        let settled = self.settled(Arc::clone(&context)).await;
        claim.id = None;
        settled
    }

    /// Returns the context that answers to a language's name. Makes it if there is none.
    pub(crate) async fn default(&self, language: Option<&str>) -> Result<Arc<Context>> {
        let language = normalize(language)?;
        if let Some(context) = self.find_default(&language) {
            return Ok(context);
        }
        self.services.check_language(&language)?;
        let context = self.insert(&language, &self.services.default_folder(), true)?;
        self.settled(context).await
    }

    /// Waits for the first start of a context. Removes the context if it fails.
    async fn settled(&self, context: Arc<Context>) -> Result<Arc<Context>> {
        match context.started().await {
            Ok(()) => Ok(context),
            Err(error) => {
                let _ = self.remove(&context.id).await;
                Err(error)
            }
        }
    }

    /// Finds a context by its id.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Context>> {
        let list = lock(&self.list);
        let found = list.iter().find(|entry| entry.context.id == id);
        found.map(|entry| Arc::clone(&entry.context)).ok_or_else(|| Error::no_context(id))
    }

    /// Lists all contexts in the order of their creation.
    pub(crate) fn list(&self) -> Vec<Arc<Context>> {
        lock(&self.list).iter().map(|entry| Arc::clone(&entry.context)).collect()
    }

    /// Returns the default contexts of the start that exist.
    pub(crate) fn warm(&self) -> Vec<Arc<Context>> {
        let warm = &self.services.settings.warm;
        warm.iter().filter_map(|language| self.find_default(language)).collect()
    }

    /// Removes a context with its kernel.
    pub(crate) async fn remove(&self, id: &str) -> Result<()> {
        let context = self.get(id)?;
        lock(&self.list).retain(|entry| entry.context.id != id);
        context.remove().await;
        Ok(())
    }

    /// Interrupts an execution, in whichever context it is. Returns once the signal was sent.
    pub(crate) async fn interrupt(&self, execution: &str) -> Result<()> {
        for context in self.list() {
            // A context that is being removed has no execution to interrupt.
            if context.interrupt(Some(execution.to_owned())).await.unwrap_or(false) {
                return Ok(());
            }
        }
        // An execution that has ended needs no interrupt.
        let found = self.services.executions.find(execution);
        found.map(|_| ()).ok_or_else(|| Error::no_execution(execution))
    }

    /// Replaces the capsule's settings. Kernels hear of them at their next runs.
    pub(crate) fn set_capsule(&self, capsule: Capsule) {
        self.services.set_capsule(capsule);
    }

    /// Begins the epoch of a copied machine: kernels without state get other randomness.
    pub(crate) async fn begin_epoch(&self, seed: [u8; SEED]) {
        self.services.launch.epoch(seed);
        for context in self.list() {
            context.seed(seed).await;
        }
    }

    /// Leaves all kernels alive for a later interpreter.
    pub(crate) async fn release(&self) {
        for context in self.list() {
            context.release().await;
        }
    }

    fn find_default(&self, language: &str) -> Option<Arc<Context>> {
        let list = lock(&self.list);
        let found = list.iter().find(|e| e.is_default && e.context.language == language);
        found.map(|entry| Arc::clone(&entry.context))
    }

    /// Adds a context, whose kernel begins to start.
    fn insert(&self, language: &str, cwd: &str, is_default: bool) -> Result<Arc<Context>> {
        let folder = self.folder(cwd)?;
        let mut list = lock(&self.list);
        let most = self.services.settings.contexts;
        if list.len() >= most {
            return Err(Error::too_many(format!("there are {most} contexts already, the most")));
        }
        let record = Record {
            id: Uuid::new_v4().to_string(),
            language: language.to_owned(),
            cwd: cwd.to_owned(),
            folder,
            default: is_default,
            pristine: true,
            executions: 0,
            kernel_id: String::new(),
            kernel: None,
            running: None,
        };
        let context = Context::new(&self.services, record);
        list.push(Entry { context: Arc::clone(&context), is_default });
        Ok(context)
    }

    fn folder(&self, cwd: &str) -> Result<PathBuf> {
        if cwd.len() > FOLDER_MAX || cwd.contains('\0') {
            return Err(Error::invalid(format!("cwd has a zero or more than {FOLDER_MAX} bytes")));
        }
        Ok(account::resolve(cwd, self.services.home()))
    }
}

/// A context whose maker waits for it. If the maker leaves, nobody knows the context's id, so it
/// ends.
struct Claim<'a> {
    contexts: &'a Contexts,
    id: Option<&'a str>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            // The context's task ends when the last handle is gone.
            lock(&self.contexts.list).retain(|entry| entry.context.id != id);
        }
    }
}

/// Returns the normal form of a language's name.
fn normalize(language: Option<&str>) -> Result<String> {
    let name = language.unwrap_or_default().trim().to_lowercase();
    if name.chars().count() > LANGUAGE_MAX {
        return Err(Error::invalid(format!("language has more than {LANGUAGE_MAX} characters")));
    }
    Ok(match name.as_str() {
        "" => LANGUAGE.to_owned(),
        "js" => "javascript".to_owned(),
        "ts" => "typescript".to_owned(),
        _ => name,
    })
}

/// Refuses a folder that does not exist.
async fn check(folder: &Path, cwd: &str) -> Result<()> {
    let shown: String = cwd.chars().take(200).collect();
    let refuse = |why: &str| Err(Error::from(&StartError::Folder(shown, why.to_owned())));
    match tokio::time::timeout(LOOK, tokio::fs::metadata(folder)).await {
        Ok(Ok(found)) if found.is_dir() => Ok(()),
        Ok(Ok(_)) => refuse("is no folder"),
        Ok(Err(error)) => refuse(&format!("cannot be entered: {error}")),
        Err(_) => refuse("does not answer"),
    }
}

#[cfg(test)]
mod tests;
