//! Texts of SQL in tokens: enough to find first words, comments, literals and the words of a function's body.
//!
//! It knows strings, quoted names, comments and dollar quotes as PostgreSQL's scanner does with
//! `standard_conforming_strings` on, and no grammar. Nothing is decided by it alone: what it takes for a possible
//! read is still parsed. It allocates nothing, recurses never, and every byte of the text is in one token.

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Space,
    /// A comment of either kind, whole.
    Comment,
    /// A word: a keyword or an unquoted name.
    Word,
    /// `"a name"`.
    QuotedName,
    /// `'a string'`, with nothing before its quote that changes its meaning.
    String,
    /// Strings with a prefix (`E''`, `B''`, `X''`, `N''`, `U&''`, `U&""`) and dollar-quoted ones.
    OddString,
    /// A decimal number that no letter follows.
    Number,
    /// `$1`.
    Parameter,
    /// One byte of anything else.
    Other,
}

/// The tokens of a text, one after the other.
pub(crate) struct Tokens<'a> {
    text: &'a [u8],
}

pub(crate) fn tokens(text: &str) -> Tokens<'_> {
    Tokens { text: text.as_bytes() }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = (Token, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let first = *self.text.first()?;
        let (token, length) = match first {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => (Token::Space, run(self.text, is_space)),
            b'-' if self.text.starts_with(b"--") => {
                (Token::Comment, run(self.text, |byte| !matches!(byte, b'\n' | b'\r')))
            }
            b'/' if self.text.starts_with(b"/*") => (Token::Comment, comment(self.text)),
            b'\'' => string(self.text),
            b'"' => (Token::QuotedName, quoted(self.text, b'"', false)),
            b'$' => dollar(self.text),
            b'0'..=b'9' => number(self.text),
            _ if is_word(first) => word(self.text),
            _ => (Token::Other, 1),
        };
        // Never nothing, or this would not end.
        let (token_text, rest) = self.text.split_at(length.clamp(1, self.text.len()));
        self.text = rest;
        Some((token, token_text))
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

/// A byte of which names are made; `$` may stand within them.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// How many bytes from the start are as asked.
fn run(text: &[u8], is: impl Fn(u8) -> bool) -> usize {
    text.iter().position(|byte| !is(*byte)).unwrap_or(text.len())
}

/// Comments nest.
fn comment(text: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    loop {
        match text.get(at..) {
            Some([b'/', b'*', ..]) => {
                depth += 1;
                at += 2;
            }
            Some([b'*', b'/', ..]) => {
                depth = depth.saturating_sub(1);
                at += 2;
            }
            Some([_, ..]) => at += 1,
            Some([]) | None => return text.len(),
        }
        if depth == 0 {
            return at;
        }
    }
}

/// One that does not end is odd: nobody may take it for a plain value.
fn string(text: &[u8]) -> (Token, usize) {
    let length = quoted(text, b'\'', false);
    let quotes = text.iter().take(length).filter(|byte| **byte == b'\'').count();
    (if quotes.is_multiple_of(2) { Token::String } else { Token::OddString }, length)
}

/// From one quote to its partner; a doubled one does not end it.
fn quoted(text: &[u8], quote: u8, escapes: bool) -> usize {
    let mut at = 1;
    loop {
        match text.get(at..) {
            Some([b'\\', _, ..]) if escapes => at += 2,
            Some([a, b, ..]) if *a == quote && *b == quote => at += 2,
            Some([a, ..]) if *a == quote => return at + 1,
            Some([_, ..]) => at += 1,
            Some([]) | None => return text.len(),
        }
    }
}

fn dollar(text: &[u8]) -> (Token, usize) {
    let rest = text.get(1..).unwrap_or_default();
    if rest.first().is_some_and(u8::is_ascii_digit) {
        return (Token::Parameter, 1 + run(rest, |byte| byte.is_ascii_digit()));
    }
    let tag_end = 1 + run(rest, is_word);
    if text.get(tag_end) != Some(&b'$') {
        return (Token::Other, 1);
    }
    let (tag, body) = text.split_at(tag_end + 1);
    let end = body.windows(tag.len()).position(|part| part == tag);
    (Token::OddString, end.map_or(text.len(), |end| end + 2 * tag.len()))
}

/// Digits with at most one point and one exponent. What a letter follows (0x1F, 1a) is left as a word.
fn number(text: &[u8]) -> (Token, usize) {
    let digits = |at: usize| run(text.get(at..).unwrap_or_default(), |byte| byte.is_ascii_digit());
    let mut at = digits(0);
    if text.get(at) == Some(&b'.') && text.get(at + 1) != Some(&b'.') {
        at += 1 + digits(at + 1);
    }
    if matches!(text.get(at), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(text.get(at + 1), Some(b'+' | b'-')));
        let exponent = digits(at + 1 + sign);
        at += if exponent > 0 { 1 + sign + exponent } else { 0 };
    }
    match text.get(at) {
        Some(byte) if is_word(*byte) || *byte == b'$' => (Token::Other, 1),
        Some(_) | None => (Token::Number, at),
    }
}

