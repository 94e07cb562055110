//! `/v1/channels`: destinations of a team's events.

use super::extract::{Json as Body, Path, Query};
use super::paging::{Page, paged};
use crate::app::App;
use crate::auth::Caller;
use crate::channels;
use crate::error::{Error, Result};
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use std::sync::Arc;
use types::ChannelId;

fn channel_id(text: &str) -> Result<ChannelId> {
    text.parse().map_err(|_| Error::NotFound("channel"))
}

/// Creates a channel. Only this answer contains the secret that signs deliveries.
#[utoipa::path(
    operation_id = "create_channel",
    post, path = "/v1/channels", tag = "events", request_body = api::NewChannel,
    responses((status = 201, body = api::Channel), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(wanted): Body<api::NewChannel>,
) -> Result<(StatusCode, Json<api::Channel>)> {
    Ok((StatusCode::CREATED, Json(channels::create(&app, caller, wanted).await?)))
}

/// Lists the team's channels.
#[utoipa::path(
    operation_id = "list_channels",
    get, path = "/v1/channels", tag = "events",
    responses((status = 200, body = api::ChannelList), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<api::ChannelList>> {
    let rows = channels::list(&app, caller).await?;
    Ok(Json(api::ChannelList { items: rows.into_iter().map(channels::to_api).collect() }))
}

/// Returns a channel.
#[utoipa::path(
    operation_id = "get_channel",
    get, path = "/v1/channels/{id}", tag = "events",
    params(("id" = String, Path, description = "Id of the channel")),
    responses((status = 200, body = api::Channel), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<api::Channel>> {
    Ok(Json(channels::to_api(channels::get(&app, caller, channel_id(&id)?).await?)))
}

/// Changes, enables or disables a channel. A channel never receives events from the time while it
/// was disabled.
#[utoipa::path(
    operation_id = "change_channel",
    patch, path = "/v1/channels/{id}", tag = "events", request_body = api::ChangeChannel,
    params(("id" = String, Path, description = "Id of the channel")),
    responses((status = 200, body = api::Channel), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn change(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(wanted): Body<api::ChangeChannel>,
) -> Result<Json<api::Channel>> {
    Ok(Json(channels::change(&app, caller, channel_id(&id)?, wanted).await?))
}

/// Deletes a channel with its deliveries.
#[utoipa::path(
    operation_id = "delete_channel",
    delete, path = "/v1/channels/{id}", tag = "events",
    params(("id" = String, Path, description = "Id of the channel")),
    responses((status = 204), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    channels::delete(&app, caller, channel_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Renews a channel's secret. Only this answer contains the new secret.
#[utoipa::path(
    operation_id = "renew_channel_secret",
    post, path = "/v1/channels/{id}/secret", tag = "events",
    params(("id" = String, Path, description = "Id of the channel")),
    responses((status = 200, body = api::Channel), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn renew(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<api::Channel>> {
    Ok(Json(channels::renew(&app, caller, channel_id(&id)?).await?))
}

/// Sends `channel.test` to a channel. The channel's deliveries show the outcome.
#[utoipa::path(
    operation_id = "test_channel",
    post, path = "/v1/channels/{id}/test", tag = "events",
    params(("id" = String, Path, description = "Id of the channel")),
    responses((status = 202, body = api::Message), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn test(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<api::Message>)> {
    let delivery = channels::test(&app, caller, channel_id(&id)?).await?;
    Ok((StatusCode::ACCEPTED, Json(api::Message { message: delivery.to_string() })))
}

/// Lists a channel's deliveries, sent and waiting, newest first.
#[utoipa::path(
    operation_id = "list_deliveries",
    get, path = "/v1/channels/{id}/deliveries", tag = "events",
    params(("id" = String, Path, description = "Id of the channel"), Page),
    responses((status = 200, body = api::DeliveryPage), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn deliveries(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(page): Query<Page>,
) -> Result<Json<api::DeliveryPage>> {
    let id = channel_id(&id)?;
    let (before, limit) = page.read("a delivery")?;
    let rows = channels::deliveries(&app, caller, id, before, limit + 1).await?;
    let (items, next) =
        paged(rows, limit, channels::delivery_shown, |delivery| delivery.id.clone());
    Ok(Json(api::DeliveryPage { items, next }))
}
