//! Sets of pages, as rising ranges that have no page in common.

use super::layer::PAGE;
use rustix::fs::{SeekFrom, seek};
use std::fs::File;
use std::io;
use std::ops::Range;

/// Returns the pages of some ranges as a set.
pub(crate) fn union(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| range.start < range.end);
    ranges.sort_unstable_by_key(|range| range.start);
    let mut out: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

/// Returns the pages of a set that are not in the set `taken`.
pub(crate) fn without(all: &[Range<u64>], taken: &[Range<u64>]) -> Vec<Range<u64>> {
    let (mut out, mut taken) = (Vec::new(), taken.iter().peekable());
    for range in all {
        let mut at = range.start;
        while at < range.end {
            while taken.next_if(|gone| gone.end <= at).is_some() {}
            match taken.peek() {
                Some(gone) if gone.start <= at => at = gone.end,
                Some(gone) if gone.start < range.end => {
                    out.push(at..gone.start);
                    at = gone.end;
                }
                _ => {
                    out.push(at..range.end);
                    at = range.end;
                }
            }
        }
    }
    out
}

/// Returns the ranges of bytes in which a sparse file holds data.
pub(crate) fn extents(file: &File) -> io::Result<Vec<Range<u64>>> {
    let (mut found, mut at) = (Vec::new(), 0);
    loop {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(found),
            Err(error) => return Err(error.into()),
        };
        at = seek(file, SeekFrom::Hole(start))?;
        found.push(start..at);
    }
}

/// Returns the first `pages` pages of a sparse file that hold data.
pub(crate) fn data(file: &File, pages: u64) -> io::Result<Vec<Range<u64>>> {
    let page = PAGE as u64;
    let found = extents(file)?.into_iter();
    let found = found.map(|range| range.start / page..range.end.div_ceil(page).min(pages));
    Ok(union(found.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::os::unix::fs::FileExt;

    fn pages(ranges: &[Range<u64>]) -> BTreeSet<u64> {
        ranges.iter().cloned().flatten().collect()
    }

    fn some() -> impl Strategy<Value = Vec<Range<u64>>> {
        let range = (0..100_u64, 0..9_u64).prop_map(|(start, length)| start..start + length);
        prop::collection::vec(range, 0..12)
    }

    proptest! {
        #[test]
        fn page_sets_agree_with_single_pages(one in some(), other in some()) {
            let (all, taken) = (union(one.clone()), union(other.clone()));
            prop_assert_eq!(pages(&all), pages(&one));
            prop_assert!(all.windows(2).all(|two| two[0].end < two[1].start));
            let left = without(&all, &taken);
            prop_assert_eq!(pages(&left), &pages(&one) - &pages(&other));
            prop_assert!(left.windows(2).all(|two| two[0].end < two[1].start));
            prop_assert!(left.iter().all(|range| range.start < range.end));
        }
    }

    #[test]
    fn data_of_a_sparse_file_is_found_by_pages_up_to_its_bound() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * PAGE as u64).unwrap();
        assert!(data(&file, 64).unwrap().is_empty());
        for (page, count) in [(3, 1), (40, 9)] {
            file.write_all_at(&vec![1; count * PAGE], page * PAGE as u64).unwrap();
        }
        let found = pages(&data(&file, 44).unwrap());
        assert!(found.contains(&3) && found.contains(&43));
        assert!(!found.contains(&44));
    }
}
