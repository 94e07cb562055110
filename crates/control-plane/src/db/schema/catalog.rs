//! Description of a schema from PostgreSQL's catalogs, for a comparison. The order of columns does
//! not count, and neither do owners, privileges, comments and storage options.

use sqlx::PgConnection;
use std::collections::BTreeSet;

/// Query for a line about each part of the schema that the search path names.
const PARTS: &str = include_str!("catalog.sql");

/// Makes a schema the only one that names are searched in, for the rest of the transaction. The
/// catalogs then show the names of its parts without the schema's own name.
pub(super) async fn enter(db: &mut PgConnection, schema: &str) -> sqlx::Result<()> {
    let sql = "SELECT set_config('search_path', $1, true)";
    sqlx::query(sql).bind(schema).execute(db).await.map(|_| ())
}

/// Describes the schema that the search path names: a line about each part.
pub(super) async fn describe(db: &mut PgConnection) -> sqlx::Result<BTreeSet<String>> {
    let parts: Vec<String> = sqlx::query_scalar(PARTS).fetch_all(db).await?;
    Ok(parts.into_iter().collect())
}
