//! The messages that the router writes itself: answers to a login, errors, and what it tells a server.
//!
//! Pure. Everything is appended to the buffer that is given, so that one send carries it with what surrounds it.

/// Appends a message.
pub fn put(out: &mut Vec<u8>, kind: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(kind);
    put_sized(out, body);
}

fn put_sized(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    let length = u32::try_from(out.len() - at).expect("a message that the router writes is far below 4 GiB");
    if let Some(place) = out.get_mut(at..at + 4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}

/// Appends a text and its NUL; a NUL within the text is left out.
pub fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend(text.iter().filter(|byte| **byte != 0));
    out.push(0);
}

/// How much a client loses with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The statement.
    Error,
    /// The connection.
    Fatal,
}

/// An error of the router, as a client is told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// What it ends.
    pub severity: Severity,
    /// SQLSTATE.
    pub code: &'static str,
    /// What happened.
    pub message: String,
    /// More of it, or what to do.
    pub detail: Option<String>,
}

impl Complaint {
    /// One that ends the connection.
    pub fn fatal(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Fatal, code, message: message.into(), detail: None }
    }

    /// One that ends the statement.
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, code, message: message.into(), detail: None }
    }

    /// The same with a detail.
    pub fn with_detail(self, detail: Option<String>) -> Self {
        Self { detail, ..self }
    }
}

/// Appends an ErrorResponse.
pub fn error(out: &mut Vec<u8>, complaint: &Complaint) {
    let severity: &[u8] = match complaint.severity {
        Severity::Error => b"ERROR",
        Severity::Fatal => b"FATAL",
    };
    put(out, b'E', |body| {
        let fields = [(b'S', severity), (b'V', severity), (b'C', complaint.code.as_bytes())];
        for (field, text) in fields.into_iter().chain([(b'M', complaint.message.as_bytes())]) {
            body.push(field);
            put_text(body, text);
        }
        if let Some(detail) = &complaint.detail {
            body.push(b'D');
            put_text(body, detail.as_bytes());
        }
        body.push(0);
    });
}

/// Appends a NoticeResponse.
pub fn notice(out: &mut Vec<u8>, message: &str, detail: Option<&str>) {
    put(out, b'N', |body| {
        let fields = [(b'S', "NOTICE"), (b'V', "NOTICE"), (b'C', "00000"), (b'M', message)];
        for (field, text) in fields.into_iter().chain(detail.map(|detail| (b'D', detail))) {
            body.push(field);
            put_text(body, text.as_bytes());
        }
        body.push(0);
    });
}

/// Appends a ReadyForQuery with the state of the transaction: `I`, `T` or `E`.
pub fn ready(out: &mut Vec<u8>, status: u8) {
    put(out, b'Z', |body| body.push(status));
}

/// Appends an authentication request.
pub fn authentication(out: &mut Vec<u8>, code: u32, data: &[u8]) {
    put(out, b'R', |body| {
        body.extend(code.to_be_bytes());
        body.extend(data);
    });
}

/// Appends a ParameterStatus.
pub fn parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    put(out, b'S', |body| {
        put_text(body, name.as_bytes());
        put_text(body, value.as_bytes());
    });
}

/// Appends a BackendKeyData.
pub fn key_data(out: &mut Vec<u8>, process: u32, key: &[u8]) {
    put(out, b'K', |body| {
        body.extend(process.to_be_bytes());
        body.extend(key);
    });
}

/// Appends a NegotiateProtocolVersion: the newest minor version, and the options that are not known.
pub fn negotiate(out: &mut Vec<u8>, minor: u16, options: &[String]) {
    put(out, b'v', |body| {
        body.extend((3u32 << 16 | u32::from(minor)).to_be_bytes());
        body.extend(u32::try_from(options.len()).unwrap_or(0).to_be_bytes());
        for option in options {
            put_text(body, option.as_bytes());
        }
    });
}

/// A simple query.
pub fn query(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 6);
    put(&mut out, b'Q', |body| put_text(body, text.as_bytes()));
    out
}

/// Appends a Close of a prepared statement.
pub fn close_statement(out: &mut Vec<u8>, name: &[u8]) {
    put(out, b'C', |body| {
        body.push(b'S');
        put_text(body, name);
    });
}

/// The packet that opens a session at a server.
pub fn start(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    put_sized(&mut out, |body| {
        body.extend((3u32 << 16).to_be_bytes());
        for (name, value) in parameters {
            put_text(body, name.as_bytes());
            put_text(body, value.as_bytes());
        }
        body.push(0);
    });
    out
}

/// The packet that asks a server whether it speaks TLS; it answers with one byte.
pub fn tls_request() -> Vec<u8> {
    let mut out = Vec::new();
    put_sized(&mut out, |body| body.extend((1234u32 << 16 | 5679).to_be_bytes()));
    out
}

/// The packet that asks a server to cancel what one of its processes does.
pub fn cancel(process: u32, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_sized(&mut out, |body| {
        body.extend((1234u32 << 16 | 5678).to_be_bytes());
        body.extend(process.to_be_bytes());
        body.extend(key);
    });
    out
}

/// Appends the first message of a SASL exchange.
pub fn sasl_initial(out: &mut Vec<u8>, mechanism: &str, data: &[u8]) {
    put(out, b'p', |body| {
        put_text(body, mechanism.as_bytes());
        body.extend(u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
        body.extend(data);
    });
}

/// Appends a further message of a SASL exchange.
pub fn sasl_response(out: &mut Vec<u8>, data: &[u8]) {
    put(out, b'p', |body| body.extend(data));
}
