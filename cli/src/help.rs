//! Help beyond `--help`, from the same source: completion scripts and manual pages.

use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::{generate, shells};
use serde_json::json;

use crate::args::{Cli, Shell};
use crate::out::Out;
use crate::stop::{Ending, Result, local};

/// Of the program, in scripts and pages.
const NAME: &str = "grid";

/// A completion script on stdout.
pub fn completion(shell: Shell, out: &Out) -> Result<Ending> {
    let mut command = Cli::command();
    let mut script = Vec::new();
    match shell {
        Shell::Bash => generate(shells::Bash, &mut command, NAME, &mut script),
        Shell::Zsh => generate(shells::Zsh, &mut command, NAME, &mut script),
        Shell::Fish => generate(shells::Fish, &mut command, NAME, &mut script),
    }
    out.bytes(&script)?;
    out.flush()?;
    Ok(Ending::Well)
}

/// A manual page for each verb, and one for all.
pub fn man(dir: &Path, out: &Out) -> Result<Ending> {
    let shown = dir.display();
    let bad = |e: std::io::Error| local(format!("{shown} can't be written: {e}")).remedy("name another directory");
    std::fs::create_dir_all(dir).map_err(bad)?;
    let mut all = Cli::command().disable_help_subcommand(true);
    all.build();
    clap_mangen::generate_to(all.mut_subcommands(with_dashes), dir).map_err(bad)?;
    if out.json {
        out.object(json!({"dir": dir}))?;
    } else {
        out.line(format!("manual pages in {shown}"))?;
        out.next(format!("next: man -l {shown}/grid.1"))?;
    }
    Ok(Ending::Well)
}

/// A page's synopsis is made of the arguments alone and leaves out the `--` before a command: there it is the usage of `--help`.
fn with_dashes(mut verb: Command) -> Command {
    if !verb.get_positionals().any(|a| a.is_last_set()) {
        return verb;
    }
    let usage = verb.render_usage().to_string();
    verb.override_usage(usage.trim_start_matches("Usage: ").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_a_page_and_hidden_ones_have_none() {
        let dir = tempfile::tempdir().unwrap();
        man(&dir.path().join("man"), &Out::new(&Default::default(), false)).unwrap();
        let page = |name: &str| std::fs::read_to_string(dir.path().join("man").join(name));
        for name in ["grid.1", "grid-run.1", "grid-submit.1", "grid-wait.1", "grid-init-home.1"] {
            assert!(page(name).unwrap().contains(".TH"), "{name}");
        }
        assert!(page("grid-submit.1").unwrap().contains("{i}") && page("grid-demo-tile.1").is_err() && page("grid-help.1").is_err());
        for name in ["grid-run.1", "grid-submit.1"] {
            assert!(page(name).unwrap().contains(r"[OPTIONS] \-\- <CMD>..."), "{}", page(name).unwrap());
        }
    }
    /// A line that follows `\` in a text loses what it begins with.
    #[test]
    fn lines_of_a_help_begin_alike() {
        let mut all = Cli::command();
        let help = all.find_subcommand_mut("completion").unwrap().render_help().to_string();
        for shell in ["bash", "zsh", "fish"] {
            assert!(help.contains(&format!("\n  {shell}: ")), "{help}");
        }
    }
}
