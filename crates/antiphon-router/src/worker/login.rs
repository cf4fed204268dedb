//! The beginnings: a client from its first packet to its session, a link from its first byte to its first use.

use super::client::{Phase, Wish};
use super::link::Stage;
use super::{Work, Worker};
use crate::login::failure;
use crate::own;
use crate::parameters::{self, Parameters};
use crate::session::{Farewell, Reports, Session};
use crate::settings::PoolMode;
use crate::shared::{FORWARDED, lock};
use crate::sql::Pin;
use crate::wire::messages::{self, Complaint};
use crate::wire::startup::{self, NEWEST_MINOR, Opening, Start};
use crate::wire::{self, Frame, HEADER_BYTES};

/// Times that a client may ask for encryption before it begins: TLS, then GSS.
pub(super) const ENCRYPTION_ASKED_MAX: u8 = 2;
/// Bytes of a cancel key: protocol 3.0 has 4, 3.2 takes any number.
const KEY_BYTES: [usize; 2] = [4, 32];
/// Longest name of a user or a database, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// What a client is told that does not keep to the protocol.
pub(super) fn malformed(message: &str) -> Complaint {
    Complaint::fatal("08P01", message)
}

/// The key of a cancel request, and whether another router has handed it on.
fn own_key(mut key: Vec<u8>) -> (Vec<u8>, bool) {
    let forwarded = key.len() > FORWARDED.len() && key.ends_with(FORWARDED);
    if forwarded {
        key.truncate(key.len() - FORWARDED.len());
    }
    (key, forwarded)
}

/// Random bytes; none if the kernel has none.
pub(super) fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).ok().map(|()| bytes)
}

impl Worker {
    /// Takes bytes of a client that has no session yet; whether to go on with what is left.
    pub(super) fn login_bytes(&mut self, slot: usize, input: &[u8], at: &mut usize) -> bool {
        let Some(client) = self.clients.get(slot) else { return false };
        if client.leaves {
            *at += input.len();
            return false;
        }
        let done = match client.phase {
            Phase::Opening(asked) => self.open(slot, asked, input, at),
            Phase::Direct => self.open_direct(slot),
            Phase::Sasl(_) | Phase::Proof(_) | Phase::Md5(_) => self.password(slot, input, at),
            Phase::Lookup(_) | Phase::Greeting(_) | Phase::Session | Phase::Console(_) => return false,
        };
        match done {
            Ok(go_on) => go_on,
            Err(complaint) => {
                tracing::debug!(message = complaint.message, "a client is not let in");
                *at += input.len();
                self.dismiss(slot, &complaint);
                false
            }
        }
    }

    fn open(&mut self, slot: usize, asked: u8, input: &[u8], at: &mut usize) -> Result<bool, Complaint> {
        if asked == 0 && self.begins_with_tls(slot, input) {
            *at += input.len();
            self.secure_client(slot, Phase::Direct, input);
            return Ok(false);
        }
        let (opening, bytes) = startup::open(input);
        *at += bytes;
        match opening {
            Opening::Partial => Ok(false),
            Opening::Tls | Opening::Gss if asked >= ENCRYPTION_ASKED_MAX || self.is_secure(slot) => {
                Err(malformed("encryption was asked for too often"))
            }
            Opening::Tls if self.settings.clients_tls.is_some() => {
                self.answer_tls(slot, asked + 1, input.get(bytes..).unwrap_or_default())
            }
            Opening::Tls | Opening::Gss => {
                self.tell(slot, b"N");
                self.set_phase(slot, Phase::Opening(asked + 1));
                Ok(true)
            }
            Opening::Cancel { process, key } => {
                // The thread that has the client is in its number.
                let (key, forwarded) = own_key(key);
                self.shared.cancel(process, key, forwarded);
                let serial = self.clients.get(slot).map_or(0, |client| client.serial);
                self.work.push_back(Work::Close(slot, serial));
                Ok(false)
            }
            Opening::Foreign(major, minor) => {
                let message =
                    format!("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2");
                Err(Complaint::fatal("0A000", message))
            }
            Opening::Malformed(why) => Err(malformed(why)),
            Opening::Start(start) => self.start(slot, &start).map(|()| true),
        }
    }

