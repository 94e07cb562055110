//! Load balancer that hands each connection to the next of several servers.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Running load balancer. Dropping it stops it.
pub(crate) struct Balancer {
    pub url: String,
    ended: Arc<AtomicBool>,
}

impl Balancer {
    pub(crate) fn start(urls: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let servers: Vec<String> =
            urls.iter().map(|url| url.trim_start_matches("http://").to_owned()).collect();
        let ended = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&ended);
        std::thread::spawn(move || {
            for (client, server) in listener.incoming().zip(servers.iter().cycle()) {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(server)) else {
                    continue;
                };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                pass(client.try_clone().unwrap(), server.try_clone().unwrap());
                pass(server, client);
            }
        });
        Self { url, ended }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // A last connection wakes the accepting thread, which then sees the flag.
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
    }
}

/// Copies bytes from one side to the other, and the end of the stream.
fn pass(mut from: TcpStream, mut to: TcpStream) {
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
}
