//! The password file (`~/.pgpass`): lines of host:port:database:user:password, of which the first that fits counts.
//!
//! As with libpq a file that others may read is passed over, and a file that is not there is none.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tracing::warn;

use super::{Host, Place};

/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Folders of sockets that the file calls localhost.
const USUAL_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// The password of this user for this database there, if the file has one.
pub(super) fn password(path: &Path, host: &Host, database: &str, user: &str) -> Option<String> {
    let file = fs::File::open(path).ok()?;
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.permissions().mode() & 0o077 != 0 {
        warn!(
            "the password file {} is not used: it must be a plain file that nobody but its owner may read (chmod 0600)",
            path.display()
        );
        return None;
    }
    let mut text = String::new();
    if let Err(error) = file.take(FILE_BYTES_MAX).read_to_string(&mut text) {
        warn!("the password file {} is not used: {error}", path.display());
        return None;
    }
    let port = host.port.to_string();
    let mut names = Vec::new();
    match &host.place {
        Place::Folder(folder) => {
            names.push(folder.to_string_lossy().into_owned());
            if USUAL_FOLDERS.iter().any(|usual| Path::new(usual) == folder) {
                names.push("localhost".to_owned());
            }
        }
        Place::Network { name, .. } => names.push(name.clone()),
    }
    text.lines().find_map(|line| {
        let [of_host, of_port, of_database, of_user, password] = fields(line)?;
        let fits = |field: &Field, value: &str| field.is_any || field.text == value;
        let found = names.iter().any(|name| fits(&of_host, name))
            && fits(&of_port, &port)
            && fits(&of_database, database)
            && fits(&of_user, user);
        found.then_some(password.text)
    })
}

#[derive(Default)]
struct Field {
    text: String,
    /// A lone asterisk, not written as `\*`.
    is_any: bool,
}

/// The fields of a line; none if it is a comment or too short. The last goes to the end of the line.
fn fields(line: &str) -> Option<[Field; 5]> {
    if line.starts_with('#') {
        return None;
    }
    let mut fields: [Field; 5] = Default::default();
    let mut at = 0;
    let mut begin = 0;
    let mut chars = line.char_indices();
    while let Some((index, c)) = chars.next() {
        let field = fields.get_mut(at)?;
        match c {
            '\\' => field.text.extend(chars.next().map(|(_, escaped)| escaped)),
            ':' if at < 4 => {
                field.is_any = line.get(begin..index) == Some("*");
                at += 1;
                begin = index + 1;
            }
            c => field.text.push(c),
        }
    }
    (at == 4).then_some(fields)
}
