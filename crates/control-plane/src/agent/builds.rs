//! Calls about builds, versions and uploaded files.

use super::{Agent, other};
use crate::db::versions::{HostFiles, HostVersion};
use crate::error::{Error, Result};
use axum::body::Body;
use connectrpc::client::CallOptions;
use http::{Method, Request, StatusCode, Uri, header};
use protocol::host;
use std::time::Duration;
use types::{BuildId, CapsuleId, TeamId};

/// Time limit of a wait for events, longer than the host waits for one.
const WATCH: Duration = Duration::from_secs(40);
/// Time limit of a cancel, which a host carries out within two seconds.
const CANCEL: Duration = Duration::from_secs(5);
/// Time limit of a version's removal, which removes large files and objects of the store.
const DELETE: Duration = Duration::from_secs(120);
/// Time limit of an upload from its head to the host's answer.
const UPLOAD: Duration = Duration::from_secs(3600);
/// Time limit of a question about an upload.
const ASK: Duration = Duration::from_secs(10);

impl Agent {
    /// Begins a build. Succeeds for a build that has begun.
    pub(crate) async fn begin_build(&self, request: host::BeginBuildRequest) -> Result<()> {
        self.host().begin_build(request).await.map(|_| ()).map_err(|e| other(&e))
    }

    /// Runs the steps of a build in a capsule. Succeeds for a build whose steps run or ran.
    pub(crate) async fn run_build(&self, id: BuildId, capsule: CapsuleId) -> Result<()> {
        let (build_id, capsule_id) = (id.to_string(), capsule.to_string());
        let request = host::RunBuildRequest { build_id, capsule_id, ..Default::default() };
        self.host().run_build(request).await.map(|_| ()).map_err(|e| other(&e))
    }

    /// Waits for events of a build after the number `seen`. Returns none after some seconds.
    pub(crate) async fn watch_build(
        &self,
        id: BuildId,
        seen: u64,
    ) -> Result<Vec<host::BuildEvent>> {
        let build_id = id.to_string();
        let request = host::WatchBuildRequest { build_id, seen, ..Default::default() };
        let options = CallOptions::default().with_timeout(WATCH);
        let answer = self.host().watch_build_with_options(request, options).await;
        Ok(answer.map_err(|e| other(&e))?.into_owned().events)
    }

    /// Ends the work of a build. Succeeds for an unknown build.
    pub(crate) async fn cancel_build(&self, id: BuildId) -> Result<()> {
        let request = host::CancelBuildRequest { build_id: id.to_string(), ..Default::default() };
        let options = CallOptions::default().with_timeout(CANCEL);
        let answer = self.host().cancel_build_with_options(request, options).await;
        answer.map(|_| ()).map_err(|e| other(&e))
    }

    /// Removes the host's events of a build. Succeeds for an unknown build.
    pub(crate) async fn forget_build(&self, id: BuildId) -> Result<()> {
        let request = host::ForgetBuildRequest { build_id: id.to_string(), ..Default::default() };
        self.host().forget_build(request).await.map(|_| ()).map_err(|e| other(&e))
    }

    /// Lists builds, versions and uploaded files of the host. `None` for an agent of an earlier
    /// version, which has none of them.
    pub(crate) async fn list_builds(&self) -> Result<Option<HostBuilds>> {
        match self.host().list_builds(host::ListBuildsRequest::default()).await {
            Ok(answer) => Ok(Some(answer.into_owned().into())),
            Err(error) if error.code == connectrpc::ErrorCode::Unimplemented => Ok(None),
            Err(error) => Err(other(&error)),
        }
    }

    /// Removes a version from the host and from the store. Succeeds for an unknown version.
    pub(crate) async fn delete_version(&self, id: BuildId, team: TeamId) -> Result<()> {
        let (version_id, team_id) = (id.to_string(), team.to_string());
        let request = host::DeleteVersionRequest { version_id, team_id, ..Default::default() };
        let options = CallOptions::default().with_timeout(DELETE);
        let answer = self.host().delete_version_with_options(request, options).await;
        answer.map(|_| ()).map_err(|e| other(&e))
    }

