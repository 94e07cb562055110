//! Archives of context files, as clients upload them. A team names each by a hash, which is a key of
//! the client's choice. An archive appears by a rename. It leaves when the control plane asks, when
//! its team needs the room, and after some days without use.

use super::folders::{self, named, sync_parent};
use futures::{Stream, StreamExt};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use types::TeamId;

/// Largest archive, in bytes.
pub(crate) const UPLOAD_MAX: u64 = 2 << 30;
/// Most bytes of one team's archives.
const TEAM_MAX: u64 = 10 << 30;
/// Time without use after which an archive goes.
const UNUSED: Duration = Duration::from_secs(7 * 24 * 3600);
/// Longest wait for the next part of a body.
const IDLE: Duration = Duration::from_secs(60);
/// Name of the folder for uploads under way.
const STAGED: &str = ".staged";

/// Reason why an archive was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("an archive has at most {} MiB", UPLOAD_MAX >> 20)]
    TooLarge,
    #[error("no part of the body came for {} s", IDLE.as_secs())]
    Idle,
    #[error("the body is broken: {0}")]
    Body(String),
    #[error("the host has too little room: {0}")]
    NoRoom(String),
    #[error("cannot store the archive")]
    Io(#[from] io::Error),
}

/// The uploaded archives of this host.
#[derive(Debug)]
pub(crate) struct Files {
    dir: PathBuf,
}

/// An archive on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Archive {
    pub team: TeamId,
    pub hash: String,
    pub bytes: u64,
    used: SystemTime,
    /// Set while a build has a link to the archive.
    linked: bool,
}

impl Files {
    /// Opens the folder. Removes uploads that an earlier agent did not finish.
    ///
    /// # Errors
    /// Fails when the folder for uploads cannot be made.
    pub(crate) fn open(dir: PathBuf) -> io::Result<Self> {
        folders::empty(&dir.join(STAGED))?;
        Ok(Self { dir })
    }

    /// Returns the path of an archive, whether it exists or not. `hash` has the form of a hash.
    pub(super) fn path(&self, team: TeamId, hash: &str) -> PathBuf {
        self.dir.join(team.to_string()).join(hash)
    }

    /// Returns the size of an archive, and notes its use.
    pub(crate) fn find(&self, team: TeamId, hash: &str) -> Option<u64> {
        let file = File::open(self.path(team, hash)).ok()?;
        // An archive that a client asks for is about to be used.
        let _ = file.set_modified(SystemTime::now());
        Some(file.metadata().ok()?.len())
    }

    /// Links an archive into a build's folder, and notes its use.
    pub(super) fn link(&self, team: TeamId, hash: &str, to: &Path) -> io::Result<()> {
        let path = self.path(team, hash);
        fs::hard_link(&path, to)?;
        File::open(path)?.set_modified(SystemTime::now())
    }

    /// Stores an archive, in place of an earlier one of its name.
    ///
    /// # Errors
    /// Fails when the body is too large, too slow or broken, and when the disk has no room. Nothing
    /// is left then.
    pub(crate) async fn store<E: std::fmt::Display>(
        &self,
        team: TeamId,
        hash: &str,
        body: impl Stream<Item = Result<bytes::Bytes, E>>,
    ) -> Result<u64, Error> {
        let staged = Staged(self.dir.join(STAGED).join(uuid::Uuid::new_v4().to_string()));
        let mut file = File::create_new(&staged.0)?;
        let mut body = std::pin::pin!(body);
        let mut size = 0_u64;
        loop {
            let part = tokio::time::timeout(IDLE, body.next()).await.map_err(|_| Error::Idle)?;
            let Some(part) = part else { break };
            let part = part.map_err(|error| Error::Body(error.to_string()))?;
            size += part.len() as u64;
            if size > UPLOAD_MAX {
                return Err(Error::TooLarge);
            }
            // A part is as large as a socket's buffer, and the page cache takes it at once.
            file.write_all(&part)?;
        }
        let synced = daemon::blocking(move || file.sync_all()).await;
        synced?;
        self.make_room(team, hash, size)?;
        let to = self.path(team, hash);
        fs::create_dir_all(self.dir.join(team.to_string()))?;
        daemon::failpoint("build.files")?;
        fs::rename(&staged.0, &to)?;
        sync_parent(&to)?;
        Ok(size)
    }

