//! Settings of accounts: rules of sign-up, providers of sign-ins, and locks of sign-in attempts.

use super::provider::Provider;
use std::sync::Arc;

/// Rules of sign-up and sign-in, and of the addresses that events may go to.
#[derive(Debug, Clone)]
pub struct Accounts {
    pub sign_up: SignUp,
    pub providers: Vec<Provider>,
    /// URL of the API, to which providers send browsers back.
    pub url: String,
    /// Set if events may be sent to private addresses.
    pub private_channels: bool,
    /// Locks that let attempts to sign in to one account happen one after the other.
    pub(crate) turns: Arc<Stripes>,
}

impl Accounts {
    /// Creates the rules of sign-up, sign-in and event addresses.
    #[must_use]
    pub fn new(
        sign_up: SignUp,
        providers: Vec<Provider>,
        url: String,
        private_channels: bool,
    ) -> Self {
        Self { sign_up, providers, url, private_channels, turns: Arc::default() }
    }
}

/// A fixed number of locks, chosen by a hash.
#[derive(Debug)]
pub(crate) struct Stripes(Vec<Arc<tokio::sync::Mutex<()>>>);

impl Default for Stripes {
    fn default() -> Self {
        Self((0..=u8::MAX).map(|_| Arc::default()).collect())
    }
}

impl Stripes {
    pub(crate) fn of(&self, hash: &[u8; 32]) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&self.0[usize::from(hash[0])])
    }
}

/// Rule for new accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignUp {
    /// Anybody may make an account.
    Open,
    /// People need an invitation to a team or by an admin.
    Invited,
    /// People need an invitation by an admin.
    Off,
}

impl SignUp {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Invited => "invited",
            Self::Off => "off",
        }
    }
}
