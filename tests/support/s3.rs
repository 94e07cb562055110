//! Real S3 server over a folder, for one test.

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const BUCKET: &str = "wrenn-test";

/// S3 server with one bucket. It ends with the process.
pub struct S3 {
    dir: TempDir,
    vars: Vec<(&'static str, String)>,
}

impl S3 {
    /// Starts a server on this machine's loopback.
    pub async fn start() -> Self {
        Self::serve(std::net::TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// Starts a server on a listener, which may belong to another network namespace.
    ///
    /// # Panics
    /// When the listener cannot be used, or there is no runtime.
    #[must_use]
    pub fn serve(listener: std::net::TcpListener) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(BUCKET)).unwrap();
        let mut service = S3ServiceBuilder::new(FileSystem::new(dir.path()).unwrap());
        service.set_auth(SimpleAuth::from_single("test-key", "test-secret"));
        let service = service.build();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let builder = Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        let vars = vec![
            ("WRENN_STORE", format!("s3://{BUCKET}/below/this")),
            ("AWS_ENDPOINT", endpoint),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_ACCESS_KEY_ID", "test-key".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "test-secret".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
        ];
        Self { dir, vars }
    }

    /// Returns the variables for hosts that use the store.
    #[must_use]
    pub fn vars(&self) -> Vec<(&str, &str)> {
        self.vars.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }

    /// Returns the store's URL.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.vars[0].1
    }

    /// Returns the folder of the store's objects.
    #[must_use]
    pub fn objects(&self) -> PathBuf {
        self.dir.path().join(BUCKET).join("below/this")
    }

    /// Returns every object whose name contains `holding`.
    #[must_use]
    pub fn find(&self, holding: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        collect(&self.objects(), &mut found);
        found.retain(|path| path.to_string_lossy().contains(holding));
        found
    }
}

fn collect(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => collect(&entry.path(), out),
            false => out.push(entry.path()),
        }
    }
}
