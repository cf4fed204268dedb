//! The careful way: every row is looked at under a lock, decided by the core, and written if nobody came first.
//!
//! What is not there cannot be locked. So an insert looks for a tombstone once more when the row is written; and a
//! delete that finds nothing, or a truncation, becomes known by a tombstone of its own first, waits for whoever was
//! writing into the table by then, and begins anew.

use antiphon_core::mesh::resolve::Action;
use antiphon_core::mesh::truncation::{supersedes, truncates};
use antiphon_core::mesh::{Change, Conflict, Local, Rules, Verdict, Version, resolve};

use super::Mesh;
use super::applier::{Done, Prepared, shown};
use super::judge::Met;
use super::mutation::Mutation;
use super::server::{Actor, Lock, Resource};
use super::state::{Effect, Gone, Key, Knew, Op, Row, id};

/// How far the closer look at one row is.
#[derive(Clone, Copy, Debug, Default)]
pub enum Closer {
    /// The row is looked for.
    #[default]
    Row,
    /// It is not there; its tombstone is looked for.
    Tombstone,
    /// That is what was found.
    Found(Met),
    /// It is written, and its tombstone looked for once more.
    Written(Met),
}

/// A delete of what is not there: of a row, or of all of them.
#[derive(Clone, Copy, Debug)]
pub struct Absent {
    /// The row; none: all.
    pub key: Option<Key>,
    /// What stood there before.
    pub met: Met,
    /// What its writer had seen.
    pub knew: Knew,
}

impl Mesh {
    #[expect(clippy::too_many_arguments, reason = "an attempt's whole context")]
    pub(crate) fn careful_step(
        &mut self,
        node: usize,
        source: usize,
        next: &Prepared,
        xid: u64,
        closer: &mut Closer,
        op: Op,
        knew: Knew,
    ) -> Done {
        let Some(key) = op.key() else { return self.truncate(node, source, next, xid, knew) };
        let actor = Actor::Applier(source);
        match *closer {
            Closer::Row => {
                let server = &mut self.nodes[node].server;
                if server.row(xid, key).is_some() {
                    // Reading with a lock keeps others from truncating, too.
                    for lock in [server.enter(xid, actor), server.lock(xid, Resource::Row(key), actor)] {
                        if lock != Lock::Taken {
                            return lock.into();
                        }
                    }
                }
                *closer = match self.nodes[node].server.row(xid, key) {
                    Some(row) => Closer::Found(Met::Row(row)),
                    None => Closer::Tombstone,
                };
                Done::Later
            }
            Closer::Tombstone => {
                let server = &mut self.nodes[node].server;
                if server.tombstone(xid, key).is_some() {
                    let lock = server.lock(xid, Resource::Gone(key), actor);
                    if lock != Lock::Taken {
                        return lock.into();
                    }
                }
                let gone = self.latest_delete(node, xid, key);
                *closer = Closer::Found(gone.map_or(Met::Nothing, Met::Gone));
                Done::Later
            }
            Closer::Found(met) => self.carry_out(node, source, next, xid, closer, op, knew, met),
            Closer::Written(met) => {
                let again = self.latest_delete(node, xid, key);
                let verdict = again.map(|gone| self.decide(next, source, op, Met::Gone(gone)));
                if verdict.is_some_and(|verdict| verdict.action == Action::Keep)
                    && !self.is(Mutation::InsertOnce)
                {
                    self.nodes[node].server.tx(xid).effects.push(Effect::Row(key, None));
                    *closer = Closer::Row;
                    return Done::Later;
                }
                self.judged(node, source, next, op, knew, met);
                *closer = Closer::Row;
                Done::Yes
            }
        }
    }

    /// The latest delete of that key, its own or its table's.
    fn latest_delete(&self, node: usize, xid: u64, key: Key) -> Option<Gone> {
        let server = &self.nodes[node].server;
        let deletes = [server.tombstone(xid, key), server.truncation(xid)];
        let gone = deletes.into_iter().flatten().max_by_key(|gone| gone.version);
        gone.filter(|_| !self.is(Mutation::NoTombstones))
    }

    fn decide(&self, next: &Prepared, source: usize, op: Op, met: Met) -> Verdict {
        let incoming = Version { at: next.entry.at, node: id(source) };
        let mut verdict = resolve(change_of(op), incoming, &next.seen, met.local(), &Rules::default());
        if let (Op::Update(_, _, old) | Op::Delete(_, old), Met::Row(row)) = (op, met)
            && self.shape.full_rows
            && verdict.action == Action::Apply
            && old == row.value
        {
            verdict.conflict = None;
        }
        self.tamper_verdict(incoming, op, met.local(), &mut verdict);
        verdict
    }

