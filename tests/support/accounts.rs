//! Users for tests: each is invited as by an admin, and activated with the mailed code.

use crate::client::Client;
use crate::eventually;
use crate::platform::Platform;
use serde_json::json;

/// A password that no list of leaked passwords holds.
pub const PASSWORD: &str = "tangerine-lamp-42";

/// Waits for a mail to an address whose text contains `holding`. Returns the code in the newest
/// such mail.
pub async fn mailed(platform: &Platform, to: &str, holding: &str) -> String {
    let what = format!("a mail to {to} with `{holding}`");
    eventually(&what, async || code(platform, to, holding)).await
}

fn code(platform: &Platform, to: &str, holding: &str) -> Option<String> {
    let mut names: Vec<_> = std::fs::read_dir(platform.outbox()).ok()?.flatten().collect();
    names.sort_by_key(std::fs::DirEntry::file_name);
    let mails = names.iter().rev().filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    let mut mails = mails.filter(|mail| mail.contains(&format!("To: {to}")));
    let mail = mails.find(|mail| mail.contains(holding))?;
    let word = mail.split_once(holding)?.1.split_whitespace().next()?;
    Some(word.to_owned())
}

impl Platform {
    /// Creates a user, as an operator invites one, and signs the user in. The first user is the
    /// admin.
    pub async fn user(&self, email: &str) -> Client {
        let body = json!({ "email": email, "name": email.split('@').next().unwrap() });
        self.client().post("/v1/admin/users", &body).await.expect(201);
        let token = mailed(self, email, "give this code:").await;
        let body = json!({ "token": token, "password": PASSWORD, "program": true });
        let came = self.client_with("").post("/v1/auth/activate", &body).await.expect(200);
        self.client_with(came["session_token"].as_str().unwrap())
    }

    /// Creates a user with a role in the first user's team. Returns the user's client and id.
    pub async fn member(&self, admin: &Client, team: &str, role: &str) -> (Client, String) {
        let email = format!("{role}-{}@example.com", &team[5..15]);
        let user = self.user(&email).await;
        let body = json!({ "email": email, "role": role });
        admin.post(&format!("/v1/teams/{team}/invitations"), &body).await.expect(201);
        let token = mailed(self, &email, "wrenn team accept ").await;
        let body = json!({ "token": token });
        let joined = user.post("/v1/invitations/accept", &body).await.expect(200);
        assert_eq!(joined["role"], role);
        let me = user.get("/v1/me").await.expect(200);
        (user, me["id"].as_str().unwrap().to_owned())
    }
}
