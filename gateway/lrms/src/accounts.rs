//! As whom a principal's tasks run: rules of the configuration, the first that fits; without one, refused.
//!
//! An account of a pool belongs to one principal as long as this process knows of a task of his, or of files that it left; it is then free for another.
//! Directories are not shared in time either: a submission's is removed with its last task.

use std::collections::BTreeMap;

use intergrid_gateway::config::{AccountsConfig, MapRule};

use crate::command::Account;

/// The rules, and who has which account of a pool.
#[derive(Debug)]
pub struct Accounts {
    rules: AccountsConfig,
    leased: BTreeMap<String, String>,
}

impl Accounts {
    /// Of a configuration. Error: a rule with a name that no account has.
    pub fn new(rules: AccountsConfig) -> Result<Accounts, String> {
        if let AccountsConfig::Map(rules) = &rules {
            for name in rules.iter().flat_map(|r| r.account.iter().chain(&r.pool)) {
                Account::named(name)?;
            }
        }
        Ok(Accounts { rules, leased: BTreeMap::new() })
    }

    /// All that there can be.
    pub fn all(&self) -> Vec<Account> {
        match &self.rules {
            AccountsConfig::Own => vec![Account::Own],
            AccountsConfig::Map(rules) => {
                let names: std::collections::BTreeSet<&String> = rules.iter().flat_map(|r| r.account.iter().chain(&r.pool)).collect();
                names.into_iter().map(|n| Account::Named(n.clone())).collect()
            }
        }
    }

    /// A principal is known to have this account, from before a restart.
    pub fn keep(&mut self, principal: &str, account: &str) {
        self.leased.insert(account.to_string(), principal.to_string());
    }

    /// As whom this principal's tasks run. `in_use` says whether a principal still has tasks or files here.
    pub fn of(&mut self, principal: &str, in_use: impl Fn(&str) -> bool) -> Result<Account, String> {
        let AccountsConfig::Map(rules) = &self.rules else { return Ok(Account::Own) };
        let fits = |r: &&MapRule| match r.principal.strip_suffix('*') {
            Some(prefix) => principal.starts_with(prefix),
            None => r.principal == principal,
        };
        let Some(rule) = rules.iter().find(fits) else { return Err(format!("no [[map]] rule of this site fits {}", principal.escape_default())) };
        if let Some(account) = &rule.account {
            return Ok(Account::Named(account.clone()));
        }
        let his = rule.pool.iter().find(|a| self.leased.get(*a).is_some_and(|p| p == principal));
        let free = || rule.pool.iter().find(|a| self.leased.get(*a).is_none_or(|p| !in_use(p)));
        match his.or_else(free).cloned() {
            Some(account) => {
                self.leased.insert(account.clone(), principal.to_string());
                Ok(Account::Named(account))
            }
            None => Err(format!("all {} accounts of the pool for {} are in use", rule.pool.len(), rule.principal)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_counts_and_a_pool_is_shared_one_after_the_other() {
        let rule = |principal: &str, account: Option<&str>, pool: &[&str]| MapRule {
            principal: principal.into(),
            account: account.map(String::from),
            pool: pool.iter().map(|a| a.to_string()).collect(),
        };
        let rules = vec![rule("alice", Some("al"), &[]), rule("phys-*", None, &["p1", "p2"]), rule("phys-x", Some("never"), &[])];
        let mut accounts = Accounts::new(AccountsConfig::Map(rules)).unwrap();
        let named = |n: &str| Ok(Account::Named(n.to_string()));
        assert_eq!(named("al"), accounts.of("alice", |_| true));
        assert!(accounts.of("bob", |_| true).unwrap_err().contains("no [[map]] rule"));
        assert!(accounts.of("alice2", |_| true).is_err());
        assert_eq!(
            (named("p1"), named("p2"), named("p1")),
            (accounts.of("phys-x", |_| true), accounts.of("phys-y", |_| true), accounts.of("phys-x", |_| true))
        );
        assert!(accounts.of("phys-z", |_| true).unwrap_err().contains("in use"));
        assert_eq!(named("p1"), accounts.of("phys-z", |p| p == "phys-y"));
        assert_eq!(4, accounts.all().len());
        assert!(Accounts::new(AccountsConfig::Map(vec![rule("x", Some("-u"), &[])])).is_err());
        assert_eq!(Ok(Account::Own), Accounts::new(AccountsConfig::Own).unwrap().of("anybody", |_| false));
    }
}
