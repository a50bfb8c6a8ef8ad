//! Lists as OpenAI pages them: `limit`, `after`, `has_more`.
//!
//! Every list route uses [`PageParams`] and answers a [`List`].

use serde::{Deserialize, Serialize};
use tunesmith_store::{Order, Page, PageQuery};
use utoipa::{IntoParams, ToSchema};

use super::error::{ApiError, shorten};

/// Query parameters of a list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageParams {
    /// The last id of the page before.
    pub after: Option<String>,
    /// Most items to answer.
    #[param(minimum = 1, maximum = 100, default = 20)]
    pub limit: Option<u32>,
}

impl PageParams {
    /// The store's query, newest first.
    pub fn query<Id: std::str::FromStr<Err = tunesmith_store::StoreError>>(&self) -> Result<PageQuery<Id>, ApiError> {
        page(self.after.as_deref(), self.limit, 20, 100, Order::Desc)
    }
}

/// Checks the parts of a list's query.
pub fn page<Id: std::str::FromStr<Err = tunesmith_store::StoreError>>(
    after: Option<&str>,
    limit: Option<u32>,
    default: u32,
    most: u32,
    order: Order,
) -> Result<PageQuery<Id>, ApiError> {
    let limit = limit.unwrap_or(default);
    if !(1..=most).contains(&limit) {
        return Err(ApiError::field("limit", format!("`limit` is {limit}; it must be between 1 and {most}.")));
    }
    let after = after
        .map(|id| id.parse().map_err(|_| ApiError::field("after", format!("`after` is `{}`, which is no id of this list.", shorten(id)))))
        .transpose()?;
    Ok(PageQuery { after, limit, order })
}

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct List<T> {
    /// Always `list`.
    pub object: &'static str,
    /// The items.
    pub data: Vec<T>,
    /// Whether more follow after the last one.
    pub has_more: bool,
    /// The first item's id.
    pub first_id: Option<String>,
    /// The last item's id, the next page's `after`.
    pub last_id: Option<String>,
}

impl<T> List<T> {
    /// Maps a page of rows; `id` reads an item's id.
    pub fn of<Row>(page: Page<Row>, map: impl FnMut(Row) -> T, id: impl Fn(&T) -> String) -> Self {
        let data: Vec<T> = page.items.into_iter().map(map).collect();
        Self { object: "list", first_id: data.first().map(&id), last_id: data.last().map(&id), has_more: page.has_more, data }
    }
}
