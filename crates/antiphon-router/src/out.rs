//! What one read turns into: as far as possible the bytes as they came, sent from where they lie.
//!
//! Pure. As long as nothing is changed or left out in the middle, the result is a range of the input and nothing
//! is copied; else it is put together in a buffer that is used again.

use std::ops::Range;

/// Bytes on their way from one side to the other.
#[derive(Debug, Default)]
pub struct Out {
    built: Vec<u8>,
    run: Range<usize>,
}

impl Out {
    /// Begins anew; the room is kept.
    pub fn clear(&mut self) {
        self.built.clear();
        self.run = 0..0;
    }

    /// Passes a range of the input on as it is.
    pub fn pass(&mut self, input: &[u8], range: Range<usize>) {
        if self.run.end != range.start {
            self.settle(input);
            self.run.start = range.start;
        }
        self.run.end = range.end;
    }

    /// The place to write something else at.
    pub fn put(&mut self, input: &[u8]) -> &mut Vec<u8> {
        self.settle(input);
        &mut self.built
    }

    /// Everything, in order.
    pub fn finish<'a>(&'a mut self, input: &'a [u8]) -> &'a [u8] {
        if self.built.is_empty() {
            return input.get(self.run.clone()).unwrap_or_default();
        }
        self.settle(input);
        &self.built
    }

    fn settle(&mut self, input: &[u8]) {
        self.built.extend_from_slice(input.get(self.run.clone()).unwrap_or_default());
        // Empty at an end that no range starts at by chance matters not: an empty run passes nothing.
        self.run = self.run.end..self.run.end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_changed_is_not_copied() {
        let input = b"0123456789";
        let mut out = Out::default();
        out.pass(input, 2..4);
        out.pass(input, 4..6);
        assert_eq!(out.finish(input), b"2345");
        assert!(out.built.is_empty());
    }

    #[test]
    fn what_is_changed_or_left_out_keeps_the_order() {
        let input = b"0123456789";
        let mut out = Out::default();
        out.pass(input, 0..2);
        out.put(input).extend(b"ab");
        out.pass(input, 2..3);
        out.pass(input, 5..7);
        out.put(input).push(b'c');
        out.pass(input, 7..8);
        assert_eq!(out.finish(input), b"01ab256c7");
        out.clear();
        assert_eq!(out.finish(input), b"");
    }
}
