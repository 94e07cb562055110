//! Rounds of pause and resume. The guest's memory stays whole, even if the platform dies while pages
//! are on their way to the guest.

use crate::capsule;

/// Makes data in the guest's memory, with its checksum.
const MAKE: &str =
    "cd /dev/shm && head -c 40000000 /dev/urandom > data && sha256sum $PWD/data > sums";
/// Checks the data, and prints the rounds that the guest has noted.
const CHECK: &str = "sha256sum -c /dev/shm/sums > /dev/null && cat /dev/shm/rounds";

#[tokio::test]
async fn memory_is_whole_after_rounds_in_which_the_platform_dies() {
    let (mut platform, client, id) = capsule().await;
    client.out(&id, MAKE).await;
    let mut wanted = String::new();
    for round in 0..4 {
        let client = platform.client();
        client.out(&id, &format!("echo {round} >> /dev/shm/rounds")).await;
        wanted += &format!("{round}\n");
        client.pause(&id).await;
        client.resume(&id).await;
        platform.kill();
        platform.resume().await;
        let client = platform.client();
        assert_eq!(client.status(&id).await, "running");
        assert_eq!(client.out(&id, CHECK).await, wanted);
    }
    platform.finish();
}