fn word(text: &[u8]) -> (Token, usize) {
    let end = run(text, |byte| is_word(byte) || byte == b'$');
    let (word, after) = text.split_at(end);
    match (word, after) {
        (b"e" | b"E", [b'\'', ..]) => (Token::OddString, end + quoted(after, b'\'', true)),
        (b"b" | b"B" | b"x" | b"X" | b"n" | b"N", [b'\'', ..]) => {
            (Token::OddString, end + quoted(after, b'\'', false))
        }
        (b"u" | b"U", [b'&', quote @ (b'\'' | b'"'), ..]) => {
            let rest = after.get(1..).unwrap_or_default();
            (Token::OddString, end + 1 + quoted(rest, *quote, false))
        }
        _ => (Token::Word, end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(Token, String)> {
        let found = tokens(text).map(|(token, part)| (token, String::from_utf8_lossy(part).into_owned()));
        found.filter(|(token, _)| *token != Token::Space).collect()
    }

    #[test]
    fn each_token_is_what_postgresql_takes_it_for() {
        let cases = [
            ("a$1", Token::Word),
            ("naïve", Token::Word),
            ("$12", Token::Parameter),
            ("12", Token::Number),
            ("1.5e-3", Token::Number),
            ("'it''s'", Token::String),
            ("'back\\'", Token::String),
            ("E'quote\\''", Token::OddString),
            ("u&'x'", Token::OddString),
            ("U&\"x\"", Token::OddString),
            ("$$ ' $$", Token::OddString),
            ("$a$ $$ $b$ $a$", Token::OddString),
            ("\"a\"\"b\"", Token::QuotedName),
            ("/* a /* b */ ' */", Token::Comment),
            ("-- ' x", Token::Comment),
            ("'open''", Token::OddString),
            ("/* open", Token::Comment),
            ("$x$ open", Token::OddString),
        ];
        for (text, token) in cases {
            assert_eq!(found(text), [(token, text.to_owned())], "{text}");
        }
        assert_eq!(found("0x1F").first().map(|(token, _)| *token), Some(Token::Other));
    }

    #[test]
    fn no_byte_is_lost_and_it_always_ends() {
        let pieces =
            ["'", "\"", "$", "$$", "$a$", "/*", "*/", "--", "\\", "E'", "U&\"", "1", ".", "e", "é", " "];
        for a in pieces {
            for b in pieces {
                for c in pieces {
                    let text = [a, b, c].concat();
                    let again: Vec<u8> = tokens(&text).flat_map(|(_, part)| part.to_vec()).collect();
                    assert_eq!(again, text.as_bytes(), "{text}");
                }
            }
        }
    }
}
