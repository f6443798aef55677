//! Where a cell of Grid Engine is: the variables that its commands need, from its `settings.sh` or from our own environment. Any text is taken.

use std::path::{Path, PathBuf};

use intergrid_proto::Refusal;

/// What its commands read.
const NAMES: [&str; 6] = ["SGE_ROOT", "SGE_CELL", "SGE_CLUSTER_NAME", "SGE_QMASTER_PORT", "SGE_EXECD_PORT", "SGE_ARCH"];
/// Where Debian's packages put it.
const ROOT_DEFAULT: &str = "/var/lib/gridengine";
const CELL_DEFAULT: &str = "default";

/// Variables and their values.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings(pub Vec<(String, String)>);

impl Settings {
    /// From `settings.sh`: `SGE_ROOT=/opt/sge; export SGE_ROOT`. Values that a shell would have to work out are left to the commands.
    pub fn parse(text: &str) -> Settings {
        let plain = |value: &str| !value.is_empty() && value.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+@:".contains(c));
        let mut found: Vec<(String, String)> = Vec::new();
        for word in text.lines().map(|l| l.split('#').next().unwrap_or_default()).flat_map(|l| l.split([';', ' ', '\t'])) {
            let Some((name, value)) = word.split_once('=') else { continue };
            let value = value.trim_matches(['"', '\'']);
            if NAMES.contains(&name) && plain(value) {
                found.retain(|(there, _)| there != name);
                found.push((name.to_string(), value.to_string()));
            }
        }
        Settings(found)
    }

    /// From this `settings.sh`.
    pub fn read(path: &Path) -> Result<Settings, Refusal> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Refusal::invalid(format!("conf {}: {e}", path.display())).remedy("name the settings.sh of its cell, in $SGE_ROOT/$SGE_CELL/common")
        })?;
        Ok(Settings::parse(&text))
    }

    /// From our own environment, where somebody has sourced `settings.sh`.
    pub fn of_environment(var: impl Fn(&str) -> Option<String>) -> Settings {
        Settings(NAMES.iter().filter_map(|name| Some((name.to_string(), var(name)?))).collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(there, _)| there == name).map(|(_, value)| value.as_str())
    }

    /// The directory of the cell's files.
    pub fn common(&self) -> PathBuf {
        let root = Path::new(self.get("SGE_ROOT").unwrap_or(ROOT_DEFAULT));
        root.join(self.get("SGE_CELL").unwrap_or(CELL_DEFAULT)).join("common")
    }

    /// The accounting file.
    pub fn accounting(&self) -> PathBuf {
        self.common().join("accounting")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn settings_are_those_of_the_shell_and_what_it_works_out_is_left_alone() {
        let text = "SGE_ROOT=/opt/sge; export SGE_ROOT\nexport SGE_CELL=\"physics\"\nSGE_ARCH=`$SGE_ROOT/util/arch`; export SGE_ARCH\n\
                    # SGE_CELL=old\nSGE_QMASTER_PORT=6444; export SGE_QMASTER_PORT\nunset SGE_EXECD_PORT\nPATH=/x:$PATH\n";
        let settings = Settings::parse(text);
        assert_eq!(
            vec!["SGE_ROOT /opt/sge", "SGE_CELL physics", "SGE_QMASTER_PORT 6444"],
            settings.0.iter().map(|(n, v)| format!("{n} {v}")).collect::<Vec<_>>()
        );
        assert_eq!(Path::new("/opt/sge/physics/common/accounting"), settings.accounting());
        assert_eq!(Path::new("/var/lib/gridengine/default/common/accounting"), Settings::default().accounting());
        assert_eq!(vec![("SGE_CELL".to_string(), "a".to_string())], Settings::of_environment(|n| (n == "SGE_CELL").then(|| "a".into())).0);
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in "(?s).{0,200}", value in "\\PC{0,20}") {
            let _ = Settings::parse(&text).accounting();
            let found = Settings::parse(&format!("SGE_ROOT={value}")).0;
            prop_assert!(found.iter().all(|(_, v)| !v.contains(['$', '`'])));
        }
    }
}
