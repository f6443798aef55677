//! Positions of an array's tasks, as Slurm and Grid Engine both write them. Pure; any text is taken, and what it says costs no more than its length.

use crate::limits::SUBMISSION_TASKS_MAX;

/// `7`, `1,2,5-8:1`, `1-19:2`: how many, and those of them that can be ours. None: it can't be read.
pub fn read(text: &str) -> Option<(u64, Vec<u32>)> {
    let (mut count, mut positions) = (0u64, Vec::new());
    for part in text.split(',') {
        let (range, step) = part.split_once(':').unwrap_or((part, "1"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last, step) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?, step.parse::<u32>().ok()?.max(1));
        count = count.checked_add(u64::from(last.checked_sub(first)? / step) + 1)?;
        let most = SUBMISSION_TASKS_MAX.saturating_sub(positions.len());
        positions.extend((first..=last.min(SUBMISSION_TASKS_MAX as u32)).step_by(step as usize).take(most));
    }
    Some((count, positions))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_are_counted_and_only_those_that_can_be_ours_are_listed() {
        assert_eq!(Some((1, vec![7])), read("7"));
        assert_eq!(Some((3, vec![3, 5, 7])), read("3-7:2"));
        assert_eq!(Some((3, vec![3, 5, 7])), read("3-8:2"));
        assert_eq!(Some((6, vec![1, 2, 5, 6, 7, 8])), read("1,2,5-8:1"));
        assert_eq!(Some((12, vec![3, 5, 6, 7, 8, 9, 20, 24, 28, 32, 36, 40])), read("3,5-9,20-40:4"));
        assert_eq!(Some((2, vec![1, 2])), read("1-2:0"));
        assert_eq!(Some((2, vec![])), read("1001,4294967295"));
        let (count, ours) = read("1-4294967295:1").unwrap();
        assert_eq!((4_294_967_295, SUBMISSION_TASKS_MAX), (count, ours.len()));
        assert_eq!(SUBMISSION_TASKS_MAX, read(&["0-4294967295"; 5_000].join(",")).unwrap().1.len());
        for bad in ["", "x", "3-1", "1-", "1:x", ",", "1,", "4294967296", "-1", "[1-2]"] {
            assert_eq!(None, read(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in "(?s).{0,100}", more in "[0-9:,-]{0,60}") {
            for text in [&text, &more] {
                prop_assert!(read(text).is_none_or(|(count, ours)| ours.len() as u64 <= count && ours.len() <= SUBMISSION_TASKS_MAX));
            }
        }

        #[test]
        fn a_stride_keeps_its_last(first in 0..200u32, step in 1..50u32, n in 0..15u32) {
            let last = first + step * n;
            let expected: Vec<u32> = (0..=n).map(|i| first + step * i).collect();
            prop_assert_eq!(Some((u64::from(n) + 1, expected)), read(&format!("{first}-{last}:{step}")));
        }
    }
}
