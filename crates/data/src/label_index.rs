//! From the name of a label to its id. `plan` checks with it that every label of the data has an id, `load` looks the ids up;
//! one lookup for both, so that a job that was accepted does not stumble over a spelling later.

use std::collections::HashMap;

use crate::label::spelled_number_name;

/// The ids of a plan's labels.
pub(crate) struct LabelIndex<'a> {
    ids: HashMap<&'a str, u32>,
    by_id: bool,
}

impl<'a> LabelIndex<'a> {
    /// `by_id`: the data holds ids 0, 1, 2 … in place of names, as the hub's parquet files do.
    pub fn new(labels: &'a [String], by_id: bool) -> Self {
        let ids = labels.iter().zip(0..).map(|(label, id)| (label.as_str(), id)).collect();
        Self { ids, by_id }
    }

    /// The id of a label, given its name as [`crate::label::label_name`] says it.
    pub fn id(&self, name: &str) -> Option<u32> {
        if let Some(id) = self.ids.get(name) {
            return Some(*id);
        }
        // Cells of CSV: a table that once held a missing value writes all its integers as 1.0.
        let number = spelled_number_name(name)?;
        if self.by_id {
            return number.parse().ok().filter(|id| (*id as usize) < self.ids.len());
        }
        self.ids.get(number.as_str()).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_first_then_numbers_then_ids() {
        let labels = ["1", "2", "x"].map(String::from);
        let index = LabelIndex::new(&labels, false);
        assert_eq!(index.id("1"), Some(0));
        assert_eq!(index.id("2.0"), Some(1));
        assert_eq!(index.id("0"), None);
        let names = ["a", "b"].map(String::from);
        assert_eq!(LabelIndex::new(&names, true).id("1"), Some(1));
        assert_eq!(LabelIndex::new(&names, true).id("2"), None);
        assert_eq!(LabelIndex::new(&names, false).id("1"), None);
    }
}