    #[expect(clippy::too_many_arguments, reason = "an attempt's whole context")]
    fn carry_out(
        &mut self,
        node: usize,
        source: usize,
        next: &Prepared,
        xid: u64,
        closer: &mut Closer,
        op: Op,
        knew: Knew,
        mut met: Met,
    ) -> Done {
        let Some(key) = op.key() else { return Done::Fails };
        let actor = Actor::Applier(source);
        let incoming = Version { at: next.entry.at, node: id(source) };
        let known = self.known(node, source, Some(key), met, incoming);
        if let Some(before) = known {
            met = before;
        }
        let verdict = self.decide(next, source, op, met);
        let gone = self.gone_of(source, next.place, knew);
        macro_rules! take {
            ($lock:expr) => {
                match $lock {
                    Lock::Taken => {}
                    other => return other.into(),
                }
            };
        }
        match (verdict.action, op) {
            (Action::Keep | Action::Stop, _) => {}
            (Action::Bury, _) => {
                if known.is_none() && !self.is(Mutation::BuryAtOnce) {
                    return Done::Unknown(Absent { key: Some(key), met, knew });
                }
                take!(self.nodes[node].server.lock(xid, Resource::Gone(key), actor));
                if !self.is(Mutation::NoTombstones) {
                    self.nodes[node].server.tx(xid).effects.push(Effect::Gone(key, Some(gone)));
                }
            }
            (Action::Apply, Op::Delete(..)) => {
                take!(self.nodes[node].server.lock(xid, Resource::Gone(key), actor));
                let tx = self.nodes[node].server.tx(xid);
                tx.effects.push(Effect::Row(key, None));
                if !self.is(Mutation::NoTombstones) {
                    self.nodes[node].server.tx(xid).effects.push(Effect::Gone(key, Some(gone)));
                }
            }
            (Action::Apply, Op::Insert(_, value) | Op::Update(_, value, _)) => {
                let server = &mut self.nodes[node].server;
                let row = Self::row_of(source, next.place, value, knew);
                if matches!(met, Met::Row(_)) {
                    server.tx(xid).effects.push(Effect::Row(key, Some(row)));
                } else {
                    take!(server.enter(xid, actor));
                    take!(server.lock(xid, Resource::Row(key), actor));
                    if server.row(xid, key).is_some() {
                        *closer = Closer::Row;
                        return Done::Later;
                    }
                    server.tx(xid).effects.push(Effect::Row(key, Some(row)));
                    *closer = Closer::Written(met);
                    return Done::Later;
                }
            }
            (Action::Apply, Op::Truncate) => return Done::Fails,
        }
        self.judged(node, source, next, op, knew, met);
        *closer = Closer::Row;
        Done::Yes
    }

    /// A row is decided: it is counted, and the judge looks at what was said of it.
    fn judged(&mut self, node: usize, source: usize, next: &Prepared, op: Op, knew: Knew, met: Met) {
        let verdict = self.decide(next, source, op, met);
        let same = matches!((op, met), (Op::Update(_, _, old) | Op::Delete(_, old), Met::Row(row)) if old == row.value);
        self.note(|_| {
            let what = shown(met.local());
            format!("n{} decides {op:?} {}@{}: {what}, {verdict:?}", id(node), next.entry.at.0, id(source))
        });
        self.met(node, source, next, change_of(op), &met, knew, same, verdict.conflict.is_some());
    }

    /// What stood there before this delete became known; none if it is not, or is not any more.
    fn known(&self, node: usize, source: usize, key: Option<Key>, met: Met, version: Version) -> Option<Met> {
        let known = &self.nodes[node].link(source)?.applier.known;
        let before = known.iter().find(|absent| absent.key == key)?.met;
        let stands = matches!(met, Met::Gone(gone) if gone.version == version);
        (stands || self.is(Mutation::BuryUnsaid)).then_some(before)
    }

    /// Deletes what is older than a truncation, which then stands as a tombstone for all of it.
    fn truncate(&mut self, node: usize, source: usize, next: &Prepared, xid: u64, knew: Knew) -> Done {
        let actor = Actor::Applier(source);
        let known = self.nodes[node]
            .link(source)
            .is_some_and(|link| link.applier.known.iter().any(|absent| absent.key.is_none()));
        if !known && !self.is(Mutation::TruncateAtOnce) {
            return Done::Unknown(Absent { key: None, met: Met::Nothing, knew });
        }
        let goes_back = self.is(Mutation::TruncationGoesBack);
        let gone = self.gone_of(source, next.place, knew);
        let version = Version { at: next.entry.at, node: id(source) };
        let server = &mut self.nodes[node].server;
        let table = server.enter(xid, actor);
        if table != Lock::Taken {
            return table.into();
        }
        for key in 0..server.state.rows.len() {
            let Some(row) = server.row(xid, key) else { continue };
            if !truncates(version, row.version) {
                continue;
            }
            let lock = server.lock(xid, Resource::Row(key), actor);
            if lock != Lock::Taken {
                return lock.into();
            }
            // A row that was locked is looked at again.
            if server.row(xid, key).is_some_and(|row: Row| truncates(version, row.version)) {
                server.tx(xid).effects.push(Effect::Row(key, None));
            }
        }
        let lock = server.lock(xid, Resource::Truncation, actor);
        if lock != Lock::Taken {
            return lock.into();
        }
        let standing = server.truncation(xid).map(|gone| gone.version);
        if supersedes(version, standing) || goes_back {
            server.tx(xid).effects.push(Effect::Truncated(Some(gone)));
        }
        Done::Yes
    }
}

fn change_of(op: Op) -> Change {
    match op {
        Op::Insert(..) => Change::Insert,
        Op::Update(..) => Change::Update,
        Op::Delete(..) | Op::Truncate => Change::Delete,
    }
}

/// Whether that is a conflict that must be told.
pub fn must_be_told(change: Change, local: Local) -> Option<Conflict> {
    match (change, local) {
        (Change::Insert, Local::Row(_)) => Some(Conflict::InsertExists),
        (Change::Update, Local::Row(_)) => Some(Conflict::UpdateOriginDiffers),
        (Change::Delete, Local::Row(_)) => Some(Conflict::DeleteOriginDiffers),
        (Change::Update, Local::Gone(_)) => Some(Conflict::UpdateDeleted),
        (Change::Update, Local::Absent) => Some(Conflict::UpdateMissing),
        (Change::Delete, Local::Gone(_) | Local::Absent) => Some(Conflict::DeleteMissing),
        (Change::Insert, Local::Gone(_) | Local::Absent) => None,
    }
}
