//! What the types promise, without states that merge: a replica is the set of writes it has heard of, and its value
//! follows from that set alone. Everything that is remembered is kept for ever here, so that nothing can be forgotten.

use std::collections::BTreeSet;

use antiphon_mesh::crdt::Crdt;

/// Elements and values, in the order in which a set shows them: numbers by size, the rest by the bytes of their JSON.
pub const PALETTE: [&str; 14] = [
    "-7",
    "0.25",
    "9",
    "10",
    r#""""#,
    r#""a \"b\" \\ c""#,
    r#""a""#,
    r#""äö""#,
    "[1, \"x\"]",
    "[]",
    "null",
    "true",
    r#"{"a": {"b": []}, "c": "}: {"}"#,
    "{}",
];

/// A write, as its node made it.
#[derive(Clone)]
pub enum Write {
    /// Count by so much.
    Count(i64),
    /// Add this element of the palette.
    Add(usize),
    /// Remove this element of the palette.
    Remove(usize),
    /// Assign this value of the palette.
    Assign(usize),
}

/// A write with what its node had heard of before, and the time and node that a lww_register gave it.
struct Heard {
    write: Write,
    before: BTreeSet<usize>,
    stamp: (i64, i64),
}

/// What one replica has heard of: numbers of writes in the history.
pub type Heads = BTreeSet<usize>;

/// All writes of a case, in the order in which they were made.
#[derive(Default)]
pub struct History(Vec<Heard>);

impl History {
    /// A write by a replica that has heard of these. Gives its number.
    pub fn write(&mut self, heads: &mut Heads, write: Write) -> usize {
        let number = self.0.len();
        self.0.push(Heard { write, before: heads.clone(), stamp: (0, 0) });
        heads.insert(number);
        number
    }

    /// The time and node that a lww_register gave a write. It must be later than all that it has heard of.
    pub fn stamp(&mut self, number: usize, stamp: (i64, i64)) {
        for earlier in &self.0[number].before {
            assert!(self.0[*earlier].stamp.0 < stamp.0, "a write is not later than what it overwrites");
        }
        self.0[number].stamp = stamp;
    }

    /// What a replica that has heard of these must show, as JSON text. The texts of the palette are in jsonb's form.
    pub fn value(&self, crdt: Crdt, heads: &Heads) -> String {
        let heard = || heads.iter().map(|number| (*number, &self.0[*number]));
        match crdt {
            Crdt::GCounter | Crdt::PnCounter => {
                let counts = heard().map(|(_, heard)| match heard.write {
                    Write::Count(by) => by,
                    Write::Add(_) | Write::Remove(_) | Write::Assign(_) => 0,
                });
                counts.sum::<i64>().to_string()
            }
            Crdt::GSet | Crdt::OrSet => {
                let removed = |number: usize, element: usize| {
                    heard().any(|(_, later)| {
                        matches!(later.write, Write::Remove(gone) if gone == element)
                            && later.before.contains(&number)
                    })
                };
                let there = heard().filter_map(|(number, heard)| match heard.write {
                    Write::Add(element) if !removed(number, element) => Some(element),
                    Write::Add(_) | Write::Remove(_) | Write::Assign(_) | Write::Count(_) => None,
                });
                list(there.collect::<BTreeSet<_>>().into_iter().map(|element| PALETTE[element]))
            }
            Crdt::LwwRegister => {
                let last = heard().max_by_key(|(_, heard)| heard.stamp);
                let value = last.map(|(_, heard)| value_of(heard)).filter(|value| *value != "null");
                value.unwrap_or_default().to_owned()
            }
            Crdt::MvRegister => {
                let replaced = |number: usize| heard().any(|(_, later)| later.before.contains(&number));
                let mut values: Vec<_> = heard()
                    .filter(|(number, _)| !replaced(*number))
                    .map(|(_, heard)| value_of(heard))
                    .collect();
                values.sort_unstable();
                values.dedup();
                list(values.into_iter())
            }
        }
    }
}

fn value_of(heard: &Heard) -> &'static str {
    match heard.write {
        Write::Assign(value) => PALETTE[value],
        Write::Count(_) | Write::Add(_) | Write::Remove(_) => unreachable!("a register is only assigned to"),
    }
}

fn list<'a>(items: impl Iterator<Item = &'a str>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}
