//! Exhaust: a generator that takes every path through the choices asked of it, like an odometer.
//!
//! `while !gen.done() { let a = gen.below(3); if gen.flag() { … } }` runs its body once for each combination;
//! what is asked later may depend on what was answered before.

/// The choices of the present path, each with how many there are.
#[derive(Default)]
pub struct Gen {
    started: bool,
    choices: Vec<(usize, usize)>,
    at: usize,
}

impl Gen {
    /// Moves on to the next path; whether there is none.
    pub fn done(&mut self) -> bool {
        self.at = 0;
        if !self.started {
            self.started = true;
            return false;
        }
        while let Some((chosen, choices)) = self.choices.pop() {
            if chosen + 1 < choices {
                self.choices.push((chosen + 1, choices));
                return false;
            }
        }
        true
    }

    /// A number below `choices`.
    pub fn below(&mut self, choices: usize) -> usize {
        assert!(choices > 0, "there is nothing to choose from");
        if self.at == self.choices.len() {
            self.choices.push((0, choices));
        }
        let (chosen, known) = self.choices[self.at];
        assert_eq!(known, choices, "the same path must ask the same questions");
        self.at += 1;
        chosen
    }

    /// Yes or no.
    pub fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    /// One of these.
    pub fn of<'a, T>(&mut self, values: &'a [T]) -> &'a T {
        &values[self.below(values.len())]
    }
}

#[test]
fn every_path_is_taken_once() {
    let mut gen_ = Gen::default();
    let mut seen = Vec::new();
    while !gen_.done() {
        let first = gen_.below(3);
        seen.push((first, if first == 1 { gen_.below(2) } else { 9 }));
    }
    assert_eq!(seen, [(0, 9), (1, 0), (1, 1), (2, 9)]);
}
