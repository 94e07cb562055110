//! `…/code`: runs code in a capsule's code interpreter, as a stream of lines of JSON, and manages
//! the contexts in which code runs.

use super::contents::check_path;
use super::extract::{Json as Body, Path, Query, WithInput, capsule_id};
use crate::app::App;
use crate::auth::Caller;
use crate::code::{Checked, Interpreter, context_id, execution_id};
use crate::error::Result;
use crate::load::UnderWay;
use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json};
use http::{HeaderValue, StatusCode, header};
use std::sync::Arc;

/// Runs code and streams its output as lines of JSON. The first line is `execution_started` with
/// `execution_id` and `context_id`, and the last is `end_of_execution`. Lines between are
/// `number_of_executions`, `stdout`, `stderr`, `result`, `error`, `omitted` and `keepalive`. A body
/// without the last line is incomplete: the execution goes on, and can be attached to.
#[utoipa::path(
    operation_id = "run_code",
    post, path = "/v1/capsules/{id}/code", tag = "code", request_body = api::RunCode,
    params(("id" = String, Path, description = "Id or name of the capsule")),
    responses(
        (status = 200, description = "Lines of the execution", content_type = "application/x-ndjson"),
        (status = 409, description = "The capsule has no code interpreter, or does not run", body = api::ErrorBody),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn run(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Extension(under_way): Extension<UnderWay>,
    WithInput(run): WithInput<api::RunCode>,
) -> Result<Response> {
    let (id, run) = (capsule_id(&id)?, Checked::run(&run)?);
    let interpreter = Interpreter::of(&app, caller, id, under_way).await?;
    interpreter.run(run).await.map(lines)
}

#[derive(serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Attach {
    /// Number of lines that the client has. Lines of the type `keepalive` do not count, and a line
    /// of the type `omitted` counts as its `lines`. The default is 0.
    #[serde(default)]
    after: u64,
}

/// Attaches to an execution: streams the lines after the first ones, and then those to come. Lines
/// that are no longer kept are replaced by a line `omitted`.
#[utoipa::path(
    operation_id = "attach_code",
    get, path = "/v1/capsules/{id}/code/executions/{execution_id}", tag = "code",
    params(
        ("id" = String, Path, description = "Id or name of the capsule"),
        ("execution_id" = String, Path, description = "Id of the execution"),
        Attach
    ),
    responses(
        (status = 200, description = "Lines of the execution", content_type = "application/x-ndjson"),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn attach(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, execution)): Path<(String, String)>,
    Extension(under_way): Extension<UnderWay>,
    Query(attach): Query<Attach>,
) -> Result<Response> {
    let (id, execution) = (capsule_id(&id)?, execution_id(&execution)?);
    let interpreter = Interpreter::of(&app, caller, id, under_way).await?;
    interpreter.attach(execution, attach.after).await.map(lines)
}

/// Interrupts an execution. Its context keeps its state, if the code lets itself be interrupted.
#[utoipa::path(
    operation_id = "interrupt_code",
    post, path = "/v1/capsules/{id}/code/executions/{execution_id}/interrupt", tag = "code",
    params(
        ("id" = String, Path, description = "Id or name of the capsule"),
        ("execution_id" = String, Path, description = "Id of the execution")
    ),
    responses((status = 204), (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody))
)]
pub(crate) async fn interrupt(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, execution)): Path<(String, String)>,
    Extension(under_way): Extension<UnderWay>,
) -> Result<StatusCode> {
    let (id, execution) = (capsule_id(&id)?, execution_id(&execution)?);
    let interpreter = Interpreter::of(&app, caller, id, under_way).await?;
    interpreter.interrupt(execution).await.map(|()| StatusCode::NO_CONTENT)
}

/// Lists the contexts of a capsule in order of their creation.
#[utoipa::path(
    operation_id = "list_code_contexts",
    get, path = "/v1/capsules/{id}/code/contexts", tag = "code",
    params(("id" = String, Path, description = "Id or name of the capsule")),
    responses((status = 200, body = api::CodeContextList), (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody))
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Extension(under_way): Extension<UnderWay>,
) -> Result<Json<api::CodeContextList>> {
    let interpreter = Interpreter::of(&app, caller, capsule_id(&id)?, under_way).await?;
    Ok(Json(api::CodeContextList { contexts: interpreter.contexts().await? }))
}

/// Creates a context.
#[utoipa::path(
    operation_id = "create_code_context",
    post, path = "/v1/capsules/{id}/code/contexts", tag = "code", request_body = api::CreateCodeContext,
    params(("id" = String, Path, description = "Id or name of the capsule")),
    responses((status = 201, body = api::CodeContext), (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody))
)]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Extension(under_way): Extension<UnderWay>,
    Body(create): Body<api::CreateCodeContext>,
) -> Result<(StatusCode, Json<api::CodeContext>)> {
    create.cwd.as_deref().map_or(Ok(()), |cwd| check_path("cwd", cwd))?;
    let (id, context) = (capsule_id(&id)?, Checked::context(&create)?);
    let interpreter = Interpreter::of(&app, caller, id, under_way).await?;
    Ok((StatusCode::CREATED, Json(interpreter.create(context).await?)))
}

