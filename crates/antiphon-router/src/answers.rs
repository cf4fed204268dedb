//! What a server still owes on a link, in order, as far as the router meddles with it.
//!
//! Pure. The router prepares statements that the client did not, and does not prepare again what is there. The
//! answers to both are ParseComplete and CloseComplete, which come in the order of the requests; ReadyForQuery
//! ends each round, and after an error nothing else comes before it. So only those three are counted; all other
//! answers pass by unseen.

use std::collections::VecDeque;

/// An answer that will come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// ParseComplete, for the client; of this statement if it has a name.
    Parse(Option<u64>),
    /// ParseComplete, to a Parse of the router's own.
    ParseOfOurs(Option<u64>),
    /// CloseComplete, to be told as ParseComplete: the client prepared what the server knows already.
    CloseAsParse,
    /// CloseComplete, for the client.
    Close,
    /// CloseComplete, to a Close of the router's own.
    CloseOfOurs,
    /// ReadyForQuery, for the client, to a query of one message.
    Ready,
    /// ReadyForQuery, for the client, to a Sync.
    Sync,
    /// All up to a ReadyForQuery, to a query of the router's own.
    Round(Purpose),
}

/// Why the router asks a server something itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The settings of a session are restored; must succeed.
    Settings,
    /// A transaction that only reads is begun in place of one that was begun elsewhere; must succeed.
    Begin,
    /// A failed transaction is begun in place of one that was lost; its error is what is wanted.
    FailedTransaction,
    /// What a session left behind is removed; must succeed.
    Reset,
}

/// What to do with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deal {
    /// The client gets it.
    Pass,
    /// The client gets a ParseComplete in its place.
    AsParse,
    /// Nobody gets it.
    Drop,
}

/// The answers that are due, in order.
#[derive(Debug, Default)]
pub struct Answers(VecDeque<Expected>);

impl Answers {
    /// Something was sent that will be answered so.
    pub fn expect(&mut self, answer: Expected) {
        self.0.push_back(answer);
    }

    /// Why everything that comes now is for the router itself, if it is.
    pub fn own_round(&self) -> Option<Purpose> {
        match self.0.front() {
            Some(Expected::Round(purpose)) => Some(*purpose),
            Some(_) | None => None,
        }
    }

    /// Whether nothing is due.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A ParseComplete came; none if none was due.
    pub fn parsed(&mut self) -> Option<Deal> {
        match self.0.front()? {
            Expected::Parse(_) => self.taken(Deal::Pass),
            Expected::ParseOfOurs(_) => self.taken(Deal::Drop),
            Expected::CloseAsParse
            | Expected::Close
            | Expected::CloseOfOurs
            | Expected::Ready
            | Expected::Sync
            | Expected::Round(_) => None,
        }
    }

    /// A CloseComplete came; none if none was due.
    pub fn closed(&mut self) -> Option<Deal> {
        match self.0.front()? {
            Expected::CloseAsParse => self.taken(Deal::AsParse),
            Expected::Close => self.taken(Deal::Pass),
            Expected::CloseOfOurs => self.taken(Deal::Drop),
            Expected::Parse(_)
            | Expected::ParseOfOurs(_)
            | Expected::Ready
            | Expected::Sync
            | Expected::Round(_) => None,
        }
    }

    /// The server begins to take rows: every Sync that it was sent in this round is read as part of them and
    /// never answered. Gives how many.
    pub fn copy_in(&mut self) -> u32 {
        let query = usize::from(self.0.front() == Some(&Expected::Ready));
        let mut ignored = 0;
        while self.0.get(query) == Some(&Expected::Sync) {
            self.0.remove(query);
            ignored += 1;
        }
        ignored
    }

    fn taken(&mut self, deal: Deal) -> Option<Deal> {
        self.0.pop_front();
        Some(deal)
    }

    /// A ReadyForQuery came: whose round it ends; none if none was due. Statements whose preparation an error
    /// swallowed are given to `lost`.
    pub fn ready(&mut self, mut lost: impl FnMut(u64)) -> Option<Expected> {
        while let Some(answer) = self.0.pop_front() {
            match answer {
                Expected::Ready | Expected::Sync | Expected::Round(_) => return Some(answer),
                Expected::Parse(Some(id)) | Expected::ParseOfOurs(Some(id)) => lost(id),
                Expected::Parse(None)
                | Expected::ParseOfOurs(None)
                | Expected::CloseAsParse
                | Expected::Close
                | Expected::CloseOfOurs => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_in_the_order_of_the_requests() {
        let mut due = Answers::default();
        for answer in
            [Expected::ParseOfOurs(Some(1)), Expected::CloseAsParse, Expected::Parse(None), Expected::Ready]
        {
            due.expect(answer);
        }
        assert_eq!(due.closed(), None, "nothing is guessed");
        assert_eq!(due.parsed(), Some(Deal::Drop));
        assert_eq!(due.closed(), Some(Deal::AsParse));
        assert_eq!(due.parsed(), Some(Deal::Pass));
        assert_eq!(due.ready(|_| unreachable!("all were prepared")), Some(Expected::Ready));
        assert!(due.is_empty());
        assert_eq!((due.parsed(), due.closed(), due.ready(|_| ())), (None, None, None));
    }

    #[test]
    fn a_sync_before_rows_is_not_answered() {
        let mut due = Answers::default();
        due.expect(Expected::Sync);
        assert_eq!(due.copy_in(), 1);
        for answer in [Expected::Ready, Expected::Sync, Expected::Parse(None), Expected::Sync] {
            due.expect(answer);
        }
        assert_eq!(due.copy_in(), 1);
        assert_eq!(due.ready(|_| ()), Some(Expected::Ready));
        assert_eq!(due.parsed(), Some(Deal::Pass));
        assert_eq!(due.copy_in(), 1);
        assert!(due.is_empty());
    }

    #[test]
    fn an_error_swallows_what_its_round_still_owes() {
        let mut due = Answers::default();
        for answer in [Expected::ParseOfOurs(Some(7)), Expected::Close, Expected::Ready, Expected::Ready] {
            due.expect(answer);
        }
        let mut lost = Vec::new();
        assert_eq!(due.ready(|id| lost.push(id)), Some(Expected::Ready));
        assert_eq!(lost, [7]);
        assert_eq!(due.ready(|_| ()), Some(Expected::Ready));
    }
}
