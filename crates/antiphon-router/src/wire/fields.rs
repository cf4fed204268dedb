//! Looking into the few messages that the router must understand: names of statements, errors, parameters.
//!
//! Pure. Borrowed slices out of the buffer; none where the message is not what its kind says.

/// A text up to its NUL, and what follows.
pub fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((bytes.get(..end)?, bytes.get(end + 1..)?))
}

/// The fields of an ErrorResponse or NoticeResponse that the router decides by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report<'a> {
    /// Severity, not translated.
    pub severity: &'a [u8],
    /// SQLSTATE.
    pub code: &'a [u8],
    /// The message.
    pub message: &'a [u8],
    /// The function of the server that reported it.
    pub routine: &'a [u8],
}

/// Reads the body of an ErrorResponse or NoticeResponse.
pub fn report(mut body: &[u8]) -> Option<Report<'_>> {
    let mut report = Report::default();
    loop {
        let (field, rest) = body.split_first()?;
        if *field == 0 {
            return Some(report);
        }
        let (value, rest) = text(rest)?;
        match field {
            b'V' => report.severity = value,
            b'C' => report.code = value,
            b'M' => report.message = value,
            b'R' => report.routine = value,
            _ => {}
        }
        body = rest;
    }
}

/// The name and the value of a ParameterStatus.
pub fn parameter(body: &[u8]) -> Option<(&str, &str)> {
    let (name, rest) = text(body)?;
    let (value, rest) = text(rest)?;
    if !rest.is_empty() {
        return None;
    }
    Some((std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::HEADER_BYTES;
    use crate::wire::messages::{self, Complaint};

    #[test]
    fn an_error_is_read_back_and_a_cut_one_is_none() {
        let mut out = Vec::new();
        messages::error(&mut out, &Complaint::fatal("57P01", "gone").with_detail(Some("more".into())));
        let body = &out[HEADER_BYTES..];
        let read = report(body).unwrap();
        assert_eq!((read.severity, read.code, read.message), (&b"FATAL"[..], &b"57P01"[..], &b"gone"[..]));
        for end in 0..body.len() {
            assert_eq!(report(&body[..end]), None, "{end} bytes");
        }
    }

    #[test]
    fn a_parameter_is_two_texts_and_no_more() {
        assert_eq!(parameter(b"TimeZone\0UTC\0"), Some(("TimeZone", "UTC")));
        for body in [&b""[..], b"TimeZone", b"TimeZone\0UTC", b"a\0b\0c", b"\xff\0b\0"] {
            assert_eq!(parameter(body), None, "{body:?}");
        }
    }
}