    /// A client that began with TLS must have said before what it begins inside.
    fn open_direct(&mut self, slot: usize) -> Result<bool, Complaint> {
        self.set_phase(slot, Phase::Opening(ENCRYPTION_ASKED_MAX));
        if self.clients.get(slot).is_some_and(|client| client.socket.says_postgresql()) {
            return Ok(true);
        }
        Err(malformed("a connection that begins with TLS must name the protocol postgresql (ALPN)"))
    }

    fn start(&mut self, slot: usize, start: &Start) -> Result<(), Complaint> {
        if self.settings.clients_tls.as_ref().is_some_and(|tls| tls.required) && !self.is_secure(slot) {
            let why =
                "The router lets nobody in without TLS (client_tls_sslmode); set sslmode=require or more.";
            return Err(Complaint::fatal("28000", "TLS required").with_detail(Some(why.to_owned())));
        }
        let clients = self.shared.clients.load(std::sync::atomic::Ordering::Relaxed);
        if clients > self.settings.clients_max {
            return Err(Complaint::fatal("53300", "too many clients are connected to the router"));
        }
        let user = start.get("user").filter(|user| !user.is_empty());
        let user = user.ok_or_else(|| {
            Complaint::fatal("28000", "no PostgreSQL user name specified in startup packet")
        })?;
        let database = start.get("database").filter(|name| !name.is_empty()).unwrap_or(user);
        if user.len() > NAME_BYTES_MAX || database.len() > NAME_BYTES_MAX {
            return Err(Complaint::fatal("28000", "the name of the user or of the database is too long"));
        }
        let mut parameters = Parameters::of_start(start)?;
        let asked = own::at_start(&mut parameters)?;
        let parameters = self.interned.get(parameters);
        let reads = self.settings.reads.as_ref();
        let wants = asked.or(reads.map(|reads| reads.wants(user, database)).unwrap_or_default());
        let reports = reads.is_some() && wants.report_token.unwrap_or_default();
        if start.minor > NEWEST_MINOR || !start.unknown_options.is_empty() {
            let mut bytes = Vec::new();
            messages::negotiate(&mut bytes, start.minor.min(NEWEST_MINOR), &start.unknown_options);
            self.tell(slot, &bytes);
        }
        let wish = Wish {
            user: user.to_owned(),
            database: database.to_owned(),
            minor: start.minor.min(NEWEST_MINOR),
            md5: false,
        };
        if let Some(client) = self.clients.get_mut(slot) {
            client.session = Session::new(parameters);
            client.session.standard = wants.consistency.unwrap_or_default();
            client.session.consistency = client.session.standard;
            client.session.reports = Reports { on: reports, standard: reports, due: false };
            let keeps = self.settings.pool_mode == PoolMode::Session;
            client.session.pinned = keeps.then_some(Pin::SessionMode);
        }
        self.identify(slot, wish);
        Ok(())
    }

    pub(super) fn set_phase(&mut self, slot: usize, phase: Phase) {
        if let Some(client) = self.clients.get_mut(slot) {
            client.phase = phase;
        }
    }

    /// Goes on with what a client has sent meanwhile.
    pub(super) fn resume(&mut self, slot: usize) {
        if let Some(client) = self.clients.get_mut(slot) {
            client.resumes = true;
            self.work.push_back(Work::Client(slot));
        }
    }

    /// The client is who it says: it gets its session as soon as a server has told of itself.
    pub(super) fn greet(&mut self, slot: usize, wish: Wish) {
        if self.wants_console(&wish) {
            return self.open_console(slot, &wish);
        }
        if self.shared.gates.of(&wish.database).is_disabled() {
            let message = format!("database \"{}\" is disabled at the router", wish.database);
            return self.dismiss(slot, &Complaint::fatal("57P03", message));
        }
        let Some(pool) = self.pool_of(&wish) else {
            return self.dismiss(slot, &Complaint::fatal("53300", "too many pools"));
        };
        let Some(client) = self.clients.get_mut(slot) else { return };
        client.pool = pool;
        let id = client.id(slot);
        client.phase = Phase::Greeting(Box::new(wish));
        if !self.greeted(slot) {
            self.wait_for_greeting(pool, id);
        }
    }

