//! The shape of a text: the text without its plain literals, as the key of a cache.
//!
//! Clients that write values into their texts never send the same text twice. What a statement is does not depend
//! on the value of a number or of a plain string, so texts of one shape share one [`crate::Statement`]. Where a
//! literal does matter (in SET, or after UESCAPE), and in all that is no query or change of rows, the shape is
//! the text itself.

use crate::scan::{Token, tokens};
use crate::statement::TEXT_MAX;

/// Writes the shape of a text into a buffer that the caller keeps; nothing else is allocated.
pub fn shape(text: &str, into: &mut Vec<u8>) {
    const STRIPPED: [&[u8]; 8] =
        [b"select", b"with", b"values", b"table", b"insert", b"update", b"delete", b"merge"];
    into.clear();
    if text.len() > TEXT_MAX {
        // It is refused for its length: nothing shorter may share that.
        into.extend_from_slice(text.as_bytes());
        return;
    }
    let mut strip = None;
    let mut ended = false;
    for (token, part) in tokens(text) {
        if token == Token::Word && strip.is_none() {
            strip = Some(STRIPPED.iter().any(|word| part.eq_ignore_ascii_case(word)));
        }
        let odd = token == Token::OddString && part.get(1) == Some(&b'&');
        // A further statement of the text may be of another kind.
        let several = ended && !matches!(token, Token::Space | Token::Comment);
        ended |= part == b";";
        if odd || several || strip == Some(false) {
            into.clear();
            into.extend_from_slice(text.as_bytes());
            return;
        }
        match token {
            Token::String => into.extend_from_slice(b"''"),
            Token::Number => into.push(b'0'),
            Token::Space
            | Token::Comment
            | Token::Word
            | Token::QuotedName
            | Token::OddString
            | Token::Parameter
            | Token::Other => into.extend_from_slice(part),
        }
    }
}

#[cfg(test)]
mod tests {
    fn shape(text: &str) -> String {
        let mut into = Vec::new();
        super::shape(text, &mut into);
        String::from_utf8(into).unwrap()
    }

    #[test]
    fn texts_that_differ_in_plain_literals_have_one_shape() {
        assert_eq!(
            shape("SELECT a1 FROM t WHERE b = 12.5 AND c='it''s';"),
            "SELECT a1 FROM t WHERE b = 0 AND c='';"
        );
        assert_eq!(shape("update t set a = a + -17 where b = $1"), "update t set a = a + -0 where b = $1");
    }

    #[test]
    fn where_a_literal_matters_the_shape_is_the_text() {
        for text in [
            "SET antiphon.route = 'leader'",
            "SELECT 1; SET antiphon.route = 'leader'",
            "SELECT U&\"d!0061t\" UESCAPE '!'",
            "SELECT E'\\n', $$a$$, 0x1F, B'1'",
            "SELECT /* antiphon: 1 */ a",
        ] {
            assert_eq!(shape(text), text);
        }
    }
}
