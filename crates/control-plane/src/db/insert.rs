//! Inserts in which each column's name stands beside its value. Statements with more than four
//! columns use it, so that no edit can mix up their order (ADR 37).

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{Arguments, AssertSqlSafe, Encode, FromRow, PgExecutor, Postgres, Type};

/// An `INSERT` of one row.
pub(crate) struct Insert {
    table: &'static str,
    columns: Vec<&'static str>,
    /// Expression of each column, with the number of its parameter.
    values: Vec<String>,
    /// Encoded values, or the first failure to encode one.
    arguments: Result<PgArguments, BoxDynError>,
    conflict: Conflict,
}

/// Outcome when the table has a row with the same key.
enum Conflict {
    /// The statement fails.
    Fail,
    /// The present row stays. The clause names the key, if it is not empty.
    Keep(&'static str),
    /// The present row of this key gets the new values.
    Replace(&'static [&'static str]),
}

impl Insert {
    pub(crate) fn into(table: &'static str) -> Self {
        Self {
            table,
            columns: Vec::new(),
            values: Vec::new(),
            arguments: Ok(PgArguments::default()),
            conflict: Conflict::Fail,
        }
    }

    /// Numbers the parameters after `arguments`, which belong to the same statement.
    pub(crate) fn after(self, arguments: PgArguments) -> Self {
        Self { arguments: Ok(arguments), ..self }
    }

    /// Sets a column to a value.
    pub(crate) fn set<'t, T>(self, column: &'static str, value: T) -> Self
    where
        T: Encode<'t, Postgres> + Type<Postgres>,
    {
        self.set_with(column, "?", value)
    }

    /// Sets a column to an expression, in which `?` stands for the value.
    pub(crate) fn set_with<'t, T>(
        mut self,
        column: &'static str,
        expression: &'static str,
        value: T,
    ) -> Self
    where
        T: Encode<'t, Postgres> + Type<Postgres>,
    {
        self.columns.push(column);
        let number = self.arguments.as_ref().map_or(0, Arguments::len) + 1;
        self.values.push(expression.replacen('?', &format!("${number}"), 1));
        self.arguments = self.arguments.and_then(|mut arguments| {
            arguments.add(value)?;
            Ok(arguments)
        });
        self
    }

    /// Sets a column to the time that lies `seconds` after the transaction's begin.
    pub(crate) fn set_after(self, column: &'static str, seconds: f64) -> Self {
        self.set_with(column, "now() + make_interval(secs => ?)", seconds)
    }

    /// Inserts nothing when the table has a row of the same `key`, such as `(team_id, name)`.
    pub(crate) fn or_keep(self, key: &'static str) -> Self {
        Self { conflict: Conflict::Keep(key), ..self }
    }

    /// Replaces the row of the same `key` when the table has one.
    pub(crate) fn or_replace(self, key: &'static [&'static str]) -> Self {
        Self { conflict: Conflict::Replace(key), ..self }
    }

    /// Runs the statement. Returns `false` when it inserted and replaced nothing.
    pub(crate) async fn execute(self, db: impl PgExecutor<'_>) -> sqlx::Result<bool> {
        let sql = AssertSqlSafe(self.sql());
        let arguments = self.arguments.map_err(sqlx::Error::Encode)?;
        Ok(sqlx::query_with(sql, arguments).execute(db).await?.rows_affected() > 0)
    }

    /// Runs the statement, and returns `columns` of the row; `None` when it inserted and replaced
    /// nothing.
    pub(crate) async fn returning<T>(
        self,
        columns: &'static str,
        db: impl PgExecutor<'_>,
    ) -> sqlx::Result<Option<T>>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let sql = AssertSqlSafe(format!("{} RETURNING {columns}", self.sql()));
        let arguments = self.arguments.map_err(sqlx::Error::Encode)?;
        sqlx::query_as_with(sql, arguments).fetch_optional(db).await
    }

    /// Returns a part of a statement that inserts a row for each row of `source`, such as
    /// `made WHERE true`. Returns the values of the statement's parameters, too.
    pub(crate) fn for_each(self, source: &str) -> sqlx::Result<(String, PgArguments)> {
        let (columns, values) = (self.columns.join(", "), self.values.join(", "));
        let sql = format!("INSERT INTO {} ({columns}) SELECT {values} FROM {source}", self.table);
        Ok((sql, self.arguments.map_err(sqlx::Error::Encode)?))
    }

    fn sql(&self) -> String {
        let (columns, values) = (self.columns.join(", "), self.values.join(", "));
        let conflict = match self.conflict {
            Conflict::Fail => String::new(),
            Conflict::Keep(key) => format!(" ON CONFLICT {key} DO NOTHING"),
            Conflict::Replace(key) => {
                let others = self.columns.iter().filter(|column| !key.contains(column));
                let set: Vec<_> =
                    others.map(|column| format!("{column} = excluded.{column}")).collect();
                format!(" ON CONFLICT ({}) DO UPDATE SET {}", key.join(", "), set.join(", "))
            }
        };
        format!("INSERT INTO {} ({columns}) VALUES ({values}){conflict}", self.table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{CapsuleState, TeamId};

    #[test]
    fn insert_numbers_parameters_in_the_order_of_their_columns() {
        let insert = Insert::into("things")
            .set("team_id", TeamId::new())
            .set("state", CapsuleState::Running)
            .set_with("size", "nullif(?, 0)", 7_i32)
            .set("note", None::<String>)
            .set_after("ends_at", 1.5);
        let sql = "INSERT INTO things (team_id, state, size, note, ends_at) VALUES \
                   ($1, $2, nullif($3, 0), $4, now() + make_interval(secs => $5))";
        assert_eq!(insert.sql(), sql);
        assert_eq!(insert.arguments.as_ref().unwrap().len(), 5);
    }

    #[test]
    fn inserts_of_one_statement_number_their_parameters_on() {
        let first = Insert::into("a").set("x", 1_i32).set("y", 2_i32);
        let (sql, arguments) = first.for_each("fits").unwrap();
        assert_eq!(sql, "INSERT INTO a (x, y) SELECT $1, $2 FROM fits");
        let (sql, arguments) =
            Insert::into("b").after(arguments).set("z", 3_i32).for_each("made").unwrap();
        assert_eq!(sql, "INSERT INTO b (z) SELECT $3 FROM made");
        assert_eq!(arguments.len(), 3);
    }

    #[test]
    fn conflict_clause_keeps_or_replaces_the_present_row() {
        let insert = || Insert::into("t").set("a", 1_i32).set("b", 2_i32).set("c", 3_i32);
        let plain = "INSERT INTO t (a, b, c) VALUES ($1, $2, $3)";
        assert_eq!(insert().sql(), plain);
        let keep = insert().or_keep("(a, b)").sql();
        assert_eq!(keep, format!("{plain} ON CONFLICT (a, b) DO NOTHING"));
        let replace = insert().or_replace(&["a", "b"]).sql();
        assert_eq!(replace, format!("{plain} ON CONFLICT (a, b) DO UPDATE SET c = excluded.c"));
    }
}
