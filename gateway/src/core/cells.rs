//! The cells of a chunk of an array: runs of equal ones while they are few, else one each. Tasks are placed and end in ranges, so most chunks are a
//! handful of runs at any time, and what is done to a range costs its runs, not its tasks. A chunk without order at rest, such as the ends of tasks that take
//! their own time, has few kinds of cells: one byte each says which, until the next change.

use std::collections::HashMap;

use super::state::Cell;

/// More runs than this take more than a quarter of what the cells themselves would: 24 bytes each, against 16 for each of 4,096 cells.
const RUNS_MAX: usize = 512;
/// Of a run.
const RUN_BYTES: usize = std::mem::size_of::<(u32, Cell)>();

/// Cells of a chunk.
#[derive(Clone, Debug)]
pub enum Cells {
    /// (end, cell), ascending; no two neighbours are equal; the last ends the chunk.
    Runs(Vec<(u32, Cell)>),
    /// The kinds that there are, and which of them each cell is.
    Kinds(Box<[Cell]>, Box<[u8]>),
    /// In any order.
    Each(Box<[Cell]>),
}

impl Cells {
    /// All alike.
    pub fn same(cell: Cell, len: u32) -> Cells {
        Cells::Runs(vec![(len, cell)])
    }

    /// (end, cell), ascending, the last ends the chunk.
    pub fn from_runs(runs: Vec<(u32, Cell)>) -> Cells {
        let many = runs.len() > RUNS_MAX;
        let mut cells = Cells::Runs(runs);
        if many {
            cells.spread();
        }
        cells
    }

    /// One; a blank one beyond the end.
    pub fn get(&self, i: u32) -> Cell {
        match self {
            Cells::Runs(runs) => runs.get(runs.partition_point(|(end, _)| *end <= i)).map(|r| r.1).unwrap_or_default(),
            Cells::Kinds(kinds, of) => of.get(i as usize).map(|k| kinds[usize::from(*k)]).unwrap_or_default(),
            Cells::Each(cells) => cells.get(i as usize).copied().unwrap_or_default(),
        }
    }

    /// Runs of equal cells within a range, ascending: (start, end, cell).
    pub fn runs(&self, start: u32, end: u32, mut each: impl FnMut(u32, u32, Cell)) {
        match self {
            Cells::Runs(runs) => {
                let mut from = start;
                for (to, cell) in &runs[runs.partition_point(|(end, _)| *end <= start)..] {
                    if from >= end {
                        break;
                    }
                    each(from, (*to).min(end), *cell);
                    from = *to;
                }
            }
            Cells::Kinds(kinds, of) => {
                let mut from = start;
                for run in of.get(start as usize..(end as usize).min(of.len())).unwrap_or_default().chunk_by(|a, b| a == b) {
                    let to = from + run.len() as u32;
                    each(from, to, kinds[usize::from(run[0])]);
                    from = to;
                }
            }
            Cells::Each(cells) => {
                let mut from = start;
                for run in cells.get(start as usize..(end as usize).min(cells.len())).unwrap_or_default().chunk_by(|a, b| a == b) {
                    let to = from + run.len() as u32;
                    each(from, to, run[0]);
                    from = to;
                }
            }
        }
    }

    /// Change a range, each cell alike: `change` is given every run of it, once, and how long it is.
    pub fn change(&mut self, start: u32, end: u32, mut change: impl FnMut(&mut Cell, u32)) {
        let Cells::Runs(old) = self else { return self.change_each(start, end, |c, _| change(c, 1)) };
        if let [(len, cell)] = &mut old[..]
            && start == 0
            && end >= *len
        {
            return change(cell, *len);
        }
        let mut runs: Vec<(u32, Cell)> = Vec::with_capacity(old.len() + 2);
        let mut push = |end: u32, cell: Cell| match runs.last_mut() {
            Some((e, last)) if *last == cell => *e = end,
            _ => runs.push((end, cell)),
        };
        let mut from = 0;
        for (to, cell) in old.drain(..) {
            let (low, high) = (start.clamp(from, to), end.clamp(from, to));
            if from < low {
                push(low, cell);
            }
            if low < high {
                let mut new = cell;
                change(&mut new, high - low);
                push(high, new);
            }
            if high.max(low) < to {
                push(to, cell);
            }
            from = to;
        }
        *self = Cells::from_runs(runs);
    }

