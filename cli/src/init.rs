//! `init` and `token`: identities, and what becomes one. A site gets its own certificate authority; users, administrators and agents get certificates of it; a home joins a certificate
//! with the endpoint to ask. What exists is never overwritten; a renewal replaces a certificate, and no key.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use intergrid_proto::Refusal;
use intergrid_proto::net::issue::{self, Validity};
use intergrid_proto::net::{CertRole, Identity};
use intergrid_proto::units::parse_duration;
use serde_json::json;

use crate::args::{HomeRole, InitArgs, InitWhat, IssueArgs, TokenArgs};
use crate::client::HOME_CONFIG;
use crate::env::Environment;
use crate::out::Out;
use crate::stop::{Ending, Result, local};

/// A token is for a machine that joins soon.
const TOKEN_MS_MAX: u64 = 7 * 86_400_000;

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
        InitWhat::Renew { dir, site } => {
            if site.is_none() && Identity::load(&dir)?.role() != CertRole::Site {
                let message = format!("{} is not of a site, and has no CA of its own", dir.display());
                return Err(Refusal::invalid(message).remedy("name the site that made it: --site DIR").into());
            }
            issue::renew(site.as_ref().unwrap_or(&dir), &dir, Validity::default())?;
            let known = Identity::load(&dir)?;
            let next = "restart who uses it; who has it open goes on with the old one until then";
            made(out, &format!("certificate of {}", known.role().name()), known.label(), &dir, next)
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

/// A token for a machine.
pub fn token(args: &TokenArgs, out: &Out) -> Result<Ending> {
    let time = parse_duration(&args.valid).map_err(|e| Refusal::invalid(format!("--valid {}: {e}", args.valid)))?;
    if time.is_zero() || time > Duration::from_millis(TOKEN_MS_MAX) {
        return Err(Refusal::invalid(format!("--valid {}: more than nothing, and at most 7d", args.valid)).into());
    }
    let text = issue::token(&args.site, &args.name, Validity::of(time))?;
    let shown = args.out.display();
    let bad = |e: std::io::Error| local(format!("{shown} can't be written: {e}")).remedy("name another file");
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&args.out).map_err(bad)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(bad)?;
    if out.json {
        out.object(json!({"made": "token", "name": args.name, "file": args.out, "valid_ms": time.as_millis() as u64}))?;
    } else {
        out.line(format!("token for {} in {shown}, good once, for {}", args.name, args.valid))?;
        out.next("next: copy it to the machine, and name it as `token` in the agent's configuration")?;
    }
    Ok(Ending::Well)
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
