//! `init`: identities. A site gets its own certificate authority; users, administrators and agents get certificates of it; a home joins a certificate
//! with the endpoint to ask. What exists is never overwritten.

use std::path::Path;

use intergrid_proto::Refusal;
use intergrid_proto::net::issue::{self, Validity};
use intergrid_proto::net::{CertRole, Identity};
use serde_json::json;

use crate::args::{HomeRole, InitArgs, InitWhat, IssueArgs};
use crate::client::HOME_CONFIG;
use crate::env::Environment;
use crate::out::Out;
use crate::stop::{Ending, Result, local};

/// Make it, and say what is next.
pub async fn run(args: InitArgs, endpoint: Option<&str>, environment: &Environment, out: &Out) -> Result<Ending> {
    match args.what {
        InitWhat::Site { dir, name } => {
            issue::new_site(&dir, &name, &[])?;
            let shown = dir.display();
            made(
                out,
                "site",
                &name,
                &dir,
                &format!("grid init agent NAME --site {shown} --out DIR, grid init home --site {shown} --endpoint HOST:PORT"),
            )
        }
        InitWhat::Gateway(args) => crate::cluster::init(args, out).await,
        InitWhat::User(args) => {
            certificate(out, CertRole::User, &args, "put it into that user's home as ca.pem, cert.pem and key.pem, with a config.toml")
        }
        InitWhat::Admin(args) => {
            certificate(out, CertRole::Admin, &args, "put it into that user's home as ca.pem, cert.pem and key.pem, with a config.toml")
        }
        InitWhat::Agent(args) => certificate(out, CertRole::Agent, &args, "name it as `identity` in an agent's configuration"),
        InitWhat::Home { site, name, role } => {
            let Some(endpoint) = endpoint.or(environment.endpoint.as_deref()) else {
                return Err(Refusal::invalid("which endpoint is not said").remedy("give --endpoint HOST:PORT").into());
            };
            let Some(dir) = &environment.home else {
                return Err(Refusal::invalid("neither INTERGRID_HOME nor HOME is set").remedy("set INTERGRID_HOME").into());
            };
            let role = match role {
                HomeRole::User => CertRole::User,
                HomeRole::Admin => CertRole::Admin,
            };
            home(&site, dir, endpoint, role, &name)?;
            made(out, "home", &name, dir, "grid hosts --tree, grid submit -- hostname")
        }
    }
}

fn certificate(out: &Out, role: CertRole, args: &IssueArgs, next: &str) -> Result<Ending> {
    issue::issue(&args.site, role, &args.name, &args.out, Validity::default())?;
    made(out, role.name(), &args.name, &args.out, next)
}

/// A home for this user.
pub fn home(site: &Path, dir: &Path, endpoint: &str, role: CertRole, name: &str) -> Result<(), Refusal> {
    let good = endpoint.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if !good || endpoint.contains(['"', '\\']) || endpoint.chars().any(char::is_control) {
        return Err(Refusal::invalid(format!("{endpoint:?} is not an endpoint")).remedy("write HOST:PORT"));
    }
    let config = dir.join(HOME_CONFIG);
    if config.exists() {
        return Err(local(format!("{} exists already", config.display())).remedy("set INTERGRID_HOME to another directory, or remove it"));
    }
    issue::issue(site, role, name, dir, Validity::default())?;
    std::fs::write(&config, format!("endpoint = \"{endpoint}\"\n")).map_err(|e| local(format!("{} can't be written: {e}", config.display())))
}

fn made(out: &Out, what: &str, name: &str, dir: &Path, next: &str) -> Result<Ending> {
    let id = Identity::load(dir)?.id().to_string();
    if out.json {
        out.object(json!({"made": what, "name": name, "dir": dir, "site": id}))?;
    } else {
        out.line(format!("{what} {name} in {}, id {id}", dir.display()))?;
        out.next(format!("next: {next}"))?;
    }
    Ok(Ending::Well)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Home;

    #[test]
    fn a_home_is_made_once_and_is_good_for_asking() {
        let dir = tempfile::tempdir().unwrap();
        let (site, own) = (dir.path().join("site"), dir.path().join("home"));
        issue::new_site(&site, "root", &[]).unwrap();
        home(&site, &own, "127.0.0.1:7411", CertRole::Admin, "me").unwrap();
        let environment = Environment { home: Some(own.clone()), ..Default::default() };
        assert_eq!("127.0.0.1:7411", Home::load(&environment, None).unwrap().endpoint);
        assert_eq!((CertRole::Admin, "me"), (Identity::load(&own).unwrap().role(), Identity::load(&own).unwrap().label()));
        assert!(home(&site, &own, "127.0.0.1:7411", CertRole::Admin, "me").unwrap_err().message.contains("exists already"));
    }

    #[test]
    fn a_bad_endpoint_is_refused_first() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["", "host", ":1", "h:x", "h\":1"] {
            assert!(home(dir.path(), &dir.path().join("h"), bad, CertRole::User, "me").unwrap_err().message.contains("not an endpoint"), "{bad}");
        }
        assert!(!dir.path().join("h").exists());
    }
}