    /// Change a range, each cell in its own way: `change` is given each one's index.
    pub fn change_each(&mut self, start: u32, end: u32, mut change: impl FnMut(&mut Cell, u32)) {
        self.spread();
        if let Cells::Each(cells) = self {
            let end = (end as usize).min(cells.len());
            for (i, c) in cells.get_mut(start as usize..end).unwrap_or_default().iter_mut().enumerate() {
                change(c, start + i as u32);
            }
        }
    }

    fn spread(&mut self) {
        match self {
            Cells::Runs(runs) => {
                let mut cells = Vec::with_capacity(runs.last().map_or(0, |r| r.0 as usize));
                runs.iter().for_each(|(end, c)| cells.resize(*end as usize, *c));
                *self = Cells::Each(cells.into());
            }
            Cells::Kinds(kinds, of) => *self = Cells::Each(of.iter().map(|k| kinds[usize::from(*k)]).collect()),
            Cells::Each(_) => {}
        }
    }

    /// Take less memory, where that is much less.
    pub fn compact(&mut self) {
        let cells = match self {
            Cells::Runs(runs) => return runs.shrink_to_fit(),
            Cells::Kinds(..) => return,
            Cells::Each(cells) => cells,
        };
        // Beyond so many runs one byte for each cell is less.
        let runs_max = (cells.len() / RUN_BYTES).min(RUNS_MAX / 2);
        if cells.chunk_by(|a, b| a == b).take(runs_max + 1).count() <= runs_max {
            let mut runs = Vec::new();
            let mut end = 0;
            for run in cells.chunk_by(|a, b| a == b) {
                end += run.len() as u32;
                runs.push((end, run[0]));
            }
            *self = Cells::Runs(runs);
        } else if let Some(kinds) = kinds(cells) {
            *self = kinds;
        }
    }
}

/// The different ones and which each is; None where a byte can't say it.
fn kinds(cells: &[Cell]) -> Option<Cells> {
    let (mut kinds, mut of) = (Vec::new(), Vec::with_capacity(cells.len()));
    let mut known: HashMap<Cell, u8> = HashMap::new();
    for cell in cells {
        let kind = match known.get(cell) {
            Some(kind) => *kind,
            None => {
                let kind = u8::try_from(kinds.len()).ok()?;
                known.insert(*cell, kind);
                kinds.push(*cell);
                kind
            }
        };
        of.push(kind);
    }
    Some(Cells::Kinds(kinds.into(), of.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_are_what_the_cells_would_be(
            len in 1u32..700,
            steps in proptest::collection::vec((0u32..700, 0u32..700, 0u8..3, any::<bool>(), any::<bool>()), 0..40),
            exits in prop_oneof![1u32..9, 200u32..700],
        ) {
            let mut cells = Cells::same(Cell::default(), len);
            let mut plain = vec![Cell::default(); len as usize];
            for (a, b, phase, each, compact) in steps {
                let (a, b) = (a.min(b).min(len), a.max(b).min(len));
                if each {
                    cells.change_each(a, b, |c, i| (c.phase, c.exit) = (phase, (i % exits) as u16));
                    (a..b).for_each(|i| (plain[i as usize].phase, plain[i as usize].exit) = (phase, (i % exits) as u16));
                } else {
                    let mut n = 0;
                    cells.change(a, b, |c, len| {
                        c.phase = phase;
                        n += len;
                    });
                    prop_assert_eq!(n, b - a);
                    plain[a as usize..b as usize].iter_mut().for_each(|c| c.phase = phase);
                }
                if compact {
                    cells.compact();
                }
                let mut back = Vec::new();
                cells.runs(0, len, |from, to, c| {
                    assert_eq!(from as usize, back.len());
                    back.resize(to as usize, c);
                });
                prop_assert_eq!(&back, &plain);
                prop_assert!((0..len).all(|i| cells.get(i) == plain[i as usize]) && cells.get(len) == Cell::default());
                let mut part = Vec::new();
                cells.runs(a, b, |from, to, c| part.extend((from..to).map(|_| c)));
                prop_assert_eq!(&part, &plain[a as usize..b as usize]);
            }
        }
    }
}
