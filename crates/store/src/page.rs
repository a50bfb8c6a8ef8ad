//! How lists are cut into pages: OpenAI's `limit`, `after`, `order`, `has_more`.
//!
//! Called by every list function. The one thing to know: ids are ordered by time, so a page is `id
//! < after` and rows that are added or removed meanwhile neither repeat nor hide others.

/// The direction of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Oldest first.
    Asc,
    /// Newest first.
    #[default]
    Desc,
}

/// Which part of a list is wanted.
#[derive(Debug, Clone)]
pub struct PageQuery<Id> {
    /// The last id of the page before; it need not exist any more.
    pub after: Option<Id>,
    /// How many rows at most.
    pub limit: u32,
    /// The direction.
    pub order: Order,
}

impl<Id> Default for PageQuery<Id> {
    fn default() -> Self {
        Self { after: None, limit: 20, order: Order::Desc }
    }
}

impl<Id> PageQuery<Id> {
    /// One row more than asked for tells whether there is a next page.
    pub(crate) fn fetch(&self) -> i64 {
        i64::from(self.limit) + 1
    }
}

/// One page of a list.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Whether rows follow.
    pub has_more: bool,
}

impl<T> Page<T> {
    /// Makes a page of `limit` rows out of what [`PageQuery::fetch`] asked for.
    pub(crate) fn cut(mut items: Vec<T>, limit: u32) -> Self {
        let limit = limit as usize;
        let has_more = items.len() > limit;
        items.truncate(limit);
        Self { items, has_more }
    }
}
