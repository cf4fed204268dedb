//! Clients of the console: what they type is carried out by all threads, or shown when all have told.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::client::{Client, Phase, Wish};
use super::{Work, Worker};
use crate::console::{self, Command, DATABASES, Facts, Show};
use crate::orders::{Asker, Order, Told, What, socket_id};
use crate::session::Status;
use crate::shared::{Ask, ClientId, Note};
use crate::wire::messages::{self, Complaint};
use crate::wire::{self, Frame, HEADER_BYTES, fields, rows};

/// Longest command.
const COMMAND_BYTES_MAX: usize = 16 * 1024;
/// How often it is looked whether a paused database is at rest.
const PAUSE_LOOK: Duration = Duration::from_millis(10);

/// A client of the console.
#[derive(Debug, Default)]
pub struct Console {
    /// It may do everything.
    admin: bool,
    /// What is being carried out.
    at_work: Option<Command>,
    /// Everything up to a Sync is left out.
    skips: bool,
}

impl Console {
    /// Whether it must be answered before it is listened to again.
    pub(super) fn is_at_work(&self) -> bool {
        self.at_work.is_some()
    }
}

impl Worker {
    /// Whether a client wants the console, and there is one.
    pub(super) fn wants_console(&self, wish: &Wish) -> bool {
        self.settings.console.is_there() && DATABASES.contains(&wish.database.as_str())
    }

    /// A client of the console is who it says.
    pub(super) fn open_console(&mut self, slot: usize, wish: &Wish) {
        let who = &self.settings.console;
        let admin = who.admins.contains(&wish.user);
        if !admin && !who.viewers.contains(&wish.user) {
            let message = format!("user \"{}\" may not use the console", wish.user);
            let remedy = "The file of the router names who may, in admin_users and stats_users.";
            let complaint = Complaint::fatal("42501", message).with_detail(Some(remedy.to_owned()));
            return self.dismiss(slot, &complaint);
        }
        let mut bytes = Vec::new();
        messages::authentication(&mut bytes, 0, &[]);
        let version = concat!(env!("CARGO_PKG_VERSION"), " (Antiphon)");
        for (name, value) in [
            ("server_version", version),
            ("server_encoding", "UTF8"),
            ("client_encoding", "UTF8"),
            ("DateStyle", "ISO, MDY"),
            ("TimeZone", "UTC"),
            ("integer_datetimes", "on"),
            ("standard_conforming_strings", "on"),
        ] {
            messages::parameter_status(&mut bytes, name, value);
        }
        messages::ready(&mut bytes, Status::Idle.byte());
        if let Some(client) = self.clients.get_mut(slot) {
            client.phase = Phase::Console(Box::new(Console { admin, ..Console::default() }));
        }
        self.tell(slot, &bytes);
        self.resume(slot);
    }

    /// Takes bytes of a client of the console; whether to go on with what is left.
    pub(super) fn console_bytes(&mut self, slot: usize, input: &[u8], at: &mut usize) -> bool {
        let Some(client) = self.clients.get_mut(slot).filter(|client| !client.leaves) else { return false };
        let serial = client.serial;
        let Phase::Console(console) = &mut client.phase else { return false };
        if console.is_at_work() {
            return false;
        }
        let (kind, bytes) = match wire::from_client(input) {
            Frame::Partial => return false,
            Frame::Message { kind: b'X', .. } => {
                self.work.push_back(Work::Close(slot, serial));
                return false;
            }
            Frame::Message { kind, bytes } if bytes <= COMMAND_BYTES_MAX => (kind, bytes),
            Frame::Message { .. } | Frame::Malformed => {
                *at += input.len();
                self.dismiss(slot, &Complaint::fatal("08P01", "no command of the console looks like this"));
                return false;
            }
        };
        let Some(body) = input.get(HEADER_BYTES..bytes) else { return false };
        *at += bytes;
        let mut out = Vec::new();
        match kind {
            b'Q' => {
                let command = fields::text(body)
                    .ok_or_else(|| Complaint::error("08P01", "a command has no end"))
                    .and_then(|(sql, _)| console::parse(sql));
                self.command(slot, command);
                return true;
            }
            b'S' => {
                console.skips = false;
                messages::ready(&mut out, Status::Idle.byte());
            }
            _ if console.skips => return true,
            _ => {
                console.skips = true;
                let message = "the console does not speak the extended protocol";
                let remedy = "Send the command as a simple query: without parameters, not prepared.";
                let complaint = Complaint::error("0A000", message).with_detail(Some(remedy.to_owned()));
                messages::error(&mut out, &complaint);
            }
        }
        self.tell(slot, &out);
        true
    }