    /// Begins the session of a client if it is known what to tell it.
    pub(super) fn greeted(&mut self, slot: usize) -> bool {
        let Some(client) = self.clients.get_mut(slot) else { return true };
        let Phase::Greeting(wish) = &client.phase else { return true };
        let Some(greeting) = self.pools.get(client.pool).and_then(|pool| lock(&pool.budget.greeting).clone())
        else {
            return false;
        };
        let mut bytes = Vec::new();
        messages::authentication(&mut bytes, 0, &[]);
        for (name, value) in greeting.iter() {
            messages::parameter_status(
                &mut bytes,
                name,
                client.session.parameters.shown(name).unwrap_or(value),
            );
        }
        let [short, long] = KEY_BYTES;
        let length = if wish.minor >= 2 { long } else { short };
        // Without random numbers there is no key, and nothing can be cancelled.
        client.key = random::<32>().and_then(|key| Some(key.get(..length)?.to_vec())).unwrap_or_default();
        let process = u32::from(self.number) << 24 | u32::try_from(slot & 0xff_ffff).unwrap_or(0);
        messages::key_data(&mut bytes, process, &client.key);
        messages::ready(&mut bytes, b'I');
        client.session.plain_texts = parameters::plain_texts(&greeting);
        client.phase = Phase::Session;
        client.hold = None;
        self.tell(slot, &bytes);
        self.resume(slot);
        true
    }

    /// Takes bytes of a server that the router logs in to.
    pub(super) fn link_login(&mut self, slot: usize, input: &[u8]) {
        let mut at = 0;
        let mut out = Vec::new();
        let ended = loop {
            let Some(link) = self.links.get_mut(slot) else { return };
            let Stage::Login(login) = &mut link.stage else { return };
            let rest = input.get(at..).unwrap_or_default();
            let (kind, bytes) = match wire::from_server(rest) {
                Frame::Message { kind, bytes } if bytes <= super::READ_BYTES => (kind, bytes),
                Frame::Partial => break Ok(None),
                Frame::Message { .. } | Frame::Malformed => {
                    break Err(failure("08P01", "the server is no PostgreSQL"));
                }
            };
            let Some(body) = rest.get(HEADER_BYTES..bytes) else { break Ok(None) };
            at += bytes;
            match login.message(kind, body, &mut out) {
                Ok(None) => {}
                done => break done,
            }
        };
        if !out.is_empty() {
            self.send(slot, &out);
        }
        let Some(link) = self.links.get_mut(slot) else { return };
        link.inbox.extend_from_slice(input.get(at..).unwrap_or_default());
        match ended {
            Ok(None) => {}
            Ok(Some(greeting)) => {
                link.stage = Stage::Ready;
                link.process = greeting.process;
                link.key = greeting.key;
                self.opened(slot, greeting.parameters);
            }
            Err(why) => self.opening_failed(slot, &why),
        }
    }

    /// A query of the router's own failed: whoever waits for what it does cannot be served.
    pub(super) fn own_query_failed(&mut self, slot: usize) {
        let Some(link) = self.links.get_mut(slot) else { return };
        let Farewell { code, message } =
            link.wire.own_error.take().unwrap_or_else(|| failure("XX000", "it ended in a wrong state"));
        tracing::info!(code, message, "a link could not be given a session's settings; it is closed");
        let (serial, client) = (link.serial, link.client.take());
        self.work.push_back(Work::Drop(slot, serial));
        let Some(client) = client else { return };
        if let Some(client) = self.clients.get_mut(client) {
            client.leave_link(&self.reading);
        }
        let complaint = Complaint::fatal("22023", "the settings of this session could not be restored");
        self.dismiss(client, &complaint.with_detail(Some(format!("The server said: {message}"))));
    }
}