    /// Sends an archive of a build's files to the host. The body is streamed. Returns the archive's
    /// size in bytes, if the host reports it.
    pub(crate) async fn put_build_files(
        &self,
        team: TeamId,
        hash: &str,
        length: Option<u64>,
        body: Body,
    ) -> Result<Option<u64>> {
        let mut request = Request::new(hop::Body::boxed(body));
        *request.method_mut() = Method::PUT;
        *request.uri_mut() = files_path(team, hash)?;
        if let Some(length) = length {
            request.headers_mut().insert(header::CONTENT_LENGTH, length.into());
        }
        let sending = tokio::time::timeout(UPLOAD, self.exchange(request)).await;
        let answer = sending.map_err(|_| Error::BodyTooSlow)?.map_err(|error| {
            if error.is_stalled() {
                Error::BodyTooSlow
            } else if matches!(error, hop::Error::Request(_)) {
                Error::broken_body()
            } else {
                Error::HostUnavailable
            }
        })?;
        match answer.status() {
            status if status.is_success() => Ok(length),
            StatusCode::BAD_REQUEST => Err(Error::broken_body()),
            StatusCode::PAYLOAD_TOO_LARGE => Err(Error::NoCapacity(
                "the files are larger than the host accepts; leave out what no step copies"
                    .to_owned(),
            )),
            StatusCode::INSUFFICIENT_STORAGE => {
                Err(Error::NoCapacity("the host has no room for the files".to_owned()))
            }
            status => Err(Error::Internal(anyhow::anyhow!("the host answered {status}"))),
        }
    }

    /// Reports whether the host has an archive.
    pub(crate) async fn has_build_files(&self, team: TeamId, hash: &str) -> Result<bool> {
        self.ask_files(Method::HEAD, team, hash).await
    }

    /// Removes an archive from the host. Succeeds for an unknown archive.
    pub(crate) async fn remove_build_files(&self, team: TeamId, hash: &str) -> Result<()> {
        self.ask_files(Method::DELETE, team, hash).await.map(|_| ())
    }

    /// Sends a request without a body about an archive. Returns `false` if the host lacks it.
    async fn ask_files(&self, method: Method, team: TeamId, hash: &str) -> Result<bool> {
        let mut request = Request::new(hop::Body::empty());
        *request.method_mut() = method;
        *request.uri_mut() = files_path(team, hash)?;
        let asking = tokio::time::timeout(ASK, self.exchange(request)).await;
        let answer = asking.ok().and_then(std::result::Result::ok).ok_or(Error::HostUnavailable)?;
        match answer.status() {
            status if status.is_success() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            status => Err(Error::Internal(anyhow::anyhow!("the host answered {status}"))),
        }
    }
}

/// Makes the path of an archive on a host. The hash comes from a client.
fn files_path(team: TeamId, hash: &str) -> Result<Uri> {
    let legal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if hash.len() != 64 || !hash.bytes().all(legal) {
        return Err(Error::invalid("hash", "must be 64 lower-case hexadecimal digits"));
    }
    let wrong = |_| Error::invalid("hash", "is not a part of a path");
    format!("/builds/files/{team}/{hash}").parse().map_err(wrong)
}

/// Builds, versions and files that a host has.
#[derive(Debug, Default)]
pub(crate) struct HostBuilds {
    pub builds: Vec<BuildId>,
    pub versions: Vec<HostVersion>,
    pub files: Vec<HostFiles>,
}

impl From<host::ListBuildsResponse> for HostBuilds {
    /// Leaves out entries with unreadable ids.
    fn from(answer: host::ListBuildsResponse) -> Self {
        let versions = answer.versions.into_iter().filter_map(|version| {
            Some(HostVersion {
                id: version.version_id.parse().ok()?,
                team: version.team_id.parse().ok()?,
                bytes: version.bytes,
                stored: version.stored,
            })
        });
        // A NUL in a text would fail the statement that stores it.
        let legible = answer.files.into_iter().filter(|files| !files.hash.contains('\0'));
        let files = legible.filter_map(|files| {
            let team = files.team_id.parse().ok()?;
            Some(HostFiles { team, hash: files.hash, bytes: files.bytes })
        });
        Self {
            builds: answer.build_ids.iter().filter_map(|id| id.parse().ok()).collect(),
            versions: versions.collect(),
            files: files.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_of_files_takes_only_a_sha256_in_lower_case() {
        let team = TeamId::new();
        let hash = "0a".repeat(32);
        let path = files_path(team, &hash).unwrap();
        assert_eq!(path.path(), format!("/builds/files/{team}/{hash}"));
        for odd in ["", "..", &hash[1..], &hash.to_uppercase(), &format!("{}/", &hash[1..])] {
            assert!(files_path(team, odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn unreadable_entry_of_a_host_is_left_out() {
        let id = BuildId::new();
        let answer = host::ListBuildsResponse {
            build_ids: vec![id.to_string(), "bld-x".to_owned()],
            ..Default::default()
        };
        assert_eq!(HostBuilds::from(answer).builds, [id]);
    }
}
