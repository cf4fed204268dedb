//! What breaks, and how it is mended.

use super::Event;
use super::Mesh;
use super::shape::Fault;
use super::state::id;
use super::wall::Wall;
use crate::clock::{MS, US};

impl Mesh {
    pub(crate) fn strike(&mut self, index: usize) {
        let (_, fault) = self.shape.faults[index];
        if self.healed {
            return;
        }
        let active = self.active();
        let node = active[self.rng.index(active.len())];
        let other = active[self.rng.index(active.len())];
        let time = self.rng.range(10 * MS, 250 * MS);
        let slow = if fault == Fault::Slow { 120 * self.shape.delay } else { 0 };
        self.judge.calm_since = self.judge.calm_since.max(self.now + time + slow);
        self.note(|_| format!("NEMESIS {fault:?} n{} n{} for {} ms", id(node), id(other), time / MS));
        match fault {
            Fault::Crash | Fault::Failover => self.crash(node, fault == Fault::Failover, time / 4),
            Fault::Agent => {
                self.stop_agent(node);
                self.after(time / 4, Event::Boot { node });
            }
            Fault::Cut if node != other => self.cut(node, other, time),
            Fault::Isolate => {
                for other in active.into_iter().filter(|other| *other != node) {
                    self.cut(node, other, time);
                    self.cut(other, node, time);
                }
            }
            Fault::Forward => {
                let micros = self.rng.range(100, 60_000) as i64;
                self.nodes[node].wall.step(self.now, micros);
            }
            Fault::Back => {
                let micros = self.rng.range(100, 60_000) as i64;
                self.nodes[node].wall.step(self.now, -micros);
            }
            Fault::Slow => self.slow(node, other, self.now + time),
            Fault::Hang => self.nodes[node].hang_until = self.now + time / 4,
            Fault::Join => self.begin_join(),
            Fault::Leave => self.begin_leave(),
            Fault::Cut => {}
        }
    }

    pub(crate) fn crash(&mut self, node: usize, elsewhere: bool, down: u64) {
        if !self.nodes[node].server.up || !self.nodes[node].is_active(node) {
            return;
        }
        self.note(|_| format!("n{} crashes", id(node)));
        self.counts.crashes += 1;
        self.abort_join();
        self.nodes[node].agent_up = false;
        self.nodes[node].open = false;
        self.nodes[node].server.crash();
        for other in 0..self.nodes.len() {
            self.drop_link(node, other);
            self.break_link(other, node, true);
        }
        if elsewhere {
            let skew = self.shape.skew;
            let ahead = self.rng.range(0, 2 * skew as u64 + 1) as i64 - skew;
            self.nodes[node].wall = Wall::new(ahead + 1_000_000_000, 0, self.shape.grain);
        }
        self.after(down, Event::Restart { node });
    }

    pub(crate) fn restart(&mut self, node: usize) {
        if !self.nodes[node].is_active(node) {
            return;
        }
        self.nodes[node].server.up = true;
        let here = &mut self.nodes[node];
        here.saying = None;
        for writer in &mut here.writers {
            *writer = super::writer::Writer::default();
        }
        let epoch = here.server.epoch;
        self.note(|_| format!("n{} is back", id(node)));
        self.after(100 * US, Event::Flusher { node, epoch });
        self.after(200 * US, Event::Open { node, epoch });
        let pause = self.rng.range(MS, 20 * MS);
        self.after(pause, Event::Boot { node });
    }

    fn cut(&mut self, from: usize, to: usize, time: u64) {
        self.cuts[from][to] += 1;
        self.break_link(to, from, true);
        self.after(time, Event::Mend { from, to });
    }

    pub(crate) fn mend(&mut self, from: usize, to: usize) {
        self.cuts[from][to] -= 1;
    }

    /// From now on nobody writes, and nothing breaks any more; what is broken is mended in its time.
    pub(crate) fn heal(&mut self) {
        self.healed = true;
        self.note(|_| "healed".to_owned());
        for node in &mut self.nodes {
            node.open = false;
        }
        self.after(50 * MS, Event::Check);
    }
}
