//! What can go wrong between us and a server, in words for who has to put it right.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use antiphon_tls::{TlsError, explain};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{ErrorFields, ErrorResponseBody, NoticeResponseBody};

/// Why there is no connection, or none any more, or why a statement failed.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Nobody answers there.
    #[error("could not connect to {server}: {error}")]
    Connect {
        /// The server.
        server: Arc<str>,
        /// Why not.
        error: io::Error,
    },
    /// An attempt took too long.
    #[error("{server} did not let us in within {time:?}")]
    Timeout {
        /// The server.
        server: Arc<str>,
        /// The limit (`connect_timeout`).
        time: Duration,
    },
    /// There is no TLS with it, and there must be.
    #[error("no encrypted connection to {server}: {why}")]
    Tls {
        /// The server.
        server: Arc<str>,
        /// Why not.
        why: String,
    },
    /// The files for TLS.
    #[error(transparent)]
    Files(#[from] TlsError),
    /// The two sides do not agree on how one logs in.
    #[error("could not log in to {server}: {why}")]
    Login {
        /// The server.
        server: Arc<str>,
        /// Why not.
        why: String,
    },
    /// It is not of the kind that is looked for.
    #[error("{server} {why}, and target_session_attrs asks for another")]
    Unwanted {
        /// The server.
        server: Arc<str>,
        /// What it is.
        why: &'static str,
    },
    /// None of several servers would do.
    #[error("none of {} servers will do: {}", tried.len(), listed(tried))]
    Nowhere {
        /// What each said.
        tried: Vec<WireError>,
    },
    /// The connection broke.
    // Inside TLS a server says no to a certificate after the handshake.
    #[error("the connection to {server} broke while {doing}: {}", explain(error))]
    Io {
        /// The server.
        server: Arc<str>,
        /// What was done.
        doing: &'static str,
        /// What happened.
        error: io::Error,
    },
    /// The server ended the connection, or the stream that it carries.
    #[error("{server} ended {what}")]
    Closed {
        /// The server.
        server: Arc<str>,
        /// What it ended.
        what: &'static str,
    },
    /// The server says no.
    #[error(transparent)]
    Server(#[from] Box<ServerError>),
    /// What came is not what the protocol has there.
    #[error("{server} broke the protocol: {what}")]
    Protocol {
        /// The server.
        server: Arc<str>,
        /// What came.
        what: String,
    },
    /// A message that has no form in the protocol.
    #[error("this cannot be sent to a server: {what}")]
    Unsendable {
        /// Why not.
        what: String,
    },
}

impl WireError {
    /// What the server said, if it said no.
    pub fn server(&self) -> Option<&ServerError> {
        match self {
            Self::Server(error) => Some(error),
            _ => None,
        }
    }

    /// The code of what the server said: `23505`.
    pub fn code(&self) -> Option<&str> {
        self.server().map(|error| error.code.as_str())
    }
}

fn listed(errors: &[WireError]) -> String {
    errors.iter().map(WireError::to_string).collect::<Vec<_>>().join("; ")
}

/// An error or a notice as a server sends it, field by field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `PANIC`, or of a notice `WARNING` and below; never translated.
    pub severity: String,
    /// The SQLSTATE.
    pub code: String,
    /// What happened.
    pub message: String,
    /// More of it; may hold values of the row.
    pub detail: Option<String>,
    /// What may help.
    pub hint: Option<String>,
    /// Where in the statement, in characters from 1.
    pub position: Option<u32>,
    /// In which function or trigger.
    pub context: Option<String>,
    /// The schema of what it is about.
    pub schema: Option<String>,
    /// The table that it is about.
    pub table: Option<String>,
    /// The column that it is about.
    pub column: Option<String>,
    /// The type that it is about.
    pub data_type: Option<String>,
    /// The constraint that it is about.
    pub constraint: Option<String>,
}

impl From<&ErrorResponseBody> for ServerError {
    fn from(body: &ErrorResponseBody) -> Self {
        Self::read(body.fields())
    }
}

impl From<ErrorResponseBody> for ServerError {
    fn from(body: ErrorResponseBody) -> Self {
        Self::from(&body)
    }
}

impl From<&NoticeResponseBody> for ServerError {
    fn from(body: &NoticeResponseBody) -> Self {
        Self::read(body.fields())
    }
}

impl From<ErrorResponseBody> for WireError {
    fn from(body: ErrorResponseBody) -> Self {
        Self::Server(Box::new(body.into()))
    }
}

impl ServerError {
    /// As many fields as can be read: half an error says more than none.
    fn read(mut fields: ErrorFields<'_>) -> Self {
        let mut error = Self::default();
        while let Ok(Some(field)) = fields.next() {
            let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                // Servers since 9.6 send V, which is not translated.
                b'V' => error.severity = value,
                b'S' if error.severity.is_empty() => error.severity = value,
                b'C' => error.code = value,
                b'M' => error.message = value,
                b'D' => error.detail = Some(value),
                b'H' => error.hint = Some(value),
                b'P' => error.position = value.parse().ok(),
                b'W' => error.context = Some(value),
                b's' => error.schema = Some(value),
                b't' => error.table = Some(value),
                b'c' => error.column = Some(value),
                b'd' => error.data_type = Some(value),
                b'n' => error.constraint = Some(value),
                _ => {}
            }
        }
        error
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.severity, self.code, self.message)?;
        match &self.detail {
            Some(detail) => write!(f, " ({detail})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ServerError {}
