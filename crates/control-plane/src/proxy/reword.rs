//! Rewords the proxy's errors for E2B's clients.

use super::answer::{self, Form};
use super::resolve::Arrival;
use super::wake;
use crate::app::App;
use crate::e2b;
use crate::error::Error;

/// Rewords an error for E2B's clients: its SDKs, and programs that use a capsule made by E2B's
/// API. Such clients ask why a request broke off. Only the host may know that the capsule has
/// come to its end. An error before admission is the same in every state of the capsule.
pub(super) async fn e2b_error(
    app: &App,
    error: Error,
    form: Form,
    arrival: &Arrival,
) -> (Error, Form) {
    if matches!(error, Error::Overloaded | Error::TooManyAtOnce(_)) {
        // The refusal may have come from this very look-up.
        return (error, form);
    }
    let capsule = arrival.target.capsule;
    let find = async || {
        let found = app.routes.find(capsule, None, Some(arrival.from)).await;
        found.ok().and_then(|(route, _)| route)
    };
    let mut route = find().await;
    let made = route.as_ref().is_some_and(|route| route.e2b);
    if form != Form::E2b && !made {
        return (error, form);
    }
    let form = if form == Form::Page { Form::Page } else { Form::E2b };
    let kept_out = matches!(error, Error::NotFound("route") | Error::MethodNotAllowed);
    if kept_out || error.is_refusal() {
        return (error, form);
    }
    if matches!(error, Error::GuestUnavailable)
        && let Some(host) = route.and_then(|route| route.host)
        // Anybody may cause this wait at a public port, so a capsule has a bound on waiters.
        && let Ok(_place) = app.load.waiter(capsule)
    {
        wake::follow_host(app, host).await;
    }
    route = find().await;
    let absent = route.is_some_and(|route| answer::is_absent(&error, &route));
    (if absent { Error::NotFound("capsule") } else { e2b::concurrent(error) }, form)
}
