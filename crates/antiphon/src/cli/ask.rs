//! Asking before something is done. Without a terminal nobody can answer: then the command line must say yes.

use std::io::{BufRead, IsTerminal, Write};

use super::failure::Failure;
use super::table::harmless;

/// Asks for a yes, unless it was given already.
///
/// # Errors
/// [`Failure::Refused`] if the answer is another, [`Failure::Usage`] if nobody can be asked.
pub(super) fn confirm(question: &str, forced: bool) -> Result<(), Failure> {
    if forced {
        return Ok(());
    }
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::Usage("there is no terminal to ask on; say --force if you mean it".to_owned()));
    }
    print!("{} [y/N]: ", harmless(question));
    let mut line = String::new();
    let read = std::io::stdout().flush().and_then(|()| stdin.lock().read_line(&mut line));
    match read {
        Ok(_) if matches!(line.trim(), "y" | "Y" | "yes") => Ok(()),
        Ok(_) => Err(Failure::Refused("nothing was done".to_owned())),
        Err(error) => Err(Failure::Usage(format!("could not read the answer: {error}"))),
    }
}
