//! Facts of E2B's API that both the API and the proxy need: its paths, and the texts of its errors.
//! Pure.

use crate::error::Error;

/// First segments of the paths of E2B's API. No path of envd's begins with any of them.
const ROOTS: [&str; 8] =
    ["sandboxes", "v2", "v3", "snapshots", "templates", "volumes", "secrets", "teams"];

/// Reports whether a path belongs to E2B's API.
pub(crate) fn serves(path: &str) -> bool {
    let first = path.strip_prefix('/').and_then(|path| path.split('/').next());
    first.is_some_and(|first| ROOTS.contains(&first))
}

/// Words a limit on concurrency as E2B's service does. E2B's clients recognise both texts, and wait
/// for room when they see them.
pub(crate) fn concurrent(error: Error) -> Error {
    let Error::LimitReached(who, what) = error else { return error };
    let what = format!(
        "{what}, the maximum number of concurrent sandboxes (E2B: maximum number of concurrent \
         E2B sandboxes)"
    );
    Error::LimitReached(who, what)
}
