//! Questions to the person at the terminal. Where nobody can be asked, the answer has to be on the command line.

use std::io::{self, BufRead, IsTerminal, Write};

use intergrid_proto::Refusal;

use crate::stop::local;

/// Can somebody be asked?
pub fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Ask; only a plain yes is one.
pub fn yes(question: &str) -> Result<bool, Refusal> {
    let mut answer = String::new();
    let said = write!(io::stderr(), "{question} [y/N] ").and_then(|()| io::stderr().flush()).and_then(|()| io::stdin().lock().read_line(&mut answer));
    said.map_err(|e| local(format!("the answer can't be read: {e}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