/// Returns a context.
#[utoipa::path(
    operation_id = "get_code_context",
    get, path = "/v1/capsules/{id}/code/contexts/{context_id}", tag = "code",
    params(
        ("id" = String, Path, description = "Id or name of the capsule"),
        ("context_id" = String, Path, description = "Id of the context")
    ),
    responses((status = 200, body = api::CodeContext), (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody))
)]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, context)): Path<(String, String)>,
    Extension(under_way): Extension<UnderWay>,
) -> Result<Json<api::CodeContext>> {
    let (id, context) = (capsule_id(&id)?, context_id(&context)?);
    let interpreter = Interpreter::of(&app, caller, id, under_way).await?;
    interpreter.context(context).await.map(Json)
}

/// Deletes a context. Its execution under way ends.
#[utoipa::path(
    operation_id = "delete_code_context",
    delete, path = "/v1/capsules/{id}/code/contexts/{context_id}", tag = "code",
    params(
        ("id" = String, Path, description = "Id or name of the capsule"),
        ("context_id" = String, Path, description = "Id of the context")
    ),
    responses((status = 204), (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody))
)]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, context)): Path<(String, String)>,
    Extension(under_way): Extension<UnderWay>,
) -> Result<StatusCode> {
    let (id, context) = (capsule_id(&id)?, context_id(&context)?);
    let interpreter = Interpreter::of(&app, caller, id, under_way).await?;
    interpreter.remove(context).await.map(|()| StatusCode::NO_CONTENT)
}

/// Restarts a context. Its variables are lost; its id, directory and environment stay.
#[utoipa::path(
    operation_id = "restart_code_context",
    post, path = "/v1/capsules/{id}/code/contexts/{context_id}/restart", tag = "code",
    params(
        ("id" = String, Path, description = "Id or name of the capsule"),
        ("context_id" = String, Path, description = "Id of the context")
    ),
    responses((status = 204), (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody))
)]
pub(crate) async fn restart(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, context)): Path<(String, String)>,
    Extension(under_way): Extension<UnderWay>,
) -> Result<StatusCode> {
    let (id, context) = (capsule_id(&id)?, context_id(&context)?);
    let interpreter = Interpreter::of(&app, caller, id, under_way).await?;
    interpreter.restart(context).await.map(|()| StatusCode::NO_CONTENT)
}

/// Interrupts the execution that runs in a context, if there is one.
#[utoipa::path(
    operation_id = "interrupt_code_context",
    post, path = "/v1/capsules/{id}/code/contexts/{context_id}/interrupt", tag = "code",
    params(
        ("id" = String, Path, description = "Id or name of the capsule"),
        ("context_id" = String, Path, description = "Id of the context")
    ),
    responses((status = 204), (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody))
)]
pub(crate) async fn interrupt_context(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, context)): Path<(String, String)>,
    Extension(under_way): Extension<UnderWay>,
) -> Result<StatusCode> {
    let (id, context) = (capsule_id(&id)?, context_id(&context)?);
    let interpreter = Interpreter::of(&app, caller, id, under_way).await?;
    interpreter.interrupt_context(context).await.map(|()| StatusCode::NO_CONTENT)
}

/// Completes code at a position, by the names that a context has.
#[utoipa::path(
    operation_id = "complete_code",
    post, path = "/v1/capsules/{id}/code/contexts/{context_id}/complete", tag = "code",
    request_body = api::CompleteCode,
    params(
        ("id" = String, Path, description = "Id or name of the capsule"),
        ("context_id" = String, Path, description = "Id of the context")
    ),
    responses((status = 200, body = api::CodeCompletion), (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody))
)]
pub(crate) async fn complete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, context)): Path<(String, String)>,
    Extension(under_way): Extension<UnderWay>,
    Body(complete): Body<api::CompleteCode>,
) -> Result<Json<api::CodeCompletion>> {
    let (id, context) = (capsule_id(&id)?, context_id(&context)?);
    let completion = Checked::completion(&complete)?;
    let interpreter = Interpreter::of(&app, caller, id, under_way).await?;
    interpreter.complete(context, completion).await.map(Json)
}

/// Lists the variables of a context, with types, sizes and previews.
#[utoipa::path(
    operation_id = "list_code_variables",
    get, path = "/v1/capsules/{id}/code/contexts/{context_id}/variables", tag = "code",
    params(
        ("id" = String, Path, description = "Id or name of the capsule"),
        ("context_id" = String, Path, description = "Id of the context")
    ),
    responses((status = 200, body = api::CodeVariableList), (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody))
)]
pub(crate) async fn variables(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, context)): Path<(String, String)>,
    Extension(under_way): Extension<UnderWay>,
) -> Result<Json<api::CodeVariableList>> {
    let (id, context) = (capsule_id(&id)?, context_id(&context)?);
    let interpreter = Interpreter::of(&app, caller, id, under_way).await?;
    Ok(Json(api::CodeVariableList { variables: interpreter.variables(context).await? }))
}

/// Answers with the lines of an execution. A body that breaks off stays without its last chunk, so
/// that no client takes it for complete.
fn lines(body: axum::body::Body) -> Response {
    let mut response = Response::new(body);
    // A guest may send anything. These headers keep a browser from running it under the platform's
    // name.
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