    /// Carries a command out, as far as this thread can; what others have to tell or to do is awaited.
    fn command(&mut self, slot: usize, command: Result<Command, Complaint>) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        let id = client.id(slot);
        let Phase::Console(console) = &mut client.phase else { return };
        let allowed = command.and_then(|command| match console.admin || command.only_looks() {
            true => Ok(command),
            false => Err(Complaint::error("42501", "only admin_users may do this")),
        });
        if allowed == Ok(Command::Reload) {
            tracing::info!("the console was used to read the file again");
            console.at_work = Some(Command::Reload);
            if self.shared.control.try_send(Ask::Reload(self.number, id)).is_err() {
                let busy = Complaint::error("53300", "the router has too much to look up; try again");
                self.answer_reload(id, Err(busy));
            }
            return;
        }
        let begun = allowed.and_then(|command| Ok((self.begin(&command)?, command)));
        let mut out = Vec::new();
        match begun {
            Ok((Some(what), command)) => {
                if let Some(Phase::Console(console)) =
                    self.clients.get_mut(slot).map(|client| &mut client.phase)
                {
                    console.at_work = Some(command);
                }
                return self.order(what, id);
            }
            Ok((None, Command::Nothing)) => messages::put(&mut out, b'I', |_| ()),
            Ok((None, Command::Show(Show::Help))) => {
                console::help(&mut out);
                rows::complete("SHOW", &mut out);
            }
            Ok((None, command)) => rows::complete(command.tag(), &mut out),
            Err(complaint) => messages::error(&mut out, &complaint),
        }
        messages::ready(&mut out, Status::Idle.byte());
        self.tell(slot, &out);
    }

    /// Does what a command changes at once; gives what all threads must do for it.
    fn begin(&self, command: &Command) -> Result<Option<What>, Complaint> {
        if !command.only_looks() {
            tracing::info!(?command, "the console was used");
        }
        let gates = &self.shared.gates;
        let not = |message: String| Err(Complaint::error("55000", message));
        Ok(match command {
            // Reading the file is the control task's.
            Command::Nothing | Command::Reload | Command::Show(Show::Help) => None,
            Command::Show(Show::Clients | Show::Servers) => Some(What::TellEach),
            Command::Pause(None) if !gates.all.pause() => return not("all is paused already".to_owned()),
            Command::Show(_) | Command::Pause(None) => Some(What::Tell),
            Command::Pause(Some(database)) => {
                gates.of(database).pause();
                Some(What::Tell)
            }
            Command::Resume(None) => {
                let resumed = gates.databases().iter().filter(|gate| gate.resume()).count();
                if !gates.all.resume() && resumed == 0 {
                    return not("nothing is paused".to_owned());
                }
                Some(What::Resume)
            }
            Command::Resume(Some(database)) => {
                if !gates.of(database).resume() {
                    return not(format!("database {database} is not paused"));
                }
                Some(What::Resume)
            }
            Command::Disable(database) => {
                gates.of(database).disable(true);
                None
            }
            Command::Enable(database) => {
                gates.of(database).disable(false);
                None
            }
            Command::Reconnect(database) => {
                match database {
                    Some(database) => gates.of(database).renew(),
                    None => gates.all.renew(),
                }
                Some(What::Renew)
            }
            Command::Kill(database) => {
                match database {
                    Some(database) => gates.of(database).pause(),
                    None => gates.all.pause(),
                };
                Some(What::Kill(database.clone()))
            }
            Command::KillClient(id) => Some(What::KillClient(*id)),
        })
    }

    fn order(&self, what: What, client: ClientId) {
        let order = Order::new(what, Asker::Client(self.number, client), self.shared.threads.len());
        self.shared.order(order);
    }

    /// All threads have carried out what a client of the console wants.
    pub(super) fn ordered(&mut self, order: &Order) {
        let Some(id) = order.client() else { return };
        let Some(client) = self.clients.get_mut(id.slot).filter(|client| client.serial == id.serial) else {
            return;
        };
        let Phase::Console(console) = &mut client.phase else { return };
        let Some(command) = console.at_work.take() else { return };
        let told = order.take();
        if let Command::Pause(database) = &command
            && is_busy(&told, database.as_deref())
        {
            console.at_work = Some(command);
            self.pausing.push_back((self.now + PAUSE_LOOK, id));
            return;
        }
        let mut out = Vec::new();
        match &command {
            Command::Show(show) => {
                let facts = Facts {
                    settings: &self.settings,
                    target: self.target,
                    reading: &self.reading,
                    gates: &self.shared.gates,
                    routes: self.shared.routes(),
                    wall: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
                    now_ms: self.shared.ms_of(self.now),
                };
                console::table(*show, &told, &facts).write(&mut out);
            }
            Command::KillClient(_) if !told.iter().any(|told| told.killed) => {
                messages::error(&mut out, &Complaint::error("42704", "there is no such client"));
            }
            command => rows::complete(command.tag(), &mut out),
        }
        messages::ready(&mut out, Status::Idle.byte());
        self.tell(id.slot, &out);
        self.resume(id.slot);
    }

    /// The file was read again for a client, who is told of what it cannot see otherwise.
    pub(super) fn answer_reload(&mut self, id: ClientId, done: Result<Option<String>, Complaint>) {
        let Some(client) = self.clients.get_mut(id.slot).filter(|client| client.serial == id.serial) else {
            return;
        };
        let Phase::Console(console) = &mut client.phase else { return };
        console.at_work = None;
        let mut out = Vec::new();
        match done {
            Ok(remark) => {
                if let Some(remark) = remark {
                    messages::notice(&mut out, &remark, None);
                }
                rows::complete(Command::Reload.tag(), &mut out);
            }
            Err(complaint) => messages::error(&mut out, &complaint),
        }
        messages::ready(&mut out, Status::Idle.byte());
        self.tell(id.slot, &out);
        self.resume(id.slot);
    }

    /// Looks again whether paused databases are at rest.
    pub(super) fn look_at_pauses(&mut self) {
        while let Some((_, id)) = self.pausing.front().copied().filter(|(due, _)| *due <= self.now) {
            self.pausing.pop_front();
            self.order(What::Tell, id);
        }
    }

    /// Carries out an order to all threads.
    pub(super) fn obey(&mut self, order: &Arc<Order>) {
        let mut told = Told::default();
        match &order.what {
            What::Rest => return self.rest(order),
            What::Tell => told = self.told(false),
            What::TellEach => told = self.told(true),
            What::Resume => self.serve_all(),
            What::Settings => self.take_settings(),
            What::Renew => self.drop_outlived(),
            What::Kill(database) => self.kill(database.as_deref()),
            What::KillClient(id) => told.killed = self.kill_client(*id),
        }
        self.carried_out(order, told);
    }

    /// An order has been carried out here.
    pub(super) fn carried_out(&self, order: &Arc<Order>, told: Told) {
        if let Some((thread, _)) = order.done(told) {
            self.shared.note(thread, Note::Ordered(order.clone()));
        }
    }

    fn kill(&mut self, database: Option<&str>) {
        let meant = |name: &str| database.is_none_or(|database| database == name);
        let of_pool =
            |worker: &Self, pool: usize| worker.pools.get(pool).is_some_and(|pool| meant(&pool.key.database));
        let at_home = |client: &Client| matches!(client.phase, Phase::Session | Phase::Greeting(_));
        let clients = self.clients.iter().filter(|(_, client)| at_home(client) && of_pool(self, client.pool));
        let clients: Vec<usize> = clients.map(|(slot, _)| slot).collect();
        let links = self.links.iter().filter(|(_, link)| meant(&link.key_of.database));
        let links: Vec<(usize, u64)> = links.map(|(slot, link)| (slot, link.serial)).collect();
        for slot in clients {
            self.dismiss(
                slot,
                &Complaint::fatal("57P01", "the router's console closed this connection (KILL)"),
            );
        }
        self.do_work();
        for (slot, serial) in links {
            self.drop_link(slot, serial);
        }
    }

    fn kill_client(&mut self, id: u64) -> bool {
        let number = self.number;
        let found = self.clients.iter().find(|(_, client)| socket_id(number, client.serial) == id);
        let Some(slot) = found.map(|(slot, _)| slot) else { return false };
        let message = "the router's console closed this connection (KILL_CLIENT)";
        self.dismiss(slot, &Complaint::fatal("57P01", message));
        true
    }
}

/// Whether a session of this database, or of any, has a link.
fn is_busy(told: &[Told], database: Option<&str>) -> bool {
    let mut pools = told.iter().flat_map(|told| &told.pools);
    pools.any(|pool| pool.active > 0 && database.is_none_or(|database| pool.key.database == database))
}
