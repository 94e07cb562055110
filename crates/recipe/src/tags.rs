//! Tags as lists of assignments. A build gets its tags when it is requested. A tag stands for the
//! newest assignment whose build is ready. So no failed or running build takes a tag over. If two
//! builds run at once, the later request wins, whichever build ends first.

/// An assignment of one tag of one template. Assignments are never changed but for `deleted`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment<B> {
    /// Build that got the tag.
    pub build: B,
    /// Place in the order of assignments. No two assignments of a tag have the same.
    pub sequence: u64,
    /// Tells that the tag was deleted later. Such an assignment never comes back.
    pub deleted: bool,
}

/// Returns the build that a tag stands for. The order of the slice does not matter.
pub fn resolve<B: Copy>(assignments: &[Assignment<B>], is_ready: impl Fn(B) -> bool) -> Option<B> {
    let live = assignments.iter().filter(|assignment| !assignment.deleted);
    let ready = live.filter(|assignment| is_ready(assignment.build));
    ready.max_by_key(|assignment| assignment.sequence).map(|assignment| assignment.build)
}

/// Returns the newest assignment, ready or not. A list of tags shows its time.
pub fn newest<B>(assignments: &[Assignment<B>]) -> Option<&Assignment<B>> {
    let live = assignments.iter().filter(|assignment| !assignment.deleted);
    live.max_by_key(|assignment| assignment.sequence)
}

/// Returns the builds that a request for the same tag supersedes: those that have not begun.
pub fn superseded<B: Copy>(
    assignments: &[Assignment<B>],
    is_waiting: impl Fn(B) -> bool,
) -> impl Iterator<Item = B> {
    let live = assignments.iter().filter(|assignment| !assignment.deleted);
    live.map(|assignment| assignment.build).filter(move |build| is_waiting(*build))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn assigned(build: u8, sequence: u64) -> Assignment<u8> {
        Assignment { build, sequence, deleted: false }
    }

    #[test]
    fn newest_ready_request_wins() {
        let list = [assigned(1, 1), assigned(2, 2), assigned(3, 3)];
        assert_eq!(resolve(&list, |_| true), Some(3));
        assert_eq!(resolve(&list, |build| build < 3), Some(2));
        assert_eq!(resolve(&list, |_| false), None);
        assert_eq!(newest(&list).map(|assignment| assignment.build), Some(3));
        assert_eq!(superseded(&list, |build| build > 1).collect::<Vec<_>>(), [2, 3]);
        let again = [assigned(1, 3), assigned(2, 2)];
        assert_eq!(resolve(&again, |_| true), Some(1));
        let gone =
            list.map(|assignment| Assignment { deleted: assignment.sequence < 3, ..assignment });
        assert_eq!(resolve(&gone, |build| build < 3), None);
    }

    #[derive(Debug, Clone, Copy)]
    enum Event {
        Assign(u8),
        Succeed(u8),
        Fail(u8),
        Delete,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0u8..6).prop_map(Event::Assign),
            3 => (0u8..6).prop_map(Event::Succeed),
            2 => (0u8..6).prop_map(Event::Fail),
            1 => Just(Event::Delete),
        ]
    }

    proptest! {
        /// The model keeps the requests since the last deletion, and looks for the last ready one.
        #[test]
        fn resolution_equals_the_model_over_random_orders(
            events in proptest::collection::vec(event(), 0..40),
            rotation in 0usize..40,
        ) {
            let (mut list, mut model) = (Vec::new(), Vec::new());
            let mut state = [None::<bool>; 6];
            for (event, sequence) in events.into_iter().zip(1..) {
                match event {
                    Event::Assign(build) => {
                        list.push(assigned(build, sequence));
                        model.push(build);
                    }
                    // A build ends once.
                    Event::Succeed(build) => {
                        let _ = state[usize::from(build)].get_or_insert(true);
                    }
                    Event::Fail(build) => {
                        let _ = state[usize::from(build)].get_or_insert(false);
                    }
                    Event::Delete => {
                        list.iter_mut().for_each(|assignment| assignment.deleted = true);
                        model.clear();
                    }
                }
                let is_ready = |build: u8| state[usize::from(build)] == Some(true);
                let wanted = model.iter().rev().copied().find(|build| is_ready(*build));
                let mut turned = list.clone();
                turned.rotate_left(rotation.min(list.len()));
                prop_assert_eq!(resolve(&turned, is_ready), wanted);
                prop_assert_eq!(newest(&turned).map(|a| a.build), model.last().copied());
            }
        }
    }
}
