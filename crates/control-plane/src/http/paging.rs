//! Lists in pages. Each page starts before the last item of the previous one, so new items shift
//! nothing.

use crate::error::{Error, Result};
use serde::Deserialize;
use std::str::FromStr;
use types::resources::in_range;
use utoipa::IntoParams;

/// Largest size of a page, and the default.
pub(super) const PAGE: u32 = 100;

/// Position and size of a page.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Page {
    /// Value of `next` from the previous page.
    pub before: Option<String>,
    /// Number of items, 1 to 100. The default is 100.
    pub limit: Option<u32>,
}

impl Page {
    /// Returns the position as the id of `what`, and the size.
    pub(super) fn read<Id: FromStr>(&self, what: &str) -> Result<(Option<Id>, i64)> {
        cursor(self.before.as_deref(), self.limit, what)
    }
}

/// Reads the position of a page as the id of `what`, and its size.
pub(super) fn cursor<Id: FromStr>(
    before: Option<&str>,
    limit: Option<u32>,
    what: &str,
) -> Result<(Option<Id>, i64)> {
    let wrong = |_| Error::invalid("before", format!("is not the id of {what}"));
    let before = before.map(|id| id.parse().map_err(wrong)).transpose()?;
    let limit = limit.unwrap_or(PAGE);
    in_range("limit", limit, 1, PAGE)?;
    Ok((before, limit.into()))
}

/// Makes a page of rows, of which there is one extra unless the page is the last. Returns the items
/// and `next`.
pub(super) fn paged<R, T>(
    mut rows: Vec<R>,
    limit: i64,
    to_api: impl Fn(R) -> T,
    id: impl Fn(&T) -> String,
) -> (Vec<T>, Option<String>) {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > limit;
    rows.truncate(limit);
    let items: Vec<T> = rows.into_iter().map(to_api).collect();
    let next = items.last().filter(|_| more).map(id);
    (items, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_page_has_no_next_cursor() {
        let page = |rows: Vec<u32>| paged(rows, 2, |row| row * 10, ToString::to_string);
        assert_eq!(page(vec![3, 2, 1]), (vec![30, 20], Some("20".to_owned())));
        assert_eq!(page(vec![2, 1]), (vec![20, 10], None));
        assert_eq!(page(vec![]), (vec![], None));
        let read = |limit| Page { before: None, limit }.read::<u32>("a number");
        assert_eq!(read(None).unwrap(), (None, 100));
        assert!(read(Some(0)).is_err() && read(Some(101)).is_err());
        assert!(cursor::<u32>(Some("x"), None, "a number").is_err());
    }
}
