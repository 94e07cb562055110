//! Calls about the logs of capsules.

use super::{Agent, CALL, other};
use crate::error::{Error, Result};
use connectrpc::client::CallOptions;
use connectrpc::{ConnectError, ErrorCode};
use protocol::host;
use std::time::Duration;
use types::{CapsuleId, LogPolicy, TeamId};

/// Time limit of an erasure, which removes objects of the store.
const ERASE: Duration = Duration::from_secs(120);

impl Agent {
    /// Reads entries of a capsule's log. The host waits for a first entry as long as the request
    /// says.
    pub(crate) async fn read_log(
        &self,
        request: host::ReadLogRequest,
    ) -> Result<host::ReadLogResponse> {
        let wait = Duration::from_millis(request.wait_ms.into());
        let options = CallOptions::default().with_timeout(CALL + wait);
        let answer = self.host().read_log_with_options(request, options).await;
        Ok(answer.map_err(|e| unless_older(&e))?.into_owned())
    }

    /// Changes the output that the log of a capsule has. An agent of an earlier version learns of the
    /// change with the next resume.
    pub(crate) async fn set_logs(&self, id: CapsuleId, logs: LogPolicy) -> Result<()> {
        let (capsule_id, logs) = (id.to_string(), logs.to_string());
        let request = host::SetLogsRequest { capsule_id, logs, ..Default::default() };
        match self.host().set_logs(request).await {
            Ok(_) => Ok(()),
            Err(error) if error.code == ErrorCode::Unimplemented => Ok(()),
            Err(error) => Err(other(&error)),
        }
    }

    /// Removes the log of a capsule, or all logs of a team, from the host and from the store.
    /// Succeeds for an unknown capsule, and for an agent of an earlier version, which has no logs.
    pub(crate) async fn erase_log(&self, id: Option<CapsuleId>, team: TeamId) -> Result<()> {
        let capsule_id = id.map_or_else(String::new, |id| id.to_string());
        let team_id = team.to_string();
        let request = host::EraseLogRequest { capsule_id, team_id, ..Default::default() };
        let options = CallOptions::default().with_timeout(ERASE);
        match self.host().erase_log_with_options(request, options).await {
            Ok(_) => Ok(()),
            Err(error) if error.code == ErrorCode::Unimplemented => Ok(()),
            Err(error) => Err(other(&error)),
        }
    }
}

/// Converts a host's error. An agent of an earlier version keeps no logs.
fn unless_older(error: &ConnectError) -> Error {
    match error.code == ErrorCode::Unimplemented {
        true => Error::NotSupported("the log of a capsule on a host whose agent is older"),
        false => other(error),
    }
}
