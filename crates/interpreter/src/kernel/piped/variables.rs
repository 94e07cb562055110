//! Changes of the capsule's variables, as a kernel must hear of them.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Variables by name.
pub(in crate::kernel) type Variables = BTreeMap<String, String>;

/// The capsule's variables that a kernel has. A variable that the user's code changed stays as it
/// is until the capsule's own value changes.
#[derive(Debug)]
pub(in crate::kernel) struct Capsule {
    /// The environment of the process at its start.
    start: Variables,
    /// The newest set that the kernel was told of.
    told: Option<Arc<Variables>>,
}

/// Variables to set and to remove.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::kernel) struct Changes {
    pub set: Variables,
    pub unset: Vec<String>,
}

impl Capsule {
    pub(in crate::kernel) fn new(start: Variables) -> Self {
        Self { start, told: None }
    }

    /// Remembers a new set and returns the changes from the earlier one.
    pub(in crate::kernel) fn change(&mut self, now: Option<&Arc<Variables>>) -> Changes {
        let Some(now) = now else { return Changes::default() };
        let before = self.told.as_deref().unwrap_or(&self.start);
        let is_new = |(name, value): &(&String, &String)| before.get(*name) != Some(*value);
        let owned = |(name, value): (&String, &String)| (name.clone(), value.clone());
        let set = now.iter().filter(is_new).map(owned).collect();
        let told = self.told.iter().flat_map(|told| told.keys());
        let unset = told.filter(|name| !now.contains_key(*name)).cloned().collect();
        self.told = Some(Arc::clone(now));
        Changes { set, unset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn only_differences_are_set_and_only_told_names_removed() {
        let mut capsule = Capsule::new(variables(&[("HOME", "/h"), ("A", "1")]));
        assert_eq!(capsule.change(None), Changes::default());
        let first = Arc::new(variables(&[("A", "1"), ("B", "2")]));
        let changes = capsule.change(Some(&first));
        assert_eq!((changes.set, changes.unset), (variables(&[("B", "2")]), vec![]));
        let second = Arc::new(variables(&[("B", "3")]));
        let changes = capsule.change(Some(&second));
        assert_eq!((changes.set, changes.unset), (variables(&[("B", "3")]), vec!["A".to_owned()]));
    }
}
