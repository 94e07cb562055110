//! Mail server of a third party, which accepts every mail.

use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Running mail server.
pub struct Smtp {
    /// URL of the server, in the form of WRENN_SMTP_URL.
    pub url: String,
    mails: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Smtp {
    /// Starts a server.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("smtp://{}", listener.local_addr().unwrap());
        let mails = Arc::default();
        let to = Arc::clone(&mails);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let to = Arc::clone(&to);
                tokio::spawn(async move {
                    let _ = talk(stream, &to).await;
                });
            }
        });
        Self { url, mails, task }
    }

    /// Returns the mails received so far, each after the lines of its envelope.
    #[must_use]
    pub fn mails(&self) -> Vec<String> {
        self.mails.lock().unwrap().clone()
    }
}

impl Drop for Smtp {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn talk(stream: TcpStream, to: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    write.write_all(b"220 here\r\n").await?;
    let (mut mail, mut in_data) = (String::new(), false);
    while let Some(line) = lines.next_line().await? {
        let answer = match line.split([' ', ':']).next().unwrap_or("") {
            _ if in_data && line != "." => {
                mail += &format!("{line}\n");
                continue;
            }
            "." => {
                in_data = false;
                to.lock().unwrap().push(std::mem::take(&mut mail));
                "250 taken"
            }
            "EHLO" | "HELO" => "250 here",
            "DATA" => {
                in_data = true;
                "354 go on"
            }
            "QUIT" => "221 bye",
            _ => {
                mail += &format!("{line}\n");
                "250 good"
            }
        };
        write.write_all(format!("{answer}\r\n").as_bytes()).await?;
    }
    Ok(())
}
