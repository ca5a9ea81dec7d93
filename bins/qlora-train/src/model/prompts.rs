//! Prompts that a run of training answers between its steps, as sizes: enough to plan the memory for them.

use std::ops::Range;

/// Prompts that are answered side by side
const AT_ONCE: usize = 8;

/// Lengths of the prompts, and of an answer at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompts {
    pub lengths: Vec<usize>,
    pub max_new_tokens: usize,
}

impl Prompts {
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Tokens of the longest prompt with its answer.
    pub fn longest(&self) -> usize {
        self.lengths.iter().map(|prompt| prompt + self.max_new_tokens).max().unwrap_or(0)
    }

    fn tokens(&self, group: &Range<usize>) -> usize {
        self.lengths[group.clone()].iter().map(|prompt| prompt + self.max_new_tokens).sum()
    }

    /// Prompts in a row that are answered side by side, in batches of at most `capacity` tokens.
    pub fn groups(&self, capacity: usize) -> Vec<Range<usize>> {
        let mut groups: Vec<Range<usize>> = Vec::new();
        for at in 0..self.lengths.len() {
            match groups.last_mut() {
                Some(group) if group.len() < AT_ONCE && self.tokens(&(group.start..at + 1)) <= capacity => {
                    group.end = at + 1;
                }
                _ => groups.push(at..at + 1),
            }
        }
        groups
    }

    /// Rows of a cache that has room for each of the groups.
    pub fn cache_rows(&self, capacity: usize) -> usize {
        self.groups(capacity).iter().map(|group| self.tokens(group)).max().unwrap_or(0)
    }

    /// The most prompts that are answered side by side.
    pub fn most_at_once(&self, capacity: usize) -> usize {
        self.groups(capacity).iter().map(|group| group.len()).max().unwrap_or(0)
    }

    /// The groups that take more memory than those before them, in their order: of more prompts, or of more tokens in
    /// them.
    pub fn growing_groups(&self, capacity: usize) -> Vec<Range<usize>> {
        let (mut prompts, mut tokens) = (0, 0);
        let mut groups = self.groups(capacity);
        groups.retain(|group| {
            let read = self.lengths[group.clone()].iter().sum::<usize>();
            let grows = group.len() > prompts || read > tokens;
            (prompts, tokens) = (prompts.max(group.len()), tokens.max(read));
            grows
        });
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_hold_what_fits_and_the_cache_the_largest() {
        let prompts = Prompts { lengths: vec![3, 5, 30, 2, 2], max_new_tokens: 10 };
        assert_eq!(prompts.groups(40), [0..2, 2..3, 3..5]);
        assert_eq!((prompts.longest(), prompts.cache_rows(40), prompts.most_at_once(40)), (40, 40, 2));
        // One that is longer than the room is a group of its own.
        assert_eq!(prompts.groups(10).len(), 5);
        assert_eq!(prompts.growing_groups(40), [0..2, 2..3]);
        let many = Prompts { lengths: vec![1; 20], max_new_tokens: 1 };
        assert_eq!(many.groups(1000), [0..8, 8..16, 16..20]);
        assert_eq!(many.growing_groups(1000), std::slice::from_ref(&(0..8)));
        // One alone with many tokens, then more with fewer each, then fewer and shorter ones.
        let mixed = Prompts { lengths: vec![30, 1, 1, 1, 20, 2], max_new_tokens: 2 };
        assert_eq!(mixed.groups(34), [0..1, 1..5, 5..6]);
        assert_eq!(mixed.growing_groups(34), [0..1, 1..5]);
        assert!(Prompts::default().growing_groups(9).is_empty() && Prompts::default().cache_rows(9) == 0);
    }
}