    /// Removes an archive. An archive that is gone is success. A build that has linked it keeps its
    /// link.
    pub(crate) fn remove(&self, team: TeamId, hash: &str) -> io::Result<()> {
        match fs::remove_file(self.path(team, hash)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Removes a team's archives that were not used for the longest time, until one more fits.
    /// Archives that builds have linked stay, since their removal frees nothing. The control plane makes the
    /// room before, so this is the bound if its list is not complete.
    fn make_room(&self, team: TeamId, hash: &str, size: u64) -> Result<(), Error> {
        let mut here = self.of_team(team);
        here.retain(|archive| archive.hash != hash);
        here.sort_by_key(|archive| archive.used);
        let linked: u64 = here.iter().filter(|archive| archive.linked).map(|a| a.bytes).sum();
        if linked + size > TEAM_MAX {
            let (used, most) = (linked >> 20, TEAM_MAX >> 20);
            let why = format!("builds use {used} of {most} MiB of the team's files");
            return Err(Error::NoRoom(why));
        }
        let mut total: u64 = here.iter().map(|archive| archive.bytes).sum();
        for archive in here.iter().filter(|archive| !archive.linked) {
            if total + size <= TEAM_MAX {
                break;
            }
            self.remove(team, &archive.hash)?;
            total -= archive.bytes;
        }
        Ok(())
    }

    /// Lists all archives.
    pub(crate) fn list(&self) -> Vec<Archive> {
        let teams = folders::entries(&self.dir);
        let teams = teams.iter().filter_map(|path| named::<TeamId>(path));
        teams.flat_map(|team| self.of_team(team)).collect()
    }

    fn of_team(&self, team: TeamId) -> Vec<Archive> {
        let entries = folders::entries(&self.dir.join(team.to_string()));
        let archives = entries.into_iter().filter_map(|path| {
            let hash = path.file_name()?.to_str()?.to_owned();
            let found = path.metadata().ok()?;
            let used = found.modified().ok()?;
            let linked = found.nlink() > 1;
            Some(Archive { team, hash, bytes: found.len(), used, linked })
        });
        archives.collect()
    }

    /// Removes archives that were not used for some days.
    pub(super) fn expire(&self, now: SystemTime) {
        let is_old =
            |archive: &Archive| now.duration_since(archive.used).is_ok_and(|idle| idle > UNUSED);
        for archive in self.list().into_iter().filter(is_old) {
            if let Err(error) = self.remove(archive.team, &archive.hash) {
                tracing::warn!(%error, "cannot remove an unused archive");
            }
        }
    }
}

/// A file that goes unless it was renamed.
struct Staged(PathBuf);

impl Drop for Staged {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures::stream;

    fn team() -> TeamId {
        TeamId(uuid::Uuid::from_u128(1))
    }

    fn hash(n: u8) -> String {
        format!("{n:064x}")
    }

    async fn store(files: &Files, n: u8, parts: Vec<Result<Bytes, String>>) -> Result<u64, Error> {
        files.store(team(), &hash(n), stream::iter(parts)).await
    }

    #[tokio::test]
    async fn archive_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path().to_owned()).unwrap();
        let parts = vec![Ok(Bytes::from("a")), Ok(Bytes::from("bc"))];
        assert_eq!(store(&files, 1, parts).await.unwrap(), 3);
        assert_eq!(fs::read(files.path(team(), &hash(1))).unwrap(), b"abc");
        let parts = vec![Ok(Bytes::from("x")), Err("cut".to_owned())];
        assert!(matches!(store(&files, 1, parts).await, Err(Error::Body(_))));
        assert_eq!(files.find(team(), &hash(1)), Some(3));
        assert_eq!(files.find(team(), &hash(2)), None);
        assert_eq!(fs::read_dir(dir.path().join(STAGED)).unwrap().count(), 0);
        assert_eq!(files.list().len(), 1);
        let to = dir.path().join("link");
        files.link(team(), &hash(1), &to).unwrap();
        assert!(files.link(team(), &hash(2), &to).is_err());
    }

    #[tokio::test]
    async fn unused_archives_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path().to_owned()).unwrap();
        for n in 1..=3 {
            store(&files, n, vec![Ok(Bytes::from("a"))]).await.unwrap();
            let file = File::options().write(true).open(files.path(team(), &hash(n))).unwrap();
            file.set_len(4 << 30).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(n.into())).unwrap();
        }
        let left = || {
            let mut left: Vec<String> = files.list().into_iter().map(|one| one.hash).collect();
            left.sort_unstable();
            left
        };
        // A build has a link to the oldest archive.
        fs::hard_link(files.path(team(), &hash(1)), dir.path().join("link")).unwrap();
        files.make_room(team(), &hash(4), 1).unwrap();
        assert_eq!(left(), [hash(1), hash(3)]);
        let refused = files.make_room(team(), &hash(4), 8 << 30);
        assert!(matches!(refused, Err(Error::NoRoom(_))), "{refused:?}");
        assert_eq!(left(), [hash(1), hash(3)]);
        files.remove(team(), &hash(2)).unwrap();
        files.expire(SystemTime::now());
        assert!(files.list().is_empty());
    }
}
